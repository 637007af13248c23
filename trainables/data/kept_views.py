"""The views of a side's pictures, computed once and kept in memory as bytes while they fit.

Axes: N pictures of the side, B pictures of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch

from trainables.config import AugmentationConfig, Fit
from trainables.data.side import Side
from trainables.data.views import view


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
