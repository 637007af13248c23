"""How long a network takes for a single picture on this machine: what `model.max_latency_ms` bounds.

In: a network's name and a size. Out: milliseconds, of the whole network in float32 on one core: several threads wait
for each other at every layer, and on a machine that does other work too that may take a hundred times as long. Weights
and the picture are random numbers: they change no time. Remembered by network, size and machine, so that the next sweep
chooses the same networks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from trainables.backbones.zoo import load_backbone
from trainables.classifier import split_network
from trainables.features.machine import describe_machine
from trainables.stopwatch import best_of_rounds
from trainables.storage import write_bytes

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")


def latency_ms(network: str, image_size_px: int, memory: Path) -> float:
    """Milliseconds for one picture, or what is remembered of them.

    Args:
        network: Torchvision's name of it.
        image_size_px: Side of the picture.
        memory: Folder in which times are remembered.

    Raises:
        InputError: The network takes no picture of this size.
    """
    path = memory / f"latency-{_key(network, image_size_px)}.json"
    if (known := _remembered(path)) is not None:
        return known
    taken = _measure(network, image_size_px)
    try:
        write_bytes(str(path), json.dumps({"network": network, "px": image_size_px, "ms": taken}, indent=1).encode())
    except OSError as error:
        logger.warning("what was measured cannot be kept at %s: %s", path, error)
    return taken


def _measure(network: str, image_size_px: int) -> float:
    backbone = load_backbone(network, None, num_classes=2, input_size_px=image_size_px, seed=0)
    whole = split_network(backbone, 0).tail.eval()
    image_BCHW = torch.randn((1, 3, image_size_px, image_size_px), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), _one_thread():
        return 1000 * best_of_rounds({0: lambda: whole(image_BCHW)}, _CPU)[0]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _key(network: str, image_size_px: int) -> str:
    content = {"network": network, "px": image_size_px, "machine": describe_machine(_CPU).model_dump(mode="json")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _remembered(path: Path) -> float | None:
    """None where it was never measured, or the file is damaged: measuring again costs a second."""
    try:
        taken = float(json.loads(path.read_bytes())["ms"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return taken if 0 < taken < math.inf else None
