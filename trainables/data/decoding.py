"""The bytes of one picture file to upright 8-bit RGB pixels, shrunk while they are decoded.

In: bytes of a JPEG, PNG, GIF, BMP, TIFF, WebP, PPM, JPEG 2000 or AVIF file. Out: an array, or
`UnreadablePictureError` with a short reason that is the same on every run. Training and prediction both read pictures
through here. No torch.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainables.errors import InputError

# Pillow knows more, but some of those run an interpreter on the file (EPS) or take any bytes for theirs (TGA).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
MAX_DECODED_PIXELS = 90_000_000
MAX_16_BIT = 0xFFFF

# Pillow's plugins let all of these out of a damaged file; none of them says anything about this program.
DAMAGE_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadablePictureError(InputError):
    """The bytes are no picture that can be decoded; the message is the reason, without the file's name."""


def decode_picture(data: bytes, side_px: int | None = None) -> NDArray[np.uint8]:
    """Decodes a picture, turns it upright, and shrinks it to what is needed.

    EXIF orientation is applied; grey, palette, CMYK, 16-bit and floating-point (0 to 1) pictures become 8-bit RGB;
    transparency is laid on white; of several frames the first is taken.

    Args:
        data: The file's bytes.
        side_px: The shorter side is shrunk, antialiased, to at most this; never enlarged. None keeps the size. JPEGs
            are decoded at a half, a quarter or an eighth where that is still large enough: several times faster.

    Returns:
        Pixels [height, width, 3], uint8, contiguous.

    Raises:
        UnreadablePictureError: Not a picture, damaged, or too large to decode.
    """
    if not data:
        raise UnreadablePictureError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            return np.array(_upright_rgb(opened, side_px), dtype=np.uint8)
    except UnreadablePictureError:
        raise
    except UnidentifiedImageError:
        raise UnreadablePictureError("not a picture of a known format") from None
    except DAMAGE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadablePictureError(f"cannot be decoded: {reason[:200]}") from error


@dataclass(frozen=True)
class Header:
    """What stands in front of a picture file's pixels.

    Attributes:
        size: Width and height, before it is turned upright.
        kind: ``JPEG``, ``PNG``...: see `FORMATS`.
        num_frames: Pictures in it, of which the first is read.
    """

    size: tuple[int, int]
    kind: str
    num_frames: int

    def is_named(self, name: str) -> bool:
        """Whether a file of that name may be expected to be of this kind; without a known ending, of any."""
        ending = name[name.rfind(".") :].lower()
        named = Image.registered_extensions().get(ending, self.kind)
        return named == self.kind or {named, self.kind} == {"JPEG", "MPO"}


def header_of(data: bytes) -> Header:
    """Reads a picture file's header.

    Raises:
        UnreadablePictureError: Not a picture, or far too large for one.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            return Header(opened.size, str(opened.format), getattr(opened, "n_frames", 1))
    except DAMAGE_ERRORS as error:
        raise UnreadablePictureError(f"cannot be opened: {type(error).__name__}") from error


def _upright_rgb(opened: Image.Image, side_px: int | None) -> Image.Image:
    full_size = opened.size
    if side_px is not None:
        opened.draft(None, (side_px, side_px))
    is_halved = opened.size != full_size
    width, height = opened.size
    if width * height > MAX_DECODED_PIXELS:
        raise UnreadablePictureError(f"{width} x {height} px are more than {MAX_DECODED_PIXELS // 10**6} million")
    opened.load()
    picture = _to_rgb(opened)
    if not is_halved:
        full_size = picture.size  # TIFFs turn while they load
    shorter_px = min(full_size)
    if side_px is not None and shorter_px > side_px:
        # Integers, rounded half up: the same size on every platform.
        target = [(2 * side * side_px + shorter_px) // (2 * shorter_px) for side in full_size]
        picture = picture.resize((target[0], target[1]), Image.Resampling.BILINEAR)
    turn = UPRIGHT.get(_orientation(opened))
    return picture if turn is None else picture.transpose(turn)


def _orientation(opened: Image.Image) -> int:
    try:
        value = opened.getexif().get(ORIENTATION_TAG, 1)
    except DAMAGE_ERRORS:  # a picture with broken metadata is still a picture
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        return _from_16_bit(picture).convert("RGB")
    if picture.mode == "F":
        return _from_floats(picture).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        white.alpha_composite(rgba)
        return white.convert("RGB")
    return picture.convert("RGB")


def _from_floats(picture: Image.Image) -> Image.Image:
    """Grey of 0 to 1 (Pillow's mode F) to 8 bits, rounded."""
    values_HW = np.asarray(picture)
    if not (np.isfinite(values_HW).all() and values_HW.min() >= 0 and values_HW.max() <= 1):
        raise UnreadablePictureError("its floating-point pixels are not within 0 and 1: save it with 8 or 16 bits")
    return Image.fromarray(np.rint(values_HW * np.float32(255)).astype(np.uint8))


def _from_16_bit(picture: Image.Image) -> Image.Image:
    """Grey of 0 to 65535 (Pillow's modes I;16 and I) to 8 bits, rounded."""
    values_HW = np.asarray(picture)
    if values_HW.min() < 0 or values_HW.max() > MAX_16_BIT:
        raise UnreadablePictureError("its 32-bit pixels are not within 0 and 65535: save it with 8 or 16 bits")
    return Image.fromarray(((values_HW.astype(np.uint32) + 128) // 257).astype(np.uint8))
