"""``thaw backbones``: the networks that a spec may name, and what each costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trainables.errors import InputError
from tuner.commands.arguments import FormatName

_SORTS = ("name", "parameters", "gflops", "top1")


def backbones(
    names: Annotated[list[str] | None, typer.Argument(help="Only these, with the FLOPs at --image-size.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="Side that the network sees, in pixels: 224; with names.")
    ] = None,
    sort: Annotated[str, typer.Option(help="name, parameters, gflops or top1.")] = "name",
    format_: FormatName = "table",
) -> None:
    """Lists the networks that sweeps may use: size, FLOPs, stages, and top-1 on ImageNet as torchvision states it."""
    from tuner.commands.running import output_console
    from tuner.report.output import named_format, write_rows

    wanted = named_format(format_)
    if sort not in _SORTS:
        raise InputError(f"--sort: {sort!r} is none of {', '.join(_SORTS)}")
    if image_size is not None and not names:
        raise InputError("--image-size: FLOPs at a size of one's own take a look at each network; name some")
    from trainables.backbones.families import backbone_names, check_name

    for name in names or ():
        check_name(name)
    rows = [_row(name, (image_size or 224) if names else None) for name in names or backbone_names()]
    rows.sort(key=lambda row: (row[sort] is None, row[sort]))
    write_rows(rows, wanted, output_console())


def _row(name: str, image_size: int | None) -> dict[str, Any]:
    """One network; its FLOPs at a size of one's own take a look at the network itself."""
    from trainables.backbones.families import skeleton

    facts = _stated(name)
    if image_size is None and facts["parameters"] is not None:
        return facts
    from tuner.networks.preparing import build_cuts

    model, _ = skeleton(name)
    facts["parameters"] = facts["parameters"] or round(sum(each.numel() for each in model.parameters()) / 1e6, 3)
    if image_size is not None:
        cuts = build_cuts(name, 1000, image_size)
        facts |= {"gflops": round(sum(stage.flops for stage in cuts.stages) / 1e9, 3), "stages": cuts.num_stages}
        facts["input"] = image_size
    return facts


def _stated(name: str) -> dict[str, Any]:
    """What torchvision says of the weights that 'default' stands for."""
    from trainables.backbones.published import published
    from trainables.backbones.stage_counts import NUM_STAGES

    stated = published(name)
    if stated is None:
        stages = NUM_STAGES.get(name)
        return {"name": name, "parameters": None, "gflops": None, "stages": stages, "input": None, "top1": None}
    return {
        "name": name,
        "parameters": round(stated.num_parameters / 1e6, 3),
        "gflops": round(stated.flops / 1e9, 3),
        "stages": NUM_STAGES.get(name),
        "input": stated.input_px,
        "top1": stated.top1,
    }
