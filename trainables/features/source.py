"""Batches from stored features: what frozen stages made of the pictures is read, and computed where it is missing.

In: a trial's pictures, its frozen stages and the process's store. Out: the batches that `ImageBatches` would make, to
the bit, because both run the frozen stages in the same canonical batches and hand on what each stage makes in the form
in which it is stored. What may be stored and is not yet there is stored in one pass over the pictures; what may not be
is computed with every epoch, from the nearest stored cut before it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch

from trainables.backbones.zoo import Backbone
from trainables.config import TrialConfig
from trainables.data.batches import Batch, ImageBatches, ImagesAhead, canonical_blocks, recut
from trainables.data.side import Side
from trainables.features.blocks import BlockReader, Held, Shelf, legs
from trainables.features.filling import Part, Writer, parts_together
from trainables.features.key import FeatureKey, FrozenPart, rows_digest
from trainables.features.machine import describe_machine, describe_prefix
from trainables.features.reading import Features
from trainables.features.residence import PageBudget
from trainables.features.store import FeatureStore
from trainables.frozen_prefix import DTYPES, FrozenPrefix, laid_out
from trainables.ranks import Ranks

_digests: WeakKeyDictionary[Side, str] = WeakKeyDictionary()


class FeaturesRequiredError(RuntimeError):
    """The spec demands stored features, and they cannot be stored."""


@dataclass
class FeatureTally:
    """What reading was worth since the last ``take``.

    Attributes:
        num_read: Pictures whose features at the trial's cut were read, not computed.
        flops_saved: FLOPs of frozen stages that were not computed, because what they would have made was read. What a
            filling pass computes is taken off, so what it reads back of its own counts for nothing.
    """

    num_read: int = 0
    flops_saved: int = 0

    def take(self) -> tuple[int, int]:
        """Both, which begin again at 0."""
        taken = self.num_read, self.flops_saved
        self.num_read = self.flops_saved = 0
        return taken


class StoredFeatures:
    """One trial's view of the store; keeps what it reads open until it is closed.

    Args:
        store: The process's store.
        config: The trial's.
        backbone: Its backbone.
        ranks: This process among the workers, which share the filling.
        cuts_to_keep: Which cuts may be stored, by side. Where a side is missing, the trial's own.
        is_required: Whether training from pictures instead is an error; then the trial's own cut may be stored.
        pages: The process's, which all its trials share.
    """

    def __init__(
        self,
        store: FeatureStore,
        config: TrialConfig,
        backbone: Backbone,
        *,
        ranks: Ranks,
        cuts_to_keep: Mapping[Literal["train", "val"], Collection[int]] | None = None,
        is_required: bool = False,
        pages: PageBudget | None = None,
    ) -> None:
        self.tally, self.depth = FeatureTally(), config.freeze_depth
        self._store, self._config, self._backbone, self._ranks = store, config, backbone, ranks
        self._keep: dict[str, Collection[int]] = dict(cuts_to_keep.items()) if cuts_to_keep else {}
        self._is_required = is_required
        stages = backbone.graph.stages
        self.flops = (0, *accumulate(stage.flops for stage in stages))
        self._shapes = ((), *(stage.output_shape for stage in stages))
        self._frozen: dict[int, FrozenPart] = {}
        self._machine = describe_machine(ranks.device)
        self._open: dict[str, Features] = {}
        self._asked: set[str] = set()
        self._pages = PageBudget() if pages is None else pages
        self._stack = ExitStack()

    def close(self) -> None:
        """Lets the store evict what this trial read."""
        self._pages.forget(self._open.values())
        self._open.clear()
        self._stack.close()

    def kept(self, images: ImageBatches, depth: int) -> set[int]:
        """The cuts of a side that may be stored, up to some depth."""
        if images.policy.num_views == "unlimited":
            return set()  # views that are never seen twice
        kept = set(self._keep.get(images.side.name, (self.depth,)))
        return {cut for cut in (kept | {self.depth} if self._is_required else kept) if 0 < cut <= depth}

    def held(self, images: ImageBatches, view_index: int, cuts: Collection[int]) -> dict[int, Features]:
        """What is stored of one view of a side: the wanted cuts, and where one is missing the nearest before it."""
        held: dict[int, Features] = {}
        if images.policy.num_views == "unlimited":
            return held
        for wanted in sorted(cuts, reverse=True):
            for cut in range(wanted, 0, -1):
                found = held.get(cut) or self._opened(images, view_index, cut)
                if found is not None:
                    held[cut] = found
                    break
        return held

    def prepared(self, images: ImageBatches, prefix: FrozenPrefix, view_index: int) -> dict[int, Features]:
        """``held`` for the trial's own cut, after what may be stored was stored.

        Raises:
            FeaturesRequiredError: The own cut cannot be stored, and the spec demands it.
        """
        held = self.held(images, view_index, [self.depth])
        to_fill = [] if self.depth in held else self.to_fill(images, view_index, [self.depth], held)
        if to_fill:
            num_filled = self._fill(images, prefix, view_index, to_fill)
            held = self.held(images, view_index, [self.depth])
            if self.depth in held:
                # Read back by this very epoch, or another rank's: they were not saved anything.
                self.tally.num_read -= num_filled
        if self._is_required and self.depth not in held and self.kept(images, self.depth):
            reason = self._store.storing.reason or "the cache's budget or disk is too small"
            raise FeaturesRequiredError(f"features: required, but they cannot be stored: {reason}")
        return held

    def to_fill(self, images: ImageBatches, view_index: int, wanted: Collection[int], held: Held) -> list[int]:
        """The cuts that a pass for the wanted ones stores: what may be, is not, and lies on its way.

        Its way begins at what is held. Validation pictures are few and read in every epoch: what may be stored of them
        is stored by the first pass, wherever that begins.
        """
        kept, ways = self.kept(images, max(wanted)), legs(wanted, held.keys())
        on_way = {cut for cut in kept for start, ends in ways.items() if start < cut <= ends[-1]}
        if on_way and images.side.name == "val":
            on_way = kept
        return [cut for cut in sorted(on_way) if self._opened(images, view_index, cut) is None]

    def writer(self, images: ImageBatches, view_index: int, cut: int) -> Writer:
        """A writer for one cut of one view of a side."""
        ranks, key = self._ranks, self._key(images, view_index, cut)
        shape = self._shapes[cut]
        return self._store.fill(key, len(images.side), shape, rank=ranks.rank, world_size=ranks.world_size)

    def read(self, features: Features, positions: np.ndarray) -> torch.Tensor:
        """Rows of an entry, on the device that trains."""
        pinned = None
        if self._ranks.device.type == "cuda":
            # Memory that the GPU reads by itself, while the processor goes on; torch keeps it until that is done.
            size = len(positions) * math.prod(features.shape)
            pinned = torch.empty(size, dtype=DTYPES[features.plan.key.dtype], pin_memory=True)
        rows = features.rows(positions, pinned).to(self._ranks.device, non_blocking=True)
        self._pages.touch(features, len(positions))
        return rows

    def _opened(self, images: ImageBatches, view_index: int, cut: int) -> Features | None:
        key = self._key(images, view_index, cut)
        digest = key.digest()
        if digest not in self._open:
            # A shared store, which may be far away, is asked once; another lane may store it here at any time.
            is_worth_asking = digest not in self._asked or self._store.has(key)
            self._asked.add(digest)
            found = self._store.open(key) if is_worth_asking else None
            if found is None:
                return None
            self._open[digest] = self._stack.enter_context(found)
        return self._open[digest]

    def _key(self, images: ImageBatches, view_index: int, cut: int) -> FeatureKey:
        if cut not in self._frozen:
            self._frozen[cut] = describe_prefix(self._backbone, cut)
        return FeatureKey.of(
            self._config,
            rows=_rows_digest(images.side),
            policy=images.policy,
            view_index=view_index,
            frozen=self._frozen[cut],
            machine=self._machine,
        )

    def reader(self, prefix: FrozenPrefix, held: Held, ahead: ImagesAhead) -> BlockReader:
        """Reads and computes blocks, and counts what that takes."""

        def count(num_rows: int, start: int, end: int) -> None:
            self.tally.flops_saved -= num_rows * (self.flops[end] - self.flops[start])

        return BlockReader(prefix, held, ahead, self.read, count)

    def _fill(self, images: ImageBatches, prefix: FrozenPrefix, view_index: int, cuts: Collection[int]) -> int:
        """Stores some cuts; returns how many rows of the trial's own were computed here."""
        num_filled = 0
        held = self.held(images, view_index, cuts)
        with ExitStack() as stack:
            writers = {cut: stack.enter_context(self.writer(images, view_index, cut)) for cut in _deepest_first(cuts)}
            cut_of = {id(writer): cut for cut, writer in writers.items()}
            reader = self.reader(prefix, held, stack.enter_context(images.ahead(view_index)))
            for part, wanting in parts_together(list(writers.values()), waiting=self._store.waiting):
                shelf = Shelf(part, {cut_of[id(writer)]: writer for writer in wanting})
                blocks = canonical_blocks(part.positions, prefix.batch_size)
                after = _likely_block(wanting[0], part, prefix.batch_size)
                for block, following in zip(blocks, [*blocks[1:], after], strict=True):
                    shelf.add(block, reader.rows(block, shelf.cuts, following))
                shelf.store()
                num_filled += len(part.positions) if self.depth in shelf.cuts else 0
        return num_filled


