"""Every kind of picture file comes out as the pixels one would see; everything else with a reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from trainables.data.decoding import UnreadablePictureError, decode_picture

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]


def test_rgb_comes_through_unchanged(photo: Photo, encode: Encode) -> None:
    picture = photo(31, 17)
    for kind, options in [("PNG", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]:
        pixels = decode_picture(encode(picture, kind, **options))
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, np.asarray(picture), err_msg=kind)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "AVIF"])
def test_lossy_formats_are_close(kind: str, photo: Photo, encode: Encode) -> None:
    picture = photo(64, 48)
    pixels = decode_picture(encode(picture, kind))
    # Chroma at half resolution and quantisation: a few levels on a smooth picture.
    assert np.abs(pixels.astype(int) - np.asarray(picture)).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "RGBA", "RGBX", "CMYK", "YCbCr"])
def test_each_mode_shows_the_same_grey(mode: str, encode: Encode) -> None:
    """A picture that is black on the left and white on the right says the same in every mode."""
    black_white = Image.fromarray(np.repeat([[0, 255]], 8, axis=1).repeat(8, axis=0).astype(np.uint8))
    kind = "TIFF" if mode in ("CMYK", "YCbCr", "RGBX", "PA") else "PNG"
    rgb = black_white.convert("RGB")
    through_rgb = rgb.convert("P").convert("PA") if mode == "PA" else rgb.convert(mode)
    pixels = decode_picture(encode(through_rgb, kind))
    assert np.abs(pixels.astype(int) - np.asarray(rgb)).max() <= 1


def test_adobe_cmyk_jpeg_is_not_inverted(encode: Encode) -> None:
    pixels = decode_picture(encode(Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK"), "JPEG"))
    np.testing.assert_allclose(pixels[8, 8], [200, 40, 40], atol=6)


def test_sixteen_bits_are_scaled_and_rounded(encode: Encode) -> None:
    values = np.array([[0, 128, 129, 257, 32767, 65278, 65407, 65535]], dtype=np.uint16)
    expected = [0, 0, 1, 1, 127, 254, 255, 255]  # 32767 / 257 = 127.498
    for kind in ("PNG", "TIFF", "PPM"):
        pixels = decode_picture(encode(Image.fromarray(values), kind))
        np.testing.assert_array_equal(pixels[0], np.repeat(np.array(expected)[:, None], 3, axis=1), err_msg=kind)
    big_endian = Image.frombytes("I;16B", (8, 1), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode_picture(encode(big_endian, "TIFF"))[0, :, 0], expected)


def test_sixteen_bit_colour_png() -> None:
    """Pillow cannot write one, so it is put together by hand."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    line = b"\0" + struct.pack(">6H", 65535, 0, 32896, 0, 65535, 257)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(line)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode_picture(data)[0], [[255, 0, 128], [0, 255, 1]])


@pytest.mark.parametrize("values", [np.array([[-1, 5]], np.int32), np.array([[0, 70000]], np.int32)])
def test_wide_integers_without_a_known_range_are_refused(values: np.ndarray, encode: Encode) -> None:
    with pytest.raises(UnreadablePictureError, match="not within 0 and 65535"):
        decode_picture(encode(Image.fromarray(values), "TIFF"))


def test_floating_point_of_0_to_1_is_scaled_and_any_other_is_refused(encode: Encode) -> None:
    values = np.array([[0, 0.25, 0.501, 1]], np.float32)
    np.testing.assert_array_equal(decode_picture(encode(Image.fromarray(values), "TIFF"))[0, :, 0], [0, 64, 128, 255])
    for bad in (1.5, -0.1, np.nan, np.inf):
        values[0, 1] = bad
        with pytest.raises(UnreadablePictureError, match="floating-point pixels are not within 0 and 1"):
            decode_picture(encode(Image.fromarray(values), "TIFF"))


def test_alpha_is_laid_on_white(encode: Encode) -> None:
    rgba = Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8), "RGBA")
    np.testing.assert_array_equal(decode_picture(encode(rgba))[0], [[255, 0, 0], [255, 255, 255], [127, 127, 127]])


def test_palette_with_transparency_is_laid_on_white(encode: Encode) -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    np.testing.assert_array_equal(decode_picture(encode(palette))[0], [[10, 20, 30], [200, 0, 0], [0, 0, 255]])
    one_index = decode_picture(encode(palette, transparency=1))
    np.testing.assert_array_equal(one_index[0], [[10, 20, 30], [255, 255, 255], [0, 0, 255]])
    per_index = decode_picture(encode(palette, transparency=bytes([255, 255, 0])))
    np.testing.assert_array_equal(per_index[0], [[10, 20, 30], [200, 0, 0], [255, 255, 255]])
    np.testing.assert_array_equal(decode_picture(encode(palette, "GIF", transparency=2))[0, 2], [255, 255, 255])


