"""From one side of an image table to the batches of one rank, as pictures or as the frozen part's features.

A trial asks for global batches by position; each rank makes its own part of them.

Axes: B pictures of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch

from trainables.data.kept_views import Views
from trainables.frozen_prefix import FrozenPrefix


class Batch(NamedTuple):
    """What one rank holds of one global batch: images or features [B, ...] and labels [B] (int64), on the device."""

    inputs: torch.Tensor
    labels_B: torch.Tensor


class BatchSource(Protocol):
    """Anything that can serve batches: pictures through the prefix here, stored features elsewhere."""

    def batches(self, plan: Sequence[np.ndarray], view_index: int) -> Iterator[Batch]:
        """One batch per entry of ``plan`` (positions in the side), in order."""
        ...


class Normaliser:
    """Bytes to the numbers that a backbone was trained on: (x / 255 - mean) / std per channel, float32."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self._layout = layout
        self.device = device
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] to float32 of the same shape, on the normaliser's device."""
        images = images_BCHW.to(self._mean.device, non_blocking=True).float()
        return images.div_(255.0).sub_(self._mean).div_(self._std).contiguous(memory_format=self._layout)


class ImageBatches:
    """Batches made from pictures: views, normalised, and passed through the frozen prefix if there is one."""

    def __init__(self, views: Views, normalise: Normaliser, prefix: FrozenPrefix | None) -> None:
        self.side, self.policy = views.side, views.policy
        self._views, self._normalise, self._prefix = views, normalise, prefix
        self._labels_N = torch.from_numpy(np.ascontiguousarray(views.side.labels))

    def batches(self, plan: Sequence[np.ndarray], view_index: int) -> Iterator[Batch]:
        """One batch per entry of ``plan``, in order; the next pictures are fetched while one batch is in use."""
        for positions, inputs in zip(plan, self.inputs(plan, view_index), strict=True):
            yield self.labelled(inputs, positions)

    def labelled(self, inputs: torch.Tensor, positions: np.ndarray) -> Batch:
        """The inputs of some positions, with their labels, on the device that trains."""
        labels_B = self._labels_N[torch.from_numpy(positions)]
        return Batch(inputs.to(self.device, non_blocking=True), labels_B.to(self.device, non_blocking=True))

    @property
    def device(self) -> torch.device:
        """Where batches are used."""
        return self._normalise.device

    def inputs(self, plan: Sequence[np.ndarray], view_index: int) -> Iterator[torch.Tensor]:
        """The batches without labels: normalised images, or the frozen part's features."""
        if self._prefix is None:
            yield from self._images(plan, view_index)
            return
        if not plan:
            return
        blocks = canonical_blocks(np.concatenate(plan), self._prefix.batch_size)
        features = (self._prefix(images) for images in self._images(blocks, view_index))
        yield from recut(features, [len(positions) for positions in plan])

    def _images(self, blocks: Sequence[np.ndarray], view_index: int) -> Iterator[torch.Tensor]:
        with self.ahead(view_index) as ahead:
            for number, block in enumerate(blocks):
                yield ahead.images(block, blocks[number + 1] if number + 1 < len(blocks) else None)

    @contextmanager
    def ahead(self, view_index: int) -> Iterator[ImagesAhead]:
        """Normalised images block by block, the next one fetched while one is in use."""
        with ThreadPoolExecutor(1, thread_name_prefix="views") as executor:
            yield ImagesAhead(self._views, self._normalise, view_index, executor)


class ImagesAhead:
    """Normalised images of blocks that are asked for one after another; see ``ImageBatches.ahead``."""

    def __init__(self, views: Views, normalise: Normaliser, view_index: int, executor: ThreadPoolExecutor) -> None:
        self._views, self._normalise, self._view_index, self._executor = views, normalise, view_index, executor
        self._coming: dict[bytes, Future[torch.Tensor]] = {}

    def images(self, positions: np.ndarray, following: np.ndarray | None = None) -> torch.Tensor:
        """Float32 [B, C, H, W] of some positions.

        Args:
            positions: Of the side.
            following: What is likely to be asked for next.
        """
        coming = self._coming.pop(positions.tobytes(), None) or self._fetch(positions)
        self._coming = {} if following is None else {following.tobytes(): self._fetch(following)}
        return self._normalise(coming.result())

    def _fetch(self, positions: np.ndarray) -> Future[torch.Tensor]:
        return self._executor.submit(self._views.fetch, positions, self._view_index)


class PartOf:
    """Batches of a side out of those of a larger one.

    Args:
        batches: Of the larger one.
        places: The positions there of this side's pictures.
    """

    def __init__(self, batches: BatchSource, places: np.ndarray) -> None:
        self._batches, self._places = batches, places

    def batches(self, plan: Sequence[np.ndarray], view_index: int) -> Iterator[Batch]:
        """One batch per entry of ``plan`` (positions in the side), in order."""
        return self._batches.batches([self._places[positions] for positions in plan], view_index)


def canonical_blocks(positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Positions in the frozen part's batches: at least one, if an empty one.

    A rank without pictures still needs to know a feature's shape.
    """
    return [positions[first : first + batch_size] for first in range(0, max(1, len(positions)), batch_size)]


def recut(blocks: Iterable[torch.Tensor], lengths: Sequence[int]) -> Iterator[torch.Tensor]:
    """The rows of ``blocks`` (at least one block) in order, cut anew into pieces of the given lengths."""
    source = iter(blocks)
    held = next(source)
    for length in lengths:
        pieces, missing = [], length
        while missing > 0:
            if not len(held):
                held = next(source)
            pieces.append(held[:missing])
            held = held[missing:]
            missing -= len(pieces[-1])
        if len(pieces) == 1:
            yield pieces[0]
        else:
            yield _joined(pieces) if pieces else held[:0]


def _joined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """One behind the other, with the strides of the pieces: left alone, torch.cat chooses where a size is 1."""
    first = pieces[0]
    shape = (sum(len(piece) for piece in pieces), *first.shape[1:])
    whole = torch.empty_strided(shape, first.stride(), dtype=first.dtype, device=first.device)
    return torch.cat(list(pieces), out=whole)