def _deepest_first(cuts: Collection[int]) -> list[int]:
    """Who comes first has the room: the deeper a cut, the smaller it is and the more it saves."""
    return sorted(cuts, reverse=True)


def _rows_digest(side: Side) -> str:
    """Computed once for a side, which trials of one process share."""
    if side not in _digests:
        _digests[side] = rows_digest(side.table.ids[side.rows])
    return _digests[side]


def _likely_block(writer: Writer, part: Part, batch_size: int) -> np.ndarray | None:
    """The first block of the part that will most likely be computed here after ``part``."""
    number = next((number for number in writer.missing() if number > part.number), None)
    if number is None:
        return None
    first, stop = writer.plan.bounds(number)
    return np.arange(first, min(stop, first + batch_size))


class FeatureBatches:
    """Batches from the store, or computed from what it has to give.

    Args:
        images: The same batches from pictures.
        stored: The trial's view of the store.
        prefix: The trial's frozen stages.
    """

    def __init__(self, images: ImageBatches, stored: StoredFeatures, prefix: FrozenPrefix) -> None:
        self._images, self._stored, self._prefix = images, stored, prefix

    def batches(self, plan: Sequence[np.ndarray], view_index: int) -> Iterator[Batch]:
        """One batch per entry of ``plan``, in order."""
        stored, depth = self._stored, self._stored.depth
        held = stored.prepared(self._images, self._prefix, view_index)
        num_rows = sum(len(positions) for positions in plan)
        stored.tally.flops_saved += num_rows * stored.flops[depth]
        if depth in held:
            stored.tally.num_read += num_rows
            inputs: Iterator[torch.Tensor] = (stored.read(held[depth], positions) for positions in plan)
        else:
            inputs = self._computed(plan, view_index, held)
        for positions, rows in zip(plan, inputs, strict=True):
            yield self._images.labelled(rows, positions)

    def _computed(self, plan: Sequence[np.ndarray], view_index: int, held: Held) -> Iterator[torch.Tensor]:
        """From the nearest cut before, in canonical batches of the plan's order."""
        if not plan:
            return
        blocks, depth = canonical_blocks(np.concatenate(plan), self._prefix.batch_size), self._stored.depth
        with self._images.ahead(view_index) as ahead:
            reader = self._stored.reader(self._prefix, held, ahead)
            following = [*blocks[1:], None]
            features = (
                reader.rows(block, [depth], after)[depth] for block, after in zip(blocks, following, strict=True)
            )
            yield from recut(features, [len(positions) for positions in plan])


