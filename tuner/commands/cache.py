"""``thaw cache``: what is kept of frozen layers' work, whether it is whole, and how it is made smaller."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainables.errors import InputError

if TYPE_CHECKING:
    from trainables.features.inventory import PruneReport
    from trainables.features.store import FeatureStore

cache_app = typer.Typer(help="Features of frozen layers that sweeps have stored on this machine.", no_args_is_help=True)
_GB = 1e9
Directory = Annotated[
    Path | None, typer.Option(file_okay=False, exists=True, help="`cache.directory` of a spec; by default Thaw's own.")
]


@cache_app.command()
def status(directory: Directory = None) -> None:
    """Lists what is held per backbone, cut and augmentation policy."""
    from rich.console import Console

    from tuner.report.output import build_table

    store = _store(directory)
    holdings = store.status()
    rows = [
        [
            holding.backbone,
            holding.depth,
            holding.cut,
            holding.policy,
            holding.num_complete,
            holding.num_rows,
            holding.num_bytes / _GB,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(holding.last_used)),
        ]
        for holding in holdings
    ]
    columns = ["backbone", "depth", "cut", "augmentation", "entries", "pictures", "GB", "last used"]
    Console().print(build_table(columns, rows, title=f"Features in {store.directory}"))
    typer.echo(
        f"{sum(holding.num_bytes for holding in holdings) / _GB:.3f} GB of at most {store.budget_bytes / _GB:g} GB"
    )


@cache_app.command()
def verify(directory: Directory = None) -> None:
    """Reads everything and compares checksums; what is damaged is removed and will be computed anew."""
    report = _store(directory).verify()
    for line in report.damaged:
        typer.echo(line, err=True)
    typer.echo(f"{report.num_entries} entries, {report.num_bytes / _GB:.3f} GB: {len(report.damaged)} damaged")
    if report.damaged:
        raise typer.Exit(1)


@cache_app.command()
def prune(
    budget_gb: Annotated[
        float | None, typer.Option(help="What may stay, at least 0; by default the usual budget.")
    ] = None,
    directory: Directory = None,
) -> None:
    """Removes the least recently used until the budget is kept; nothing that a running trial reads."""
    from search_spaces.ranges import MOST_GB

    if budget_gb is not None and not 0 <= budget_gb <= MOST_GB:
        raise InputError(f"--budget-gb: {budget_gb} is no size of a disk; give a number from 0 to {MOST_GB:,}")
    _say(_store(directory).prune(None if budget_gb is None else round(budget_gb * _GB)))


@cache_app.command()
def clear(directory: Directory = None) -> None:
    """Removes everything that no running trial reads."""
    _say(_store(directory).clear())


def _store(given: Path | None) -> FeatureStore:
    from search_spaces.spec import CacheSpec
    from trainables.features.store import FeatureStore
    from trainables.files.node_cache import features_root
    from tuner.paths import HomePaths

    directory = features_root(given or HomePaths.from_env().features)
    return FeatureStore(directory, round(CacheSpec().budget_gb * _GB))


def _say(report: PruneReport) -> None:
    kept = f"{report.kept_bytes / _GB:.3f} GB stay"
    in_use = f", {report.num_in_use} entries are in use" if report.num_in_use else ""
    typer.echo(f"{report.num_removed} entries removed, {report.freed_bytes / _GB:.3f} GB freed; {kept}{in_use}")