def test_transparent_colour_of_rgb_and_grey_is_white(encode: Encode) -> None:
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    np.testing.assert_array_equal(decode_picture(encode(rgb, transparency=(1, 2, 3)))[0], [[255] * 3, [4, 5, 6]])
    grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    np.testing.assert_array_equal(decode_picture(encode(grey, transparency=9))[0], [[7] * 3, [255] * 3])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str, photo: Photo, encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(64, 40), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    pixels = decode_picture(data)
    assert pixels.shape == ((64, 40, 3) if orientation >= 5 else (40, 64, 3))
    np.testing.assert_array_equal(pixels, np.asarray(upright))
    shrunk = decode_picture(data, side_px=20)
    assert shrunk.shape == ((32, 20, 3) if orientation >= 5 else (20, 32, 3))
    # Turned before or after shrinking: the filters' integer rounding, and JPEG's own halving, differ by a few levels.
    assert np.abs(shrunk.astype(int) - np.asarray(upright.resize(shrunk.shape[1::-1]))).mean() < 4


def test_nonsense_in_exif_is_ignored(photo: Photo, encode: Encode) -> None:
    plain = photo(24, 16)
    expected = decode_picture(encode(plain, "JPEG"))
    wrong_value = Image.Exif()
    wrong_value[0x0112] = 77
    for exif in (wrong_value.tobytes(), b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12", b"Exif\0\0garbage"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(decode_picture(encode(plain, "JPEG", exif=exif)), expected)


def test_first_frame_of_an_animation(encode: Encode) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode_picture(data)[0, 0].tolist() == [255, 0, 0], kind


@pytest.mark.parametrize(
    ("size", "side_px", "expected"),
    [
        ((400, 300), 192, (256, 192)),
        ((300, 400), 192, (192, 256)),
        ((1201, 1200), 100, (100, 100)),
        ((3000, 30), 192, (3000, 30)),  # the shorter side decides, and is never enlarged
        ((3000, 30), 1, (100, 1)),
        ((16, 16), 16, (16, 16)),
        ((8, 8), 192, (8, 8)),
    ],
)
def test_shorter_side_shrinks_and_never_grows(
    size: tuple[int, int], side_px: int, expected: tuple[int, int], photo: Photo, encode: Encode
) -> None:
    for kind in ("PNG", "JPEG"):
        height, width, _ = decode_picture(encode(photo(*size), kind), side_px).shape
        assert (width, height) == expected, kind


def test_jpeg_halved_while_decoded_looks_the_same(photo: Photo, encode: Encode) -> None:
    data = encode(photo(1600, 1200), "JPEG", quality=90)
    whole = Image.fromarray(decode_picture(data)).resize((256, 192), Image.Resampling.BILINEAR)
    difference = np.abs(decode_picture(data, side_px=192).astype(int) - np.asarray(whole))
    assert difference.mean() < 1  # of 255 levels: both are averages over the same pixels
    assert difference.max() < 12


def test_shrinking_is_antialiased(encode: Encode) -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (200, 100)))
    pixels = decode_picture(encode(stripes), side_px=25)
    assert np.abs(pixels[:, 1:-1].astype(int) - 128).max() < 12  # one-pixel stripes become grey, not other stripes


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000"])
def test_truncated_files_are_refused_with_a_short_reason(kind: str, photo: Photo, encode: Encode) -> None:
    data = encode(photo(64, 64), kind)
    for part in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(UnreadablePictureError) as caught:
            decode_picture(data[: int(len(data) * part)])
        reason = str(caught.value)
        assert 0 < len(reason) < 260
        assert "\n" not in reason
        assert "0x" not in reason  # no addresses: the same reason on every run


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"a text that somebody named .jpg\n" * 40, "not a picture of a known format"),
        (b"\0" * 1000, "not a picture of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not a picture of a known format"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadablePictureError, match=reason):
        decode_picture(data)


def test_too_large_to_decode_is_refused_before_decoding(encode: Encode) -> None:
    data = encode(Image.new("1", (10_000, 9_100)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnreadablePictureError, match="10000 x 9100 px are more than 90 million"):
            decode_picture(data, side_px=64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_damaged_bytes_give_a_picture_or_a_reason(kind: str, photo: Photo, encode: Encode) -> None:
    """Nothing else: no exception of a decoder's insides, and the same answer twice."""
    data = np.frombuffer(encode(photo(40, 30), kind), dtype=np.uint8)
    random = np.random.Generator(np.random.Philox(key=7))

    def answer(damaged: bytes) -> str | bytes:
        try:
            return decode_picture(damaged, side_px=16).tobytes()
        except UnreadablePictureError as error:
            return str(error)

    for _ in range(60):
        damaged = data.copy()
        places = random.integers(0, min(len(data), 400), random.integers(1, 6))
        damaged[places] = random.integers(0, 256, len(places))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert answer(damaged.tobytes()) == answer(damaged.tobytes())
