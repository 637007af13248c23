"""How a picture of any shape is brought to the network's square: `crop`, `squash` or `pad`, and which `auto` takes.

In: heights and widths. Out: the part of a picture that is used and the size that it gets in the square, or a choice
with its reason. Pure arithmetic; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainables.config import Fit, FitOrAuto

PAD_COLOUR = (124, 116, 104)
"""ImageNet's mean colour: about 0 after normalisation, so that padding says as little to a network as its own zeros."""
MOST_SPREAD = 2.0
"""Shapes (width / height) of which the middle nine tenths lie within so many times each other are taken for alike."""

_TENTH = 0.05


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class FitChoice:
    """How pictures are brought to a square, and why so.

    Attributes:
        fit: How.
        reason: Why so.
        is_moot: All of them are square: every fit would give the same.
    """

    fit: Fit
    reason: str
    is_moot: bool = False


def middle_part(height: int, width: int, fit: Fit) -> Box:
    """What evaluation sees of a picture: its middle square under `crop`, else all of it."""
    if fit != "crop":
        return Box(0, 0, height, width)
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def fitted_size(height: int, width: int, fit: Fit, size_px: int) -> tuple[int, int]:
    """Height and width that a picture gets within the square; under `pad`, what is left over is padded evenly."""
    if fit != "pad" or height == width:
        return size_px, size_px
    longer = max(height, width)
    # Integers, rounded half up: the same size on every platform.
    shorter_px = max(1, (2 * min(height, width) * size_px + longer) // (2 * longer))
    return (size_px, shorter_px) if height > width else (shorter_px, size_px)


def lost_by_crop(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each picture's area that lies outside its middle square [N]."""
    return 1 - np.minimum(heights, widths) / np.maximum(heights, widths)


def choose_fit(wanted: FitOrAuto, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> FitChoice:
    """What `auto` stands for: never a fit that loses something.

    Where all pictures are square, all fits are the same, and `pad` keeps whole what comes later in another shape.
    Where shapes are alike, `squash`: it distorts all of them in the same way and uses all of the square. Where they
    differ, it would distort each in its own way: `pad`.

    Args:
        wanted: As the spec says.
        heights: Of the pictures [N].
        widths: Of the pictures [N].
    """
    if wanted != "auto":
        return FitChoice(wanted, "as the spec says", is_moot=bool((heights == widths).all()))
    lost = lost_by_crop(heights, widths)
    if not lost.any():
        reason = "all pictures are square and stay as they are; of others nothing would be cut off"
        return FitChoice("pad", reason, is_moot=True)
    saved = f"a centre crop would lose {lost.mean():.0%} of the pictures' area, of one {lost.max():.0%}"
    low, high = np.quantile(widths / heights, (_TENTH, 1 - _TENTH)).tolist()
    shapes = f"width by height is {low:.2f} to {high:.2f} for nine tenths of them"
    if high <= MOST_SPREAD * low:
        return FitChoice("squash", f"{saved}; {shapes}, so that all are distorted about alike")
    return FitChoice("pad", f"{saved}; {shapes}, and squashing would distort each in another way")
