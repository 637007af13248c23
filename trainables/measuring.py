"""How long steps of a network take here, by precision and memory layout; measured once and remembered.

In: a `MeasureJob`. Out: seconds that a picture takes in a training step and in a pass through the frozen part, for each
combination that was asked for. Only times are taken: weights and pictures are random numbers, and what they give is
thrown away. What is chosen by the times is the driver's business.

A processor without units for bf16 may take twenty times as long in it as in float32, minutes for a batch of a large
network. So every combination is looked at with two pictures first, and what is far behind there is left at that; the
others take turns with as large a batch as half a second allows, so that whatever else the machine does meets all alike.

Axes: B pictures, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F

from trainables.backbones.zoo import Backbone, load_backbone
from trainables.classifier import split_network
from trainables.config import ComputeConfig, Precision
from trainables.data.batches import FrozenPrefix, laid_out, memory_format
from trainables.features.machine import describe_machine
from trainables.jobs import MeasureJob, Message, Timing
from trainables.kernels import avoid_slow_kernels
from trainables.ranks import Ranks
from trainables.storage import join, read_bytes, write_bytes

logger = logging.getLogger(__name__)

_Step = Callable[[int], object]
"""Computes with so many pictures."""

_SMALL = 2
"""Pictures of the first look."""
_FEW_LOOKS, _LONG_LOOK_S = 3, 1.0
"""The first look is the best of so many steps, of fewer where these take longer, after one that chooses kernels."""
_VERY_LONG_S = 5.0
"""A step that takes so long when kernels are chosen is not made again: what they cost is little beside it."""
_HOPELESS = 3.0
"""What takes so many times as long as the fastest at the first look is not timed further."""
_LONG_STEP_S = 0.5
"""Batches are as large as this allows the fastest, and no larger than trials have them."""
_FEWEST_ROUNDS, _MOST_ROUNDS, _MOST_S = 3, 10, 6.0
"""No further round begins after so many seconds."""


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
        _remember(memory, job, timings, name)
    return {"kind": "measured", "timings": timings, "is_remembered": is_remembered, "place": name}


def _key(job: MeasureJob, device: torch.device) -> str:
    """Names everything that a time depends on: network, sizes, and what this process computes with."""
    content = job.model_dump(mode="json", exclude={"memory"}) | describe_machine(device).model_dump(mode="json")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _remembered(memory: str, cases: Sequence[_Case]) -> list[float] | None:
    """Seconds of each case; None where it was never measured or the file is damaged: measuring again costs seconds."""
    try:
        known = json.loads(read_bytes(memory))["timings"]
        found = {
            _Case(each["part"], each["precision"], each["channels_last"]): float(each["seconds"]) for each in known
        }
        if not all(0 < seconds < math.inf for seconds in found.values()):
            return None
        return [found[case] for case in cases]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(memory: str, job: MeasureJob, timings: Sequence[Timing], name: str) -> None:
    content = {"backbone": job.backbone, "image_size_px": job.image_size_px, "machine": name, "timings": timings}
    try:
        write_bytes(memory, json.dumps(content, indent=1).encode())
    except OSError as error:
        logger.warning("what was measured cannot be kept at %s: %s", memory, error)


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
    tail = avoid_slow_kernels(split_network(backbone, job.freeze_depth).tail, device, compute.precision)
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
    seconds = [0.0] * len(cases)
    contests: dict[int, tuple[_Step, int]] = {}
    # Dropout and stochastic depth draw from the global generator.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for part, most in (("trained", job.batch_size), ("frozen", job.prefix_batch_size)):
            own = [position for position, case in enumerate(cases) if case.part == part]
            size = min(_SMALL, most)
            for position in own:
                seconds[position] = _first_look(steps[position], size, device) / size
            fastest = min((seconds[position] for position in own), default=0.0)
            hopeful = [position for position in own if seconds[position] < _HOPELESS * fastest]
            if len(hopeful) > 1:
                size = max(size, min(most, _power_of_two_below(_LONG_STEP_S / fastest)))
                contests |= {position: (steps[position], size) for position in hopeful}
        found = _best_of_rounds(contests, device)
    return [_rescaled(position, cases, seconds, found) for position in range(len(cases))]


def _first_look(step: _Step, size: int, device: torch.device) -> float:
    if (taken := _time(step, size, device)) > _VERY_LONG_S:
        return taken
    best, spent = math.inf, 0.0
    for _ in range(_FEW_LOOKS):
        taken = _time(step, size, device)
        best, spent = min(best, taken), spent + taken
        if spent > _LONG_LOOK_S:
            break
    return best


def _best_of_rounds(contests: Mapping[int, tuple[_Step, int]], device: torch.device) -> dict[int, float]:
    """The shortest time per picture of each step, in turns."""
    best = dict.fromkeys(contests, math.inf)
    for step, size in contests.values():
        step(size)  # chooses kernels and takes memory, once
    started = time.perf_counter()
    for number in range(_MOST_ROUNDS):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - started > _MOST_S:
            break
        for position, (step, size) in contests.items():
            best[position] = min(best[position], _time(step, size, device) / size)
    return best


def _rescaled(position: int, cases: Sequence[_Case], looks: Sequence[float], found: Mapping[int, float]) -> float:
    """The time of a case; one that was only looked at is as far behind its part's fastest as it was then."""
    if position in found:
        return found[position]
    own = [other for other, case in enumerate(cases) if case.part == cases[position].part]
    timed = [found[other] for other in own if other in found]
    return looks[position] / min(looks[other] for other in own) * min(timed) if timed else looks[position]


def _time(step: _Step, size: int, device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    step(size)
    _wait_for(device)
    return time.perf_counter() - began


def _power_of_two_below(number: float) -> int:
    return int(2 ** max(0, math.floor(math.log2(number))))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
