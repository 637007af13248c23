"""What several commands are given: each argument and option with its help, and what a shell may complete of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trainables.errors import InputError
from trainables.files.typed_path import expand
from tuner.commands import completing

SweepName = Annotated[str, typer.Argument(help="Name of a sweep.", autocompletion=completing.sweeps)]
SpecOrSource = Annotated[
    str,
    typer.Argument(
        help="A spec file, a preset, or pictures (folder:PATH): then a spec is fitted to them.",
        autocompletion=completing.specs_or_sources,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Overrides a field: --set search.num_trials=40",
        autocompletion=completing.fields,
    ),
]
TakesNextName = Annotated[bool, typer.Option("--new", help="Where the name is in use, take the next free one.")]
Source = Annotated[str, typer.Argument(help="A folder of class folders, or a source as in a spec ('digits').")]
ImageSize = Annotated[int, typer.Option("--image-size", min=8, max=1024, help="Side that the network sees, in pixels.")]
FormatName = Annotated[str, typer.Option("--format", help="table, csv or json.")]
Labels = Annotated[str, typer.Option(help="single, or multi where a picture may have several labels.")]
LabelSeparator = Annotated[str, typer.Option(help="Between the labels of one picture, where they are text.")]


def file_to_write(path: Path, option: str, ending: str = "", *, replaces: bool = False) -> Path:
    """A file that a command is to write, checked before any work.

    Args:
        path: As it was typed.
        option: For which option, for messages.
        ending: What its name must end in.
        replaces: Whether a file that is there is written over.

    Raises:
        InputError: No file can be written there, or one is there.
    """
    path = expand(path, option)
    if ending and path.suffix.lower() != ending:
        raise InputError(f"{option}: {path} is to be a {ending[1:].upper()}; end its name in {ending}")
    if not path.parent.is_dir():
        raise InputError(f"{option}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{option}: nothing may be written into {path.parent}; give another folder")
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder; give a file in it")
    if path.exists() and not replaces:
        raise InputError(f"{option}: {path} is there already; name another file, or remove it")
    return path


def separator_of(labels: str, label_separator: str) -> str | None:
    """What stands between a picture's labels; None where it has one.

    Raises:
        InputError: `labels` is neither ``single`` nor ``multi``.
    """
    if labels not in ("single", "multi"):
        raise InputError(f"--labels: {labels!r} is neither single nor multi")
    return label_separator if labels == "multi" else None
