"""``compute: auto``: precision and memory layout by what is fastest where the trials will run.

In: a spec that leaves choices open. Out: the same spec with these fixed, so that every trial, and whoever goes on with
the sweep, has the same ones. A lane takes the times (`trainables.training.measuring`); here is what to ask it, and the
rule: the defaults stay unless another choice is at least `LEAST_GAIN` times as fast. The layout is chosen first, by
both parts together, each in its own best precision there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.compute_spec import ComputeSpec
from search_spaces.model_spec import PretrainWeights
from search_spaces.naming import network_of
from search_spaces.ranges import Range, listed
from search_spaces.search_spec import SearchSpec
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import ComputeConfig, Precision
from trainables.jobs import MeasureJob, Timing
from tuner.cluster.lanes import LaneError

if TYPE_CHECKING:
    from tuner.cluster.lanes import LanePool
    from tuner.networks.network import Network
    from tuner.paths import HomePaths
    from tuner.progress import Progress

LEAST_GAIN = 1.1
_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def settle_compute(
    spec: SweepSpec,
    space: SearchSpace,
    networks: Mapping[str, Network],
    pool: LanePool,
    home: HomePaths,
    progress: Progress,
) -> SweepSpec:
    """The spec with its choices of speed fixed; one in which none is open as it is.

    Args:
        spec: Whose backbones are named.
        space: Tells between which depths trials lie.
        networks: By name.
        pool: The lanes that will train.
        home: Where times are remembered.
        progress: Told each choice with its reason.
    """
    chosen: dict[str, ComputeConfig] = {}
    for name, network in networks.items():
        compute = spec.compute_of(name)
        if not compute.is_open:
            continue
        progress.phase(f"measuring steps of {name}")
        folder = home.uri_of(home.measured)
        num_classes = network.cuts.head.num_classes
        job = measure_job(spec, compute, space.alone(name), num_classes, network.image_size_px, folder)
        chosen[name], lines = _measured(job, compute, name, pool)
        for line in lines:
            progress.note(line)
    return pinned(spec, chosen)


def measure_job(
    spec: SweepSpec, compute: ComputeSpec, space: SearchSpace, num_classes: int, image_size_px: int, folder: str
) -> MeasureJob:
    """What to time for one network: only what is open, and what the choice of a layout depends on."""
    shallowest, deepest = space.depths[0], space.depths[-1]
    is_layout_open = compute.channels_last == "auto"
    # A trained part that is the head alone takes no time to speak of; nor does a frozen one that there is not.
    is_trained = shallowest < space.num_stages and (is_layout_open or compute.precision == "auto")
    is_frozen = deepest > 0 and (is_layout_open or compute.prefix_precision == "auto")
    searched = spec.search.precision
    trained = listed(searched) if searched is not None else _open_values(compute.precision)
    return MeasureJob(
        backbone=network_of(space.backbones[0]),
        num_classes=max(2, num_classes),
        image_size_px=image_size_px,
        freeze_depth=shallowest,
        deepest=deepest,
        batch_size=batch_class(spec.search, spec.budget.workers_per_trial),
        prefix_batch_size=compute.prefix_batch_size,
        precisions=trained if is_trained else (),
        prefix_precisions=_open_values(compute.prefix_precision) if is_frozen else (),
        layouts=(True, False) if compute.channels_last == "auto" else (compute.channels_last,),
        memory=folder,
    )


def batch_class(search: SearchSpec, num_workers: int) -> int:
    """A worker's share of a middling batch, as the nearest power of two: sizes nearby are timed alike."""
    sizes = search.batch_size
    ends = (sizes.low, sizes.high) if isinstance(sizes, Range) else (min(listed(sizes)), max(listed(sizes)))
    return int(max(2, 2 ** round(math.log2(math.sqrt(ends[0] * ends[1]) / num_workers))))


def choose(compute: ComputeSpec, timings: Sequence[Timing]) -> ComputeConfig:
    """What is fastest, the defaults staying where nothing else is much faster; what was not timed keeps its default."""
    layouts = sorted({timing["channels_last"] for timing in timings}, reverse=True)
    totals = {layout: sum(min(times.values()) for times in _by_part(timings, layout).values()) for layout in layouts}
    layout = layouts[0] if layouts else True
    if len(layouts) > 1 and totals[True] >= LEAST_GAIN * totals[False]:
        layout = False
    best = {part: _faster(times) for part, times in _by_part(timings, layout).items()}
    found = ComputeConfig(
        precision=best.get("trained", "fp32"), prefix_precision=best.get("frozen", "fp32"), channels_last=layout
    )
    return compute.without_auto(found)


