"""How long a network takes for a single picture on this machine: what `model.max_latency_ms` bounds.

In: a network's name and a size. Out: milliseconds, of the whole network in float32 on one core: several threads wait
for each other at every layer, and on a machine that does other work too that may take a hundred times as long. Weights
and the picture are random numbers: they change no time. Remembered by network, size and machine, so that the next sweep
chooses the same networks.
"""

from __future__ import annotations

import hashlib
import json
import math
import time

import torch

from trainables.backbones.zoo import load_backbone
from trainables.features.machine import describe_machine
from trainables.files.remembering import recall, remember
from trainables.files.storage import join
from trainables.training.threads import one_thread
from trainables.training.trained_part import split_network

_FEWEST_PASSES, _LOOKED_AT_S = 5, 1.5
"""The shortest of these counts: a machine that does other work too, as while lanes start, leaves a moment free."""


def latency_ms(network: str, image_size_px: int, memory: str) -> float:
    """Milliseconds for one picture, or what is remembered of them.

    Args:
        network: Torchvision's name of it.
        image_size_px: Side of the picture.
        memory: Folder or URI under which times are remembered.

    Raises:
        InputError: The network takes no picture of this size.
    """
    place = join(memory, f"latency-{_key(network, image_size_px)}.json")
    known = (recall(place) or {}).get("ms")
    if isinstance(known, float) and 0 < known < math.inf:
        return known
    taken = _measure(network, image_size_px)
    remember(place, {"network": network, "image_size_px": image_size_px, "ms": taken})
    return taken


def _measure(network: str, image_size_px: int) -> float:
    backbone = load_backbone(network, None, num_classes=2, input_size_px=image_size_px, seed=0)
    whole = split_network(backbone, 0).tail.eval()
    image_BCHW = torch.randn((1, 3, image_size_px, image_size_px), generator=torch.Generator().manual_seed(0))
    shortest, num_passes, started = math.inf, 0, time.perf_counter()
    with torch.inference_mode(), one_thread():
        whole(image_BCHW)  # chooses kernels and takes memory, once
        while num_passes < _FEWEST_PASSES or time.perf_counter() - started < _LOOKED_AT_S:
            began = time.perf_counter()
            whole(image_BCHW)
            shortest, num_passes = min(shortest, time.perf_counter() - began), num_passes + 1
    return 1000 * shortest


def _key(network: str, image_size_px: int) -> str:
    machine = describe_machine(torch.device("cpu")).model_dump(mode="json", exclude={"threads"})
    content = {"network": network, "image_size_px": image_size_px, "machine": machine}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
