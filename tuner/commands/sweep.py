"""``thaw sweep`` and ``thaw resume``: a search from pictures to a registered model, and going on with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tuner.commands import completing
from tuner.commands.arguments import Overrides, SpecOrSource, TakesNextName

if TYPE_CHECKING:
    from search_spaces.spec import SweepSpec


def sweep(
    spec: SpecOrSource,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, train nothing.")] = False,
    new: TakesNextName = False,
) -> None:
    """Searches, trains, tests and registers the best classifier for a folder of pictures."""
    from tuner.commands.given import load_or_fit

    loaded = load_or_fit(spec, overrides or [])
    if dry_run:
        _show_plan(loaded)
        return
    from tuner.commands.running import run_and_show

    run_and_show(loaded, new=new)


def resume(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a sweep that was interrupted, or is to have more trials.", autocompletion=completing.sweeps
        ),
    ],
    overrides: Overrides = None,
) -> None:
    """Goes on with a sweep that was interrupted, or makes a finished one longer (--set search.num_trials=40)."""
    from tuner.commands.running import output_console
    from tuner.progress import Progress
    from tuner.report.output import show_result
    from tuner.sweep import resume_sweep

    with Progress() as progress:
        result = resume_sweep(name, overrides=overrides or [], progress=progress)
    if result is None:
        typer.echo(f"Sweep {name} is finished; `thaw trials {name}` shows it.")
        typer.echo(f"For more trials:  thaw resume {name} --set search.num_trials=NUMBER")
        return
    show_result(result, output_console())


def _show_plan(spec: SweepSpec) -> None:
    from search_spaces.listing import trials_in_all
    from search_spaces.loading import dump_spec
    from tuner.commands.running import output_console
    from tuner.networks.material import materials_of
    from tuner.networks.planning import plan_sweep
    from tuner.networks.preparing import check_quickly
    from tuner.networks.pricing import Pricing
    from tuner.paths import HomePaths
    from tuner.pictures.facts import has_gpu
    from tuner.progress import Progress
    from tuner.report.output import show_plan

    home = HomePaths.from_env()
    check_quickly(spec, home)
    with Progress() as progress:
        spec, data, networks, space = plan_sweep(spec, home, progress, pretrains=False)
    cuts = {name: network.cuts for name, network in networks.items()}
    # What is measured is not known before lanes are up; features of the default precision are the larger ones.
    materials = materials_of(spec, networks, data)
    on_gpu = spec.budget.device == "cuda" or (spec.budget.device == "auto" and has_gpu())
    device: Literal["cpu", "cuda"] = "cuda" if on_gpu else "cpu"
    pricing = Pricing(spec, space, materials, device)
    show_plan(data, cuts, dump_spec(spec), pricing, output_console())
    num_trials = trials_in_all(spec, space)
    output_console().print(f"Trials: {'as many as the budget allows' if num_trials is None else num_trials}.")
