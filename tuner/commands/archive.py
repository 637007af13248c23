"""``thaw export-sweep`` and ``thaw import-sweep``: a sweep in one file, to another machine or for years to come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.commands.arguments import SweepName

_PATIENCE_S = 120.0


def export_sweep(
    name: SweepName,
    file: Annotated[Path, typer.Argument(help="The file to write (zip: Parquet, JSON and the champion's model).")],
) -> None:
    """Writes everything about a sweep into one file."""
    from tuner.paths import HomePaths
    from tuner.records.archive import export_sweep as write
    from tuner.records.shared_home import pull_results, pull_sweeps

    home = HomePaths.from_env()
    pull_sweeps(home, name)
    pull_results(home, name)
    size = write(home, name, file)
    typer.echo(f"{file}: sweep {name}, {size / 1e6:.1f} MB")


def import_sweep(
    file: Annotated[Path, typer.Argument(help="From `thaw export-sweep`.", exists=True, dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="Another name, where its own is in use.")] = None,
) -> None:
    """Takes a sweep from a file into this home, its runs and its champion into MLflow.

    Repeat it after an interruption: what is here already stays, what MLflow was told is not told twice.
    """
    from search_spaces.loading import load_kept_spec
    from tuner.ending.settling import settle
    from tuner.paths import HomePaths
    from tuner.records.archive import import_sweep as read
    from tuner.records.shared_home import SweepTwin, pull_sweeps
    from tuner.tracking.access import without_password
    from tuner.tracking.runs import Tracking

    home = HomePaths.from_env()
    pull_sweeps(home)  # what another machine has there is not to be written over
    taken = read(home, file, name)
    SweepTwin(home, taken).push(at_once=True)
    uri = home.tracking_uri()
    settled = settle(home, load_kept_spec(home.sweep(taken).spec), Tracking.for_sweep(home, taken, uri), _PATIENCE_S)
    typer.echo(f"Sweep {taken} is here: thaw trials {taken}")
    if settled.model is not None:
        typer.echo(f"Its champion:  {settled.model}")
    if settled.untold:
        typer.echo(
            f"MLflow at {without_password(uri)} is away; `thaw resume {taken}` tells it {settled.untold} records later",
            err=True,
        )
    if settled.failure:
        typer.echo(f"MLflow did not take the champion ({settled.failure}); `thaw resume {taken}` tries again", err=True)
