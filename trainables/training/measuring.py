"""How long steps of a network take here, by precision and memory layout; measured once and remembered.

In: a `MeasureJob`. Out: seconds that a picture takes in a training step and in a pass through the frozen part, for each
combination that was asked for. Only times are taken: weights and pictures are random numbers, and what they give is
thrown away. What is chosen by the times is the driver's business.

A processor without units for bf16 may take twenty times as long in it as in float32, minutes for a batch of a large
network. So a single convolution is timed first; where bf16 is far behind, nothing more is computed in it. Then every
combination is looked at with two pictures, and what is far behind there is left at that; the others go on with as
large a batch as half a second allows.

Axes: B pictures, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F

from trainables.backbones.zoo import Backbone, load_backbone
from trainables.config import ComputeConfig, Precision
from trainables.features.machine import describe_machine
from trainables.files.remembering import recall, remember
from trainables.files.storage import join
from trainables.frozen_prefix import FrozenPrefix, laid_out, memory_format
from trainables.jobs import MeasureJob, Message, Timing
from trainables.ranks import Ranks
from trainables.training.kernels import choose_kernels
from trainables.training.stopwatch import HOPELESS, best_of_rounds, first_look
from trainables.training.trained_part import split_network

_Step = Callable[[int], object]
"""Computes with so many pictures."""

_SMALL = 2
"""Pictures of the first look."""
_LONG_STEP_S = 0.5
"""Batches are as large as this allows the fastest, and no larger than trials have them."""


class _Case(NamedTuple):
    part: Literal["trained", "frozen"]
    precision: Precision
    channels_last: bool


def run_measure(job: MeasureJob, ranks: Ranks, beat: Callable[[], object] = lambda: None) -> Message:
    """Takes the times that ``job`` asks for, or finds them where they were written.

    With several ranks the first works alone; only its answer counts.
    """
    if not ranks.is_first:
        return {"kind": "measured"}
    device = ranks.device
    name = "this CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    memory = join(job.memory, f"{_key(job, device)}.json")
    cases = _cases(job)
    seconds = _remembered(memory, cases)
    is_remembered = seconds is not None
    if seconds is None:
        seconds = _take_times(job, cases, _steps(job, cases, device, beat), device)
    timings: list[Timing] = [
        {**case._asdict(), "seconds": taken}  # type: ignore[typeddict-item]
        for case, taken in zip(cases, seconds, strict=True)
    ]
    if not is_remembered:
        facts = {"backbone": job.backbone, "image_size_px": job.image_size_px, "machine": name}
        remember(memory, {**facts, "timings": timings})
    return {"kind": "measured", "timings": timings, "is_remembered": is_remembered, "place": name}


def _key(job: MeasureJob, device: torch.device) -> str:
    """Names everything that a time depends on: network, sizes, and what this process computes with."""
    content = job.model_dump(mode="json", exclude={"memory"}) | describe_machine(device).model_dump(mode="json")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _remembered(memory: str, cases: Sequence[_Case]) -> list[float] | None:
    """Seconds of each case; None where it was never measured or the file is damaged: measuring again costs seconds."""
    try:
        known = (recall(memory) or {})["timings"]
        found = {
            _Case(each["part"], each["precision"], each["channels_last"]): float(each["seconds"]) for each in known
        }
        if not all(0 < seconds < math.inf for seconds in found.values()):
            return None
        return [found[case] for case in cases]
    except (ValueError, KeyError, TypeError):
        return None


def _cases(job: MeasureJob) -> list[_Case]:
    """Every combination that is asked for."""
    cases: list[_Case] = []
    for channels_last in job.layouts:
        cases += [_Case("trained", precision, channels_last) for precision in job.precisions]
        cases += [_Case("frozen", precision, channels_last) for precision in job.prefix_precisions]
    return cases


def _steps(job: MeasureJob, cases: Sequence[_Case], device: torch.device, beat: Callable[[], object]) -> list[_Step]:
    backbone = load_backbone(job.backbone, None, num_classes=job.num_classes, input_size_px=job.image_size_px, seed=0)
    steps: list[_Step] = []
    for case in cases:
        make = _training_step if case.part == "trained" else _frozen_pass
        compute = ComputeConfig(
            precision=case.precision, prefix_precision=case.precision, channels_last=case.channels_last
        )
        steps.append(make(job, backbone, compute, device, beat))
    return steps


def _training_step(
    job: MeasureJob, backbone: Backbone, compute: ComputeConfig, device: torch.device, beat: Callable[[], object]
) -> _Step:
    """Forward and backward through what trains; the optimizer's step is the same for every choice."""
    layout = memory_format(compute)
    tail = choose_kernels(split_network(backbone, job.freeze_depth).tail, device, compute.precision)
    tail = tail.to(device).to(memory_format=layout).train()
    stages = backbone.graph.stages
    shape = stages[job.freeze_depth - 1].output_shape if job.freeze_depth else (3, job.image_size_px, job.image_size_px)
    inputs = laid_out(_random((job.batch_size, *shape), device), layout)
    labels_B = torch.arange(job.batch_size, device=device) % job.num_classes
    is_bf16 = compute.precision == "bf16"

    def step(num_pictures: int) -> None:
        beat()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
            logits_BK = tail(inputs[:num_pictures]).float()
        F.cross_entropy(logits_BK, labels_B[:num_pictures]).backward()
        tail.zero_grad(set_to_none=True)

    return step


