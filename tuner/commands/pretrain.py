"""``thaw pretrain``: a backbone of one's own, for sweeps to start from."""

from __future__ import annotations

from typing import Annotated

import typer

from tuner.commands import completing
from tuner.commands.arguments import Overrides


def pretrain(
    spec: Annotated[
        str,
        typer.Argument(
            help="A spec file (YAML), or the name of a preset such as 'digits'.", autocompletion=completing.specs
        ),
    ],
    overrides: Overrides = None,
) -> None:
    """Trains a backbone on a source data set and registers it, for sweeps to start from."""
    from search_spaces.loading import load_pretrain_spec
    from tuner.networks.pretrain_run import run_pretrain
    from tuner.progress import Progress

    with Progress() as progress:
        outcome = run_pretrain(load_pretrain_spec(spec, overrides or []), progress=progress)
    known = "" if outcome.is_new else " (trained before by the same recipe; nothing to do)"
    typer.echo(f"{outcome.model_uri}: validation accuracy {outcome.accuracy:.4f}{known}")
    typer.echo(f"Use it in a spec:  model.weights: {outcome.model_uri}")
