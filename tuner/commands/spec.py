"""``thaw spec``: what a spec may say, the presets, and a spec fitted to pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tuner.commands.arguments import Labels, LabelSeparator, Source, file_to_write, separator_of

spec_app = typer.Typer(help="Specs: what a sweep is made of.", no_args_is_help=True)


@spec_app.command("schema")
def spec_schema() -> None:
    """Prints the JSON schema of a sweep's spec."""
    from search_spaces.loading import spec_schema_text

    sys.stdout.write(spec_schema_text())


@spec_app.command("reference")
def spec_reference() -> None:
    """Prints every field of a sweep's spec with its default, as Markdown."""
    from search_spaces.reference import reference_text

    sys.stdout.write(reference_text())


@spec_app.command("new")
def spec_new(
    source: Source,
    out: Annotated[Path | None, typer.Option(help="The file to write; by default standard output.")] = None,
    labels: Labels = "single",
    label_separator: LabelSeparator = "|",
) -> None:
    """Writes a spec that is fitted to a set of pictures, with the reason for each choice."""
    from search_spaces.fitting import spec_text
    from trainables.data.sources import as_source
    from tuner.pictures.facts import facts_of

    out = None if out is None else file_to_write(out, "--out")
    text = spec_text(facts_of(as_source(source), separator_of(labels, label_separator)))
    if out is None:
        sys.stdout.write(text)
        return
    out.write_text(text, encoding="utf-8")
    typer.echo(f"{out}: change it as you like, then  thaw sweep {out}")


@spec_app.command("presets")
def spec_presets() -> None:
    """Lists the specs that come with Thaw."""
    from search_spaces.loading import preset_names

    for name in preset_names():
        typer.echo(name)
