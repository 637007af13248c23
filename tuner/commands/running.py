"""What commands share: a sweep under a live display, its result on standard output, a sweep that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from search_spaces.spec import SweepSpec
    from tuner.paths import HomePaths


def run_and_show(spec: SweepSpec, *, new: bool) -> None:
    """Runs a sweep and shows what it found.

    Args:
        spec: The sweep.
        new: Whether the next free name is taken where the spec's is in use.
    """
    from tuner.paths import HomePaths
    from tuner.progress import Progress
    from tuner.records.sweep_names import free_name
    from tuner.report.output import show_result
    from tuner.sweep import run_sweep

    home = HomePaths.from_env()
    if new and (name := free_name(spec.name, home)) != spec.name:
        # The model keeps the spec's own name, so that this sweep's champion meets the last one's.
        tracking = spec.tracking.model_copy(update={"model_name": spec.tracking.model_name or spec.name})
        spec = spec.model_copy(update={"name": name, "tracking": tracking})
    with Progress() as progress:
        result = run_sweep(spec, home=home, progress=progress)
    show_result(result, output_console())


def output_console() -> Console:
    """Standard output; a file or a pipe gets whole lines, however long."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=10_000)


def open_sweep(name: str, asker: str) -> tuple[HomePaths, SweepSpec]:
    """The home, with what other machines wrote to it, and the spec of one of its sweeps.

    Raises:
        InputError: There is no such sweep; the message begins with who asks.
    """
    from search_spaces.loading import load_kept_spec
    from tuner.paths import HomePaths
    from tuner.records.shared_home import pull_sweeps

    home = HomePaths.from_env()
    pull_sweeps(home, name)
    return home, load_kept_spec(home.known_sweep(name, asker).spec)
