"""How long steps of a network take here, by precision and memory layout; measured once and remembered.

In: a `MeasureJob`. Out: seconds of a training step and of a pass through the frozen part, for each combination that was
asked for. Only times are taken: weights and pictures are random numbers, and what they give is thrown away. What is
chosen by the times is the driver's business.

Axes: B pictures, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
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

_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 6
_MOST_S = 8.0
"""No further round begins after so many seconds; slow networks differ by more than what one step tells wrongly."""


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
        seconds = _best_of_rounds(_steps(job, cases, device, beat), device)
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


def _steps(
    job: MeasureJob, cases: Sequence[_Case], device: torch.device, beat: Callable[[], object]
) -> list[Callable[[], object]]:
    backbone = load_backbone(job.backbone, None, num_classes=job.num_classes, input_size_px=job.image_size_px, seed=0)
    steps: list[Callable[[], object]] = []
    for case in cases:
        make = _training_step if case.part == "trained" else _frozen_pass
        compute = ComputeConfig(
            precision=case.precision,
            prefix_precision=case.precision,
            channels_last=case.channels_last,
            prefix_batch_size=job.prefix_batch_size,
        )
        steps.append(make(job, backbone, compute, device, beat))
    return steps


def _training_step(
    job: MeasureJob, backbone: Backbone, compute: ComputeConfig, device: torch.device, beat: Callable[[], object]
) -> Callable[[], object]:
    """Forward and backward through what trains; the optimizer's step is the same for every choice."""
    layout = memory_format(compute)
    tail = avoid_slow_kernels(split_network(backbone, job.freeze_depth).tail, device, compute.precision)
    tail = tail.to(device).to(memory_format=layout).train()
    stages = backbone.graph.stages
    shape = stages[job.freeze_depth - 1].output_shape if job.freeze_depth else (3, job.image_size_px, job.image_size_px)
    inputs = laid_out(_random((job.batch_size, *shape), device), layout)
    labels_B = torch.arange(job.batch_size, device=device) % job.num_classes
    is_bf16 = compute.precision == "bf16"

    def step() -> None:
        beat()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
            logits_BK = tail(inputs).float()
        F.cross_entropy(logits_BK, labels_B).backward()
        tail.zero_grad(set_to_none=True)

    return step


def _frozen_pass(
    job: MeasureJob, backbone: Backbone, compute: ComputeConfig, device: torch.device, beat: Callable[[], object]
) -> Callable[[], object]:
    layout = memory_format(compute)
    prefix = FrozenPrefix(backbone.graph.stage_modules(job.deepest, device, layout), compute, beat)
    side = job.image_size_px
    images_BCHW = laid_out(_random((job.prefix_batch_size, 3, side, side), device), layout)
    return lambda: prefix(images_BCHW)


def _random(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _best_of_rounds(steps: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """The shortest time of each step, in turns, so that whatever else the machine does meets all of them."""
    best = [math.inf] * len(steps)
    # Dropout and stochastic depth draw from the global generator.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step in steps:
            step()  # chooses kernels and takes memory, once
        started = time.perf_counter()
        for number in range(_MOST_ROUNDS):
            if number >= _FEWEST_ROUNDS and time.perf_counter() - started > _MOST_S:
                break
            for position, step in enumerate(steps):
                _wait_for(device)
                began = time.perf_counter()
                step()
                _wait_for(device)
                best[position] = min(best[position], time.perf_counter() - began)
    return best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