def visit(
    images: ImageBatches,
    stored: StoredFeatures | None,
    prefix: FrozenPrefix,
    view_index: int,
    cuts: Sequence[int],
) -> Iterator[tuple[np.ndarray, dict[int, torch.Tensor]]]:
    """The features of every wanted cut in one pass: what is stored is read, what may be is stored, the rest computed.

    What another worker is storing at the moment is computed here too, not waited for.

    Args:
        images: The pictures; a prefix of their own plays no part.
        stored: The trial's view of the store, or None.
        prefix: At least as deep as the cuts.
        view_index: Which view.
        cuts: Numbers of stages, from 1.

    Yields:
        Positions in row order, a canonical batch at a time, and their features by cut, on the device, not to be
        changed.
    """
    num_rows, wanted = len(images.side), sorted(set(cuts))
    if not wanted or not num_rows:
        return
    held: Held = {} if stored is None else stored.held(images, view_index, wanted)
    with ExitStack() as stack:
        ahead = stack.enter_context(images.ahead(view_index))
        writers: dict[int, Writer] = {}
        reader = BlockReader(prefix, {}, ahead)
        if stored is not None:
            to_fill = stored.to_fill(images, view_index, wanted, held)
            held = {**stored.held(images, view_index, to_fill), **held}
            writers = {
                cut: stack.enter_context(stored.writer(images, view_index, cut)) for cut in _deepest_first(to_fill)
            }
            reader = stored.reader(prefix, held, ahead)
            stored.tally.flops_saved += num_rows * stored.flops[wanted[-1]]
        blocks = canonical_blocks(np.arange(num_rows), prefix.batch_size)
        shelf: Shelf | None = None
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            shelf = shelf or _claimed(writers, int(block[0]), num_rows)
            features = reader.rows(block, {*wanted, *shelf.cuts}, following)
            shelf.add(block, features)
            if block[-1] + 1 == shelf.part.stop:
                shelf.store()
                shelf = None
            yield block, {cut: features[cut] for cut in wanted}


def _claimed(writers: Mapping[int, Writer], first: int, num_rows: int) -> Shelf:
    """The part that begins at a position, with the writers that nobody else is filling it for."""
    if not writers:
        return Shelf(Part(0, first, num_rows), {})
    plan = next(iter(writers.values())).plan
    part = Part(first // plan.rows_per_shard, first, min(first + plan.rows_per_shard, num_rows))
    return Shelf(part, {cut: writer for cut, writer in writers.items() if writer.try_claim(part.number)})


def at_places(
    visited: Iterator[tuple[np.ndarray, dict[int, torch.Tensor]]], places: np.ndarray, layout: torch.memory_format
) -> Iterator[tuple[np.ndarray, dict[int, torch.Tensor]]]:
    """What a visit to a larger side yields, of the pictures at some places alone, by their positions among these."""
    for positions, features in visited:
        wanted = np.isin(positions, places, assume_unique=True)
        if wanted.any():
            rows = torch.from_numpy(wanted)
            own = {cut: laid_out(each[rows.to(each.device)], layout) for cut, each in features.items()}
            yield np.searchsorted(places, positions[wanted]), own
