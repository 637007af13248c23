"""A table opens at once, keeps no pixels in memory, and cannot be written to."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_source import MemorySource
from PIL import Image

from trainables.data.packing import pack
from trainables.data.picture import Picture
from trainables.data.sources import open_source
from trainables.data.table import ImageTable
from trainables.errors import InputError

Folder = Callable[..., Path]
Encode = Callable[..., bytes]


@pytest.fixture
def table(folder: Folder, tmp_path: Path) -> ImageTable:
    folder("x/train", ants=3, bees=2, wasps=2)
    root = folder("x/val", ants=1, bees=1).parent
    return ImageTable.open(pack(open_source(str(root)), tmp_path / "t", side_px=12).path)


def digest_of_all(table: ImageTable) -> str:
    digest = hashlib.sha256()
    for row in range(len(table)):
        digest.update(table.image(row).permute(1, 2, 0).numpy().tobytes())
    return digest.hexdigest()


def test_columns(table: ImageTable) -> None:
    assert len(table) == 9
    assert table.ids.dtype == "S64"
    assert table.ids.shape == (9,)
    assert table.id_of(3) == table.ids[3].decode()
    assert table.labels.dtype == np.int64
    assert table.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 0, 1]
    assert table.sides.tolist() == ["train"] * 7 + ["val"] * 2
    assert table.names[7] == "val/ants/000.png"


def test_images_are_the_callers_own(table: ImageTable) -> None:
    images = [table.image(row) for row in range(len(table))]
    assert all(image.dtype == torch.uint8 and image.shape == (3, 12, 15) for image in images)
    assert all(image.permute(1, 2, 0).is_contiguous() for image in images)
    before = digest_of_all(table)
    images[0].zero_()
    assert table.image(0).sum() > 0
    assert digest_of_all(table) == digest_of_all(ImageTable.open(table.path)) == before


def test_a_table_cut_short_while_it_is_open_is_an_error_and_no_picture(table: ImageTable) -> None:
    [path] = table.path.glob("*.arrow")
    os.truncate(path, 1000)
    with pytest.raises(OSError, match="cut short while it was open") as caught:
        table.image(8)
    assert caught.value.filename == str(table.path), "what is said of it names the place"


def _mapped_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what is in memory")
def test_pictures_that_were_read_stay_nowhere(encode: Encode, tmp_path: Path) -> None:
    # Most kernels map 64 kB around a page that is missing, and some 2 MiB.
    noise = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (200, 64, 64, 3), dtype=np.uint8)
    pixels = np.repeat(np.repeat(noise, 5, axis=1), 5, axis=2)
    pictures = [
        Picture(f"{number:03d}", "ab"[number % 2], None, lambda large=large: encode(Image.fromarray(large), "BMP"))
        for number, large in enumerate(pixels)
    ]
    table = ImageTable.open(pack(MemorySource(pictures), tmp_path, side_px=320).path)
    assert table.image(0).max() == 255  # loads what looking at one takes
    before = _mapped_bytes()
    assert sum(int(table.image(row).max()) for row in range(len(table))) > 250 * len(table)
    assert _mapped_bytes() - before < 20e6
    assert len(table.names) == len(table.source_groups) == len(table)
    assert _mapped_bytes() - before < 20e6


def test_pickled_as_its_path(table: ImageTable) -> None:
    data = pickle.dumps(table)
    assert len(data) < 500
    again = pickle.loads(data)
    assert again.fingerprint == table.fingerprint
    assert digest_of_all(again) == digest_of_all(table)


def test_other_processes_see_the_same(table: ImageTable) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(digest_of_all, (table,)) == digest_of_all(table)


def test_opens_by_path_text_or_uri(table: ImageTable) -> None:
    for place in (table.path, str(table.path), table.path.as_uri()):
        assert ImageTable.open(place).fingerprint == table.fingerprint


def test_rows_of_some_classes_in_a_given_order(table: ImageTable) -> None:
    rows, labels = table.rows_of(["wasps", "ants"])
    assert rows.tolist() == [0, 1, 2, 5, 6, 7]
    assert labels.tolist() == [1, 1, 1, 0, 0, 1]
    assert rows.dtype == labels.dtype == np.int64
    every_row, every_label = table.rows_of(table.class_names)
    assert every_row.tolist() == list(range(9))
    np.testing.assert_array_equal(every_label, table.labels)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ants", "bee"], "class 'bee': the pictures have no such class: did you mean 'bees'"),
        (["xyz"], "there are ants, bees, wasps"),
        (["ants", "ants"], "named twice"),
    ],
)
def test_unknown_and_repeated_classes_are_refused(table: ImageTable, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        table.rows_of(names)


def test_missing_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not there: pack the pictures again"):
        ImageTable.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="copy the table to a local disk"):
        ImageTable.open("s3://bucket/table")


def test_opening_takes_milliseconds(tmp_path: Path) -> None:
    path = pack(open_source("digits"), tmp_path, side_px=8).path
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert len(ImageTable.open(path)) == 1797
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.05  # about 1 ms on a quiet machine
