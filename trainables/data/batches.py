"""From one side of an image table to the batches of one rank, as pictures or as the frozen part's features.

A trial asks for global batches by position; each rank makes its own part of them. Views are computed once and kept
in memory as bytes while they fit.

Axes: N pictures of the side, B pictures of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from trainables.config import AugmentationConfig, Fit, SplitName
from trainables.data.table import ImageTable
from trainables.data.views import view
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


@dataclass(frozen=True, eq=False)
class Side:
    """The pictures of one side of the split: rows of the table and their labels, both [N], not to be changed.

    Attributes:
        table: Where they are.
        rows: Of the table.
        labels: Indices of their classes.
        name: Which side it is.
        whole: With folds, the pictures of all folds, this side's among them: what is kept of views and features is
            kept for these, so that every fold reads it.
        places: The positions in ``whole`` of this side's pictures [N], ascending; without ``whole`` None.
    """

    table: ImageTable
    rows: np.ndarray
    labels: np.ndarray
    name: SplitName = "train"
    whole: Side | None = None
    places: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.rows)


def plan_epoch(
    num_rows: int, batch_size: int, seed: int, epoch: int, balanced_labels: np.ndarray | None = None
) -> list[np.ndarray]:
    """The shuffled positions of one epoch, cut into global batches.

    The batches are of nearly equal size (none larger than ``batch_size``), so that no small remainder gets a step
    of its own, and from ``batch_size`` 3 on BatchNorm never sees a lone picture unless there is only one.

    Args:
        num_rows: Pictures of the side, and of the epoch.
        batch_size: Most pictures of a batch.
        seed: Of the trial.
        epoch: From 0.
        balanced_labels: Of all pictures, where each class is to be drawn equally often; None: each picture once.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    chosen = num_rows if balanced_labels is None else _balanced(balanced_labels, generator)
    return np.array_split(generator.permutation(chosen), max(1, -(-num_rows // batch_size)))


def _balanced(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many positions as there are labels, of each class that occurs equally many, give or take one.

    Which classes get the one that is left over is drawn. Within a class each picture is there equally often, give or
    take one: a large class gives a sample without repetition, a rare one repeats.
    """
    classes = np.unique(labels)
    quotas = np.full(len(classes), len(labels) // max(1, len(classes)))
    quotas[generator.permutation(len(classes))[: len(labels) - quotas.sum()]] += 1
    chosen = []
    for class_, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(labels == class_)
        rounds, rest = divmod(int(quota), len(members))
        chosen += [np.tile(members, rounds), generator.permutation(members)[:rest]]
    return np.concatenate(chosen) if chosen else labels


def plan_in_order(num_rows: int, batch_size: int) -> list[np.ndarray]:
    """Positions 0 to ``num_rows`` in order, ``batch_size`` at a time."""
    return [np.arange(first, min(first + batch_size, num_rows)) for first in range(0, num_rows, batch_size)]


class ViewCache:
    """Views as bytes in memory, kept from trial to trial; the least recently used go when the budget is full.

    Args:
        budget_bytes: Most memory that views may take. What does not fit is computed anew each time.
    """

    def __init__(self, budget_bytes: int = 1 << 30) -> None:
        self._budget_bytes = budget_bytes
        self._held: OrderedDict[tuple[object, ...], tuple[torch.Tensor, np.ndarray]] = OrderedDict()

    def slot(self, key: tuple[object, ...], num_rows: int, size_px: int) -> tuple[torch.Tensor, np.ndarray] | None:
        """Memory for one view of each picture, uint8 [N, H, W, C], and which rows of it are filled; or None."""
        if key not in self._held:
            if num_rows * size_px * size_px * 3 > self._budget_bytes:
                return None
            self._held[key] = (torch.empty(num_rows, size_px, size_px, 3, dtype=torch.uint8), np.zeros(num_rows, bool))
            while sum(pixels.numel() for pixels, _ in self._held.values()) > self._budget_bytes:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]


class Views:
    """The views of one side's pictures under one policy.

    Args:
        side: The pictures.
        policy: What is done to them.
        size_px: Their side then.
        cache: Where they are kept.
        fit: What becomes of pictures that are not square.
        pinned: Whether batches are made in memory that a GPU reads by itself, while the processor goes on.
    """

    def __init__(
        self,
        side: Side,
        policy: AugmentationConfig,
        size_px: int,
        cache: ViewCache,
        fit: Fit = "crop",
        *,
        pinned: bool = False,
    ) -> None:
        self.side, self.policy, self.size_px, self.fit = side, policy, size_px, fit
        self._cache, self._pinned = cache, pinned
        # The rows are part of the key: two splits of one table share no slot.
        self._key = (side.table.fingerprint, side.rows.tobytes(), policy.canonical_json(), size_px, fit)

    def fetch(self, positions: np.ndarray, view_index: int) -> torch.Tensor:
        """uint8 [B, C, H, W] in channels-last memory: view ``view_index`` of each picture."""
        slot = self._cache.slot((*self._key, view_index), len(self.side), self.size_px)
        shape = (len(positions), self.size_px, self.size_px, 3)
        pixels_BHWC = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
        if slot is None:
            for number, position in enumerate(positions):
                pixels_BHWC[number] = self._compute(position, view_index)
            return pixels_BHWC.permute(0, 3, 1, 2)
        pixels_NHWC, filled_N = slot
        for position in positions[~filled_N[positions]]:
            pixels_NHWC[position] = self._compute(position, view_index)
            filled_N[position] = True
        # By NumPy, not torch: a parallel operation in this thread would start OpenMP threads of its own, and with
        # more of them than cores OpenMP puts the training's to sleep at every barrier: a fifth of mobilenet_v2's speed.
        # Its default mode would write to a buffer first.
        np.take(pixels_NHWC.numpy(), positions, axis=0, out=pixels_BHWC.numpy(), mode="clip")
        return pixels_BHWC.permute(0, 3, 1, 2)

    def _compute(self, position: int, view_index: int) -> torch.Tensor:
        table, row = self.side.table, int(self.side.rows[position])
        image_CHW = view(table.image(row), self.policy, table.id_of(row), view_index, self.size_px, self.fit)
        return image_CHW.permute(1, 2, 0)


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
