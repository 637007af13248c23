"""``thaw export-sweep`` and ``thaw import-sweep``: a sweep in one file, to another machine or for years to come."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuner.paths import HomePaths
    from tuner.tracking import Tracking

_PATIENCE_S = 120.0


def export_sweep(
    name: Annotated[str, typer.Argument(help="Name of a sweep.")],
    file: Annotated[Path, typer.Argument(help="The file to write (zip: Parquet, JSON and the champion's model).")],
) -> None:
    """Writes everything about a sweep into one file."""
    from tuner.archive import export_sweep as write
    from tuner.paths import HomePaths
    from tuner.shared_home import pull_sweeps

    home = HomePaths.from_env()
    pull_sweeps(home)
    size = write(home, name, file)
    typer.echo(f"{file}: sweep {name}, {size / 1e6:.1f} MB")


def import_sweep(
    file: Annotated[Path, typer.Argument(help="From `thaw export-sweep`.", exists=True, dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="Another name, where its own is in use.")] = None,
) -> None:
    """Takes a sweep from a file into this home, its runs and its champion into MLflow."""
    from search_spaces.loading import load_spec
    from tuner.archive import import_sweep as read
    from tuner.paths import HomePaths
    from tuner.tracking import Tracking

    home = HomePaths.from_env()
    taken = read(home, file, name)
    spec = load_spec(home.sweep(taken).spec)
    uri = home.tracking_uri()  # not the spec's own: that one is of the machine it comes from
    tracking = Tracking.for_sweep(home, taken, uri)
    tracking.start()
    untold = tracking.flush(_PATIENCE_S)
    model = None if untold else _register(home, taken, spec.tracking.model_name or taken, tracking)
    tracking.close(0)
    typer.echo(f"Sweep {taken} is here: thaw trials {taken}")
    if model is not None:
        typer.echo(f"Its champion:  {model}")
    if untold:
        typer.echo(f"MLflow at {uri} is away; `thaw resume {taken}` tells it {untold} records later", err=True)


def _register(home: HomePaths, name: str, model_name: str, tracking: Tracking) -> str | None:
    """Registers the champion's model; champion here only where there is none. None without a model."""
    from tuner.journal import champion_record, read_records
    from tuner.model_file import load_card
    from tuner.promotion import Score, promote
    from tuner.registry import register_model

    paths = home.sweep(name)
    record = champion_record(read_records(paths.journal))
    run_id = None if record is None else tracking.run_id(record["number"])
    if record is None or run_id is None or not paths.champion.is_dir():
        return None
    card = load_card(paths.champion)
    tags = {"thaw.sweep": name, "thaw.trial": str(record["number"]), "thaw.imported": "yes"}
    version = register_model(
        paths.champion, model_name, tracking.tracking_uri, run_id=run_id, time_s=time.time(), tags=tags
    )
    score = Score(record["metrics"].get("test/accuracy"), card.test_digest, card.class_names)
    decision = promote(version, score, tracking.tracking_uri, _cannot_evaluate)
    return f"{version.uri}, {decision.alias} ({decision.reason})"


def _cannot_evaluate(uri: str) -> float:
    raise ValueError(f"the pictures to compare {uri} on are on another machine")
