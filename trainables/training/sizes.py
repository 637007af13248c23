"""How large the pictures are that each epoch trains on: progressive resizing.

The first third of the epochs sees pictures at a share of the full size, the second at the size half-way, the last third
at the full one, so that what is judged was trained at the size it is judged at. Howard 2018 (fast.ai at DAWNBench);
Tan & Le 2021 (arXiv 2104.00298), whose training grows the size in stages as well.
"""

from __future__ import annotations

_GRID_PX = 4
LEAST_PX = 8
"""The smallest square that any network sees."""


def thirds(start: float, epochs: int) -> tuple[tuple[float, int], ...]:
    """Shares of the full side's length, in their order, and how many epochs train at each.

    Args:
        start: The first share; 1: always the full size.
        epochs: Of the whole trial; the last one is always at the full size.
    """
    first, second = epochs // 3, 2 * epochs // 3
    return (start, first), ((1 + start) / 2, second - first), (1.0, epochs - second)


def share_at(epoch: int, start: float, epochs: int) -> float:
    """The share that an epoch, counted from 0, trains at; see `thirds`."""
    for share, num_epochs in thirds(start, epochs):
        if epoch < num_epochs:
            return share
        epoch -= num_epochs
    return 1.0


def size_at(share: float, full_px: int) -> int:
    """A share of the full side in pixels, rounded to a multiple of four; the full side is never changed."""
    if share >= 1:
        return full_px
    return min(full_px, max(LEAST_PX, _GRID_PX * round(share * full_px / _GRID_PX)))
