"""One canonical batch of pictures at a time, at any cuts: what is stored is read, the rest computed from the nearest.

In: positions and the wanted cuts. Out: their features, to train from or to store.

B positions of a block, R rows of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from trainables.data.batches import ImagesAhead
from trainables.features.filling import Part, Writer
from trainables.features.reading import Features
from trainables.frozen_prefix import FrozenPrefix

Held = Mapping[int, Features]
"""Opened entries of one view of a side, by cut."""


def legs(wanted: Collection[int], held: Collection[int]) -> dict[int, tuple[int, ...]]:
    """From which cut (0: the pictures) which wanted cuts are computed, ascending: each from the nearest held one."""
    found: dict[int, tuple[int, ...]] = {}
    for cut in sorted(set(wanted) - set(held)):
        start = max((before for before in held if before < cut), default=0)
        found[start] = (*found.get(start, ()), cut)
    return found


class BlockReader:
    """Features of one view of a side, a block of positions at a time.

    Args:
        prefix: The frozen stages.
        held: What can be read.
        ahead: Where pictures come from.
        read: Rows of an entry, on the device.
        count: Hears of each computation: number of rows, and between which cuts.
    """

    def __init__(
        self,
        prefix: FrozenPrefix,
        held: Held,
        ahead: ImagesAhead,
        read: Callable[[Features, np.ndarray], torch.Tensor] = Features.rows,
        count: Callable[[int, int, int], None] = lambda *_: None,
    ) -> None:
        self._prefix, self._held, self._ahead, self._read, self._count = prefix, held, ahead, read, count

    def rows(
        self, positions: np.ndarray, cuts: Collection[int], following: np.ndarray | None = None
    ) -> dict[int, torch.Tensor]:
        """Features [B, ...] of a block by cut.

        Args:
            positions: At most a canonical batch of them.
            cuts: The wanted ones.
            following: The block that is likely to come next.
        """
        found = {cut: self._read(self._held[cut], positions) for cut in cuts if cut in self._held}
        for start, ends in legs(cuts, self._held.keys()).items():
            if start:
                inputs = found.get(start)
                inputs = self._read(self._held[start], positions) if inputs is None else inputs
            else:
                inputs = self._ahead.images(positions, following)
            found |= self._prefix.between(inputs, start, ends)
            self._count(len(positions), start, ends[-1])
        return found


@dataclass
class Shelf:
    """The features of one part, gathered block by block until they are stored.

    Attributes:
        part: Which rows.
        writers: By cut; each has claimed the part.
    """

    part: Part
    writers: Mapping[int, Writer]
    _gathered: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def cuts(self) -> Collection[int]:
        """Those to be stored."""
        return self.writers.keys()

    def add(self, positions: np.ndarray, features: Mapping[int, torch.Tensor]) -> None:
        """Takes the features of some of the part's rows, at its cuts or more."""
        num_rows = self.part.stop - self.part.first
        first = int(positions[0]) - self.part.first
        for cut in self.cuts:
            rows = features[cut].cpu()
            if len(rows) == num_rows:
                self._gathered[cut] = rows
                continue
            if cut not in self._gathered:
                shape = (num_rows, *rows.shape[1:])
                self._gathered[cut] = torch.empty_strided(shape, rows.stride(), dtype=rows.dtype)
            self._gathered[cut][first : first + len(rows)] = rows

    def store(self) -> None:
        """Hands the rows to the writers, which store them while the caller goes on."""
        for cut, writer in self.writers.items():
            writer.put_behind(self.part, self._gathered.pop(cut))
