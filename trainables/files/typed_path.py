"""Paths as people type them."""

from __future__ import annotations

import os
from pathlib import Path

from trainables.errors import InputError
from trainables.wording import shorten_place

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""In bytes; what Linux and its file systems take."""


def path_problem(path: str) -> str | None:
    """Why no file can have this path, with the remedy; None where one can."""
    if "\0" in path:
        return "no path holds a NUL character; take it out"
    try:
        as_bytes = os.fsencode(path)
    except UnicodeEncodeError:
        return "no path holds half a letter (a lone surrogate); take it out"
    if len(as_bytes) > _LONGEST_PATH or any(len(name) > _LONGEST_NAME for name in as_bytes.split(b"/")):
        return f"no path is so long, {len(as_bytes)} bytes; give that of a file or folder"
    return None


def expand(path: str | Path, place: str = "") -> Path:
    """A path as somebody typed it, with ``~`` written out.

    Args:
        path: The path.
        place: Where it was typed, for messages: a field of a spec, a command.

    Raises:
        InputError: It begins with the home of a user whom this machine does not know, or no file can have it.
    """
    where = f"{place}: " if place else ""
    if problem := path_problem(str(path)):
        raise InputError(f"{where}{shorten_place(str(path))}: {problem}")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = str(path).split("/", 1)[0]
        raise InputError(
            f"{where}{path}: {user} would be the home of a user called {user[1:]!r}, whom this machine does not know; "
            f"write ~/ for your own, or ./{path} for a name that begins so"
        ) from error
