"""Generated pictures and folders of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photo() -> Callable[..., Image.Image]:
    """Builds a smooth RGB picture of a given size that differs by seed: like a photograph, it survives JPEG."""

    def build(width: int, height: int, seed: int = 0) -> Image.Image:
        coarse = np.random.Generator(np.random.Philox(key=seed)).integers(0, 256, (5, 4, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return build


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encodes a picture as a file's bytes."""

    def build(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    return build


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[..., Image.Image]) -> Callable[..., Path]:
    """Makes a folder of class folders with a number of different pictures each; every call makes other pictures."""
    count = 0

    def build(name: str = "pictures", **numbers: int) -> Path:
        nonlocal count
        for class_name, number in numbers.items():
            place = tmp_path / name / class_name
            place.mkdir(parents=True, exist_ok=True)
            for position in range(number):
                count += 1
                photo(20, 16, seed=count).save(place / f"{position:03d}.png")
        return tmp_path / name

    return build
