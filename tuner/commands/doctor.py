"""``thaw doctor``: what may keep sweeps from running, and what was left behind, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.commands import completing

if TYPE_CHECKING:
    from tuner.doctor.installation import Finding
    from tuner.paths import HomePaths

_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}


def doctor(
    name: Annotated[str | None, typer.Argument(help="A sweep to look into.", autocompletion=completing.sweeps)] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Remove what was left behind and can be made again.")] = False,
) -> None:
    """Checks the installation, Ray, MLflow, disks, devices, weights, and what sweeps left behind."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True)
    num_errors = 0
    for finding in _look(name):
        level = finding.level
        line = f"{_MARKS[level]}  [bold]{finding.area}[/]: {escape(finding.text)}"
        if finding.fix is not None and fix:
            line += f" -> {escape(finding.fix())}"
            level = "ok"
        elif finding.remedy:
            by_fix = " (--fix does it)" if finding.fix is not None else ""
            line += f"\n    [dim]{escape(finding.remedy)}{by_fix}[/]"
        num_errors += level == "error"
        console.print(line)
    if num_errors:
        raise typer.Exit(1)


def _look(name: str | None) -> Iterator[Finding]:
    """Each finding as it is made; the slow ones last."""
    from tuner.doctor.homes import check_leftovers, check_sweep, check_sweeps, check_weights
    from tuner.doctor.installation import check_devices, check_disk, check_installation, check_mlflow, check_ray
    from tuner.doctor.leaks import check_placement_groups
    from tuner.paths import HomePaths
    from tuner.records.shared_home import pull_sweeps

    home = HomePaths.from_env()
    tracking_uri = home.tracking_uri()
    if name is not None:
        pull_sweeps(home)
        tracking_uri = home.tracking_uri(_own_tracking(home, name))
        yield from check_sweep(home, name, tracking_uri)
    yield from check_installation()
    yield from check_ray()
    yield from check_placement_groups()
    yield from check_mlflow(tracking_uri)
    yield from check_disk(home)
    yield from check_leftovers(home)
    yield from check_sweeps(home)
    yield from check_devices()
    yield from check_weights(home)


def _own_tracking(home: HomePaths, name: str) -> str | None:
    """Where the sweep's spec sends its records, if it says so."""
    from search_spaces.loading import load_spec

    spec = home.sweep(name).spec
    return load_spec(spec).tracking.uri if spec.is_file() else None