def _frozen_pass(
    job: MeasureJob, backbone: Backbone, compute: ComputeConfig, device: torch.device, beat: Callable[[], object]
) -> _Step:
    layout = memory_format(compute)
    stages = backbone.graph.stage_modules(job.deepest, device, layout)
    side = job.image_size_px
    images_BCHW = laid_out(_random((job.prefix_batch_size, 3, side, side), device), layout)

    def step(num_pictures: int) -> None:
        of_this_size = compute.model_copy(update={"prefix_batch_size": num_pictures})  # nothing is padded
        FrozenPrefix(stages, of_this_size, beat)(images_BCHW[:num_pictures])

    return step


def _random(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _take_times(job: MeasureJob, cases: Sequence[_Case], steps: Sequence[_Step], device: torch.device) -> list[float]:
    """Seconds for one picture of each case."""
    seconds: dict[int, float] = {}
    sizes: dict[int, int] = {}
    left_out = _left_out(cases, device)
    # Dropout and stochastic depth draw from the global generator.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for part, most in (("trained", job.batch_size), ("frozen", job.prefix_batch_size)):
            own = [at for at, case in enumerate(cases) if case.part == part and at not in left_out]
            size = min(_SMALL, most)
            looks = first_look({at: partial(steps[at], size) for at in own}, device)
            seconds |= {at: taken / size for at, taken in looks.items()}
            fastest = min((seconds[at] for at in own), default=0.0)
            # The first is the default: that something else is faster is for the contest to show.
            hopeful = [at for at in own if at == own[0] or seconds[at] < HOPELESS * fastest]
            if len(hopeful) > 1:
                size = max(size, min(most, _power_of_two_below(_LONG_STEP_S / fastest)))
                sizes |= dict.fromkeys(hopeful, size)
        times = best_of_rounds({at: partial(steps[at], size) for at, size in sizes.items()}, device)
    timed = {at: taken / sizes[at] for at, taken in times.items()}
    found = {at: _rescaled(at, cases, seconds, timed) for at in seconds}
    found |= {at: found[other] * ratio for at, (other, ratio) in left_out.items()}
    return [found[at] for at in range(len(cases))]


def _left_out(cases: Sequence[_Case], device: torch.device) -> dict[int, tuple[int, float]]:
    """Cases in bf16 where a single convolution has no kernels for it: the same in float32, and how far behind they are.

    Even a look at a whole network would take a minute there, if it is a large one.
    """
    places = {case: at for at, case in enumerate(cases)}
    pairs = {
        at: places[in_float32]
        for case, at in places.items()
        if case.precision == "bf16" and (in_float32 := case._replace(precision="fp32")) in places
    }
    if not pairs:
        return {}
    seconds = _times_of_a_convolution(device)
    ratio = seconds["bf16"] / seconds["fp32"]
    return {at: (other, ratio) for at, other in pairs.items()} if ratio >= HOPELESS else {}


@torch.no_grad()
def _times_of_a_convolution(device: torch.device) -> dict[Precision, float]:
    images_BCHW, weights = _random((8, 64, 28, 28), device), _random((64, 64, 3, 3), device)

    def convolve(is_bf16: bool) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
            F.conv2d(images_BCHW, weights, padding=1)

    looks = first_look({0: partial(convolve, False), 1: partial(convolve, True)}, device)
    return {"fp32": looks[0], "bf16": looks[1]}


def _rescaled(at: int, cases: Sequence[_Case], looks: Mapping[int, float], timed: Mapping[int, float]) -> float:
    """The time of a case; one that was only looked at is as far behind its part's fastest as it was then."""
    own = [other for other in looks if cases[other].part == cases[at].part]
    if at in timed or not timed.keys() & set(own):
        return timed.get(at, looks[at])
    return looks[at] / min(looks[other] for other in own) * min(timed[other] for other in own if other in timed)


def _power_of_two_below(number: float) -> int:
    return int(2 ** max(0, math.floor(math.log2(number))))
