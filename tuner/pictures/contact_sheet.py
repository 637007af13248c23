"""Many small pictures on one: rows with a title each, for people to look at.

In: rows of uint8 pictures. Out: an image, to be saved as PNG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE_PX = 112
_GAP_PX = 4
_TITLE_PX = 22
_TEXT_PX = 14
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class SheetRow:
    """One row.

    Attributes:
        title: What stands above it.
        pictures: uint8 [H, W, 3] each, of any size.
    """

    title: str
    pictures: Sequence[NDArray[np.uint8]]


def contact_sheet(rows: Sequence[SheetRow], tile_px: int = TILE_PX) -> Image.Image:
    """Lays pictures out row by row, each shrunk or enlarged to fit a square tile with its shape kept."""
    columns = max(1, *(len(row.pictures) for row in rows))
    row_px = _TITLE_PX + tile_px + _GAP_PX
    font = ImageFont.load_default(_TEXT_PX)
    wanted_px = max(font.getlength(row.title) for row in rows) + 2 * _GAP_PX
    width = max(_GAP_PX + columns * (tile_px + _GAP_PX), round(wanted_px))
    sheet = Image.new("RGB", (width, _GAP_PX + len(rows) * row_px), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = _GAP_PX + number * row_px
        draw.text((_GAP_PX, top), row.title, _INK, font)
        for column, pixels_HWC in enumerate(row.pictures):
            picture = tile(pixels_HWC, tile_px)
            left = _GAP_PX + column * (tile_px + _GAP_PX) + (tile_px - picture.width) // 2
            sheet.paste(picture, (left, top + _TITLE_PX + (tile_px - picture.height) // 2))
    return sheet


def tile(pixels_HWC: NDArray[np.uint8], tile_px: int = TILE_PX) -> Image.Image:
    """A picture as it stands on a sheet; a tile stays as it is."""
    picture = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    scale = tile_px / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Enlarged pixels stay pixels: a sheet of 8 x 8 digits should look like what the network is given.
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