def reasons(name: str, compute: ComputeSpec, chosen: ComputeConfig, timings: Sequence[Timing], place: str) -> list[str]:
    """The choices in words, with the figures that they rest on."""
    lines = []
    parts = _by_part(timings, chosen.channels_last)
    for field, part, what in (
        ("precision", "trained", "training steps"),
        ("prefix_precision", "frozen", "the frozen part"),
    ):
        if getattr(compute, field) != "auto":
            continue
        times = parts.get(part, {})
        if len(times) < len(_PRECISIONS):
            lines.append(f"{field}: {name}: fp32, there is nothing to gain")
            continue
        taken = getattr(chosen, field)
        lines.append(f"{field}: {name}: {_compared(times)} in {what} on {place}: {taken} chosen")
    if compute.channels_last == "auto" and timings:
        totals = {
            f"channels {word}": sum(min(times.values()) for times in _by_part(timings, is_last).values())
            for word, is_last in (("last", True), ("first", False))
        }
        lines.append(f"channels_last: {name}: {_compared(totals)}: {str(chosen.channels_last).lower()} chosen")
    return lines


def pinned(spec: SweepSpec, chosen: Mapping[str, ComputeConfig]) -> SweepSpec:
    """The spec with what was chosen for each network written where it belongs."""
    if not chosen:
        return spec
    named = spec.model.named
    weights = {name: _with_its_compute(spec, name, choice.weights) for name, choice in named.items()}
    fixed = {name: ComputeSpec.model_validate(compute.model_dump()) for name, compute in chosen.items()}
    if spec.model.backbone is not None:
        model = spec.model.model_copy(update={"weights": weights[spec.model.backbone]})
        return spec.model_copy(update={"compute": fixed[spec.model.backbone], "model": model})
    choices = tuple(
        choice.model_copy(update={"compute": fixed.get(name, choice.compute), "weights": weights[name]})
        for name, choice in named.items()
    )
    return spec.model_copy(update={"model": spec.model.model_copy(update={"backbones": choices})})


def _with_its_compute(spec: SweepSpec, name: str, weights: str | PretrainWeights) -> str | PretrainWeights:
    """A network's weights; a recipe for them says what it computes with, not what is measured for the sweep."""
    if isinstance(weights, str):
        return weights
    recipe = weights.pretrain.model_copy(update={"compute": spec.recipe_compute(name, weights.pretrain)})
    return PretrainWeights(pretrain=recipe)


def _measured(job: MeasureJob, compute: ComputeSpec, name: str, pool: LanePool) -> tuple[ComputeConfig, list[str]]:
    timings: list[Timing] = []
    place, remark = "", ""
    if job.precisions or job.prefix_precisions:
        try:
            (message,) = pool.run(job)
        except LaneError as error:
            return compute.without_auto(), [f"compute: {name}: not measured ({error}): the defaults are taken"]
        timings, place = message["timings"], message["place"]
        remark = " (measured before)" if message["is_remembered"] else ""
    chosen = choose(compute, timings)
    return chosen, [line + remark for line in reasons(name, compute, chosen, timings, place)]


def _by_part(timings: Sequence[Timing], channels_last: bool) -> dict[str, dict[Precision, float]]:
    """Seconds by precision for each part, in one layout."""
    parts: dict[str, dict[Precision, float]] = {}
    for timing in timings:
        if timing["channels_last"] == channels_last:
            parts.setdefault(timing["part"], {})[timing["precision"]] = timing["seconds"]
    return parts


def _compared(times: Mapping[Any, float]) -> str:
    slow, fast = sorted(times, key=times.__getitem__, reverse=True)
    return f"{fast} is {times[slow] / times[fast]:.2f} times as fast as {slow}"


def _faster(times: Mapping[Precision, float]) -> Precision:
    if "fp32" not in times:
        return "bf16"
    return "bf16" if "bf16" in times and times["fp32"] >= LEAST_GAIN * times["bf16"] else "fp32"


def _open_values(value: str) -> tuple[Precision, ...]:
    return tuple(precision for precision in _PRECISIONS if value in ("auto", precision))
