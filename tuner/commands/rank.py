"""``thaw rank``: which backbone's frozen features tell these pictures apart best, before any training."""

from __future__ import annotations

from typing import Annotated

import typer

from trainables.errors import InputError
from tuner.commands.arguments import FormatName, ImageSize, Source


def rank(
    data: Source,
    backbones: Annotated[str, typer.Option(help="Names, with commas between them: resnet18,mobilenet_v2")],
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WEIGHTS", help="A file, models:/... or 'none'; by default torchvision's download."),
    ] = None,
    image_size: ImageSize = 224,
    precision: Annotated[
        str,
        typer.Option(help="fp32 or bf16; as compute.prefix_precision of a sweep that is to read the features."),
    ] = "fp32",
    format_: FormatName = "table",
) -> None:
    """Ranks backbones by what a linear probe and LogME say of their frozen features; trains nothing."""
    from rich.console import Console

    from search_spaces.data_spec import DataSpec
    from trainables.config import ComputeConfig
    from trainables.data.sources import as_source
    from tuner.commands.running import output_console
    from tuner.networks.ranking import rank_backbones, read_weights
    from tuner.paths import HomePaths
    from tuner.progress import Progress
    from tuner.report.output import build_table, named_format, write_rows

    form = named_format(format_)
    if precision not in ("fp32", "bf16"):
        raise InputError(f"--precision: {precision!r} is neither fp32 nor bf16")
    wanted = read_weights(backbones.split(","), weights or [])
    home = HomePaths.from_env()
    with Progress() as progress:
        rankings = rank_backbones(
            DataSpec(source=as_source(data), image_size_px=image_size),
            wanted,
            home,
            tracking_uri=home.tracking_uri(),
            compute=ComputeConfig(prefix_precision=precision),
            counted=progress.counted,
        )
    console = Console()
    rows = [ranking.row() for ranking in rankings]
    if format_ == "table":
        columns = ["backbone", "LogME", "probe accuracy", "validation alone", "at depth", "stage", "seconds"]
        shown = [
            [
                row["backbone"],
                row["log_me"],
                _percent(row["accuracy"]),
                _percent(row["val_accuracy"]),
                row["depth"] and f"{row['depth']} of {row['num_stages']}",
                row["stage"],
                row["seconds"],
            ]
            for row in rows
        ]
        console.print(build_table(columns, shown, title="Frozen backbones, the best first"))
    else:
        write_rows(rows, form, output_console())
    for row in rows:
        if row["problem"]:
            typer.echo(f"not ranked: {row['backbone']}: {row['problem']}", err=True)
    if all(row["problem"] for row in rows):
        raise typer.Exit(2)


def _percent(share: object) -> str | None:
    return f"{100 * share:.1f}%" if isinstance(share, float) else None
