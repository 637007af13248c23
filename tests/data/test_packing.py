"""Packing: once, in bounded memory, the same table whoever packs it, and bad files set aside with their reason."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from memory_source import MemorySource
from PIL import Image

from trainables.data import packing
from trainables.data.decoding import decode_picture
from trainables.data.packing import BadFile, pack
from trainables.data.picture import Picture
from trainables.data.sources import open_source
from trainables.data.table import ImageTable
from trainables.data.table_file import BATCH_BYTES, MANIFEST_NAME
from trainables.errors import InputError, StorageError

Folder = Callable[..., Path]
Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]


def files_below(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_rows_are_the_decoded_pictures_in_name_order(folder: Folder, tmp_path: Path) -> None:
    root = folder(bees=3, ants=2)
    seen: list[tuple[int, int]] = []
    report = pack(open_source(str(root)), tmp_path / "t", side_px=12, progress=lambda *step: seen.append(step))
    table = ImageTable.open(report.path)
    assert (report.num_images, report.class_names, report.bad_files) == (5, ("ants", "bees"), ())
    assert seen == [(done, 5) for done in range(1, 6)]
    assert table.names == [
        f"{name}/{number:03d}.png" for name, count in (("ants", 2), ("bees", 3)) for number in range(count)
    ]
    assert table.labels.tolist() == [0, 0, 1, 1, 1]
    for row, name in enumerate(table.names):
        data = (root / name).read_bytes()
        assert table.id_of(row) == hashlib.sha256(data).hexdigest()
        np.testing.assert_array_equal(table.image(row).permute(1, 2, 0).numpy(), decode_picture(data, 12))


def test_an_unchanged_folder_is_not_packed_twice(folder: Folder, tmp_path: Path) -> None:
    root = folder(ants=3, bees=3)
    (root / "ants" / "bad.jpg").write_bytes(b"")
    first = pack(open_source(str(root)), tmp_path / "t", side_px=12)

    def must_not_be_called(done: int, total: int) -> None:
        raise AssertionError("decoded again")

    second = pack(open_source(str(root)), tmp_path / "t", side_px=12, progress=must_not_be_called)
    assert (first.reused, second.reused) == (False, True)
    assert replace(second, reused=False, seconds=0) == replace(first, seconds=0)
    assert second.bad_files == (BadFile("ants/bad.jpg", "the file is empty"),)
    assert not pack(open_source(str(root)), tmp_path / "t", side_px=10).reused
    Image.new("RGB", (9, 9)).save(root / "ants" / "new.png")
    third = pack(open_source(str(root)), tmp_path / "t", side_px=12)
    assert not third.reused
    assert third.num_images == first.num_images + 1
    assert ImageTable.open(first.path).fingerprint == first.fingerprint  # whoever still uses it is not disturbed


def test_fingerprint_names_content_and_not_place_or_time(folder: Folder, tmp_path: Path) -> None:
    root = folder(ants=3, bees=3)
    moved = tmp_path / "some where" / "else"
    shutil.copytree(root, moved)
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    first = pack(open_source(str(root)), tmp_path / "t", side_px=12, num_threads=1)
    second = pack(open_source(str(moved)), tmp_path / "t", side_px=12, num_threads=4)
    assert second.fingerprint == first.fingerprint
    assert second.path != first.path
    contents = [next(report.path.glob("*.arrow")).read_bytes() for report in (first, second)]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("change", ["picture", "class", "side", "side_px"])
def test_fingerprint_changes_with_content(change: str, folder: Folder, tmp_path: Path) -> None:
    folder("x/train", ants=3, bees=3)
    root = folder("x/val", ants=2, bees=2).parent
    before = pack(open_source(str(root)), tmp_path / "t", side_px=12).fingerprint
    if change == "picture":
        Image.new("RGB", (20, 16), "red").save(root / "train" / "ants" / "001.png")
    elif change == "class":
        for side in ("train", "val"):
            (root / side / "bees").rename(root / side / "wasps")
    elif change == "side":
        (root / "val").rename(root / "test")
    after = pack(open_source(str(root)), tmp_path / "t", side_px=10 if change == "side_px" else 12)
    assert after.fingerprint != before


def test_bad_files_are_set_aside_with_reasons_and_the_rest_is_packed(
    folder: Folder, photo: Photo, encode: Encode, tmp_path: Path
) -> None:
    root = folder(ants=3, bees=3)
    ants = root / "ants"
    whole = encode(photo(64, 64), "JPEG")
    broken_exif = encode(photo(64, 64, seed=1), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    (ants / "cut.jpg").write_bytes(whole[:-40])
    (ants / "empty [1].jpg").write_bytes(b"")
    (ants / "text é.jpg").write_text("not a picture")
    (ants / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (ants / "odd exif.jpg").write_bytes(broken_exif)
    (ants / "huge.png").write_bytes(encode(Image.new("1", (10_000, 9_100))))
    report = pack(open_source(str(root)), tmp_path / "t", side_px=32)  # warnings are errors here: Pillow's must be held
    reasons = {bad.name: bad.reason for bad in report.bad_files}
    assert list(reasons) == sorted(reasons)
    assert reasons.pop("ants/cut.jpg").startswith("cannot be decoded: image file is truncated")
    assert reasons == {
        "ants/empty [1].jpg": "the file is empty",
        "ants/gone.jpg": "cannot be read: No such file or directory",
        "ants/huge.png": "10000 x 9100 px are more than 90 million",
        "ants/text é.jpg": "not a picture of a known format",
    }
    table = ImageTable.open(report.path)
    assert len(table) == 7
    assert "ants/odd exif.jpg" in table.names


def test_the_same_picture_under_two_labels_is_set_aside(folder: Folder, tmp_path: Path) -> None:
    root = folder(ants=4, bees=4)
    shutil.copy(root / "ants" / "001.png", root / "bees" / "copy.png")
    shutil.copy(root / "ants" / "002.png", root / "ants" / "twin.png")  # under one label: harmless
    report = pack(open_source(str(root)), tmp_path / "t", side_px=12)
    assert report.bad_files == (
        BadFile("ants/001.png", "the same picture stands under class 'bees' too: bees/copy.png"),
        BadFile("bees/copy.png", "the same picture stands under class 'ants' too: ants/001.png"),
    )
    (root / "ants" / "001.png").unlink()
    (root / "bees" / "copy.png").unlink()
    clean = pack(open_source(str(root)), tmp_path / "t", side_px=12)
    assert clean.bad_files == ()
    assert clean.fingerprint == report.fingerprint  # as if they had never been there
    tables = [ImageTable.open(each.path) for each in (report, clean)]
    assert tables[0].names == tables[1].names
    assert all(tables[0].image(row).equal(tables[1].image(row)) for row in range(len(tables[0])))


def test_nothing_usable_is_refused_and_leaves_nothing_behind(folder: Folder, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for name in ("ants", "bees"):
        (root / name).mkdir(parents=True)
        (root / name / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"none of its 2 files is a usable picture: ants/a\.jpg: not a picture"):
        pack(open_source(str(root)), tmp_path / "t", side_px=12)
    assert files_below(tmp_path / "t") == []


def test_an_interrupted_packing_leaves_nothing_and_the_next_one_works(folder: Folder, tmp_path: Path) -> None:
    root = folder(ants=6, bees=6)

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(open_source(str(root)), tmp_path / "t", side_px=12, progress=interrupt)
    assert files_below(tmp_path / "t") == []
    assert pack(open_source(str(root)), tmp_path / "t", side_px=12).num_images == 12


@pytest.mark.parametrize("damage", ["no manifest", "torn manifest", "other version", "short", "no images", "garbage"])
def test_a_damaged_table_is_packed_anew(damage: str, folder: Folder, tmp_path: Path) -> None:
    source = open_source(str(folder(ants=3, bees=3)))
    report = pack(source, tmp_path / "t", side_px=12)
    manifest, images = report.path / MANIFEST_NAME, next(report.path.glob("*.arrow"))
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif damage == "other version":
        manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    elif damage == "short":
        images.write_bytes(images.read_bytes()[:-100])
    elif damage == "no images":
        images.unlink()
    else:
        images.write_bytes(b"\0" * images.stat().st_size)
    with pytest.raises(InputError, match="pack the pictures again"):
        ImageTable.open(report.path)
    again = pack(source, tmp_path / "t", side_px=12)
    assert not again.reused
    assert again.fingerprint == report.fingerprint == ImageTable.open(again.path).fingerprint
    assert pack(source, tmp_path / "t", side_px=12).reused


def test_unfinished_files_of_killed_packers_are_removed_at_once_and_those_of_living_ones_stay(
    folder: Folder, tmp_path: Path
) -> None:
    source = open_source(str(folder(ants=3, bees=3)))
    path = pack(source, tmp_path / "t", side_px=12).path
    program = f"""
from pathlib import Path
from trainables.data import packing
from trainables.data.sources import open_source
write = packing.TableWriter.append
def half(self, row):
    write(self, row)
    print("writing", flush=True)
    input()
packing.TableWriter.append = half
packing.pack(open_source({source.uri!r}), Path({str(tmp_path / "t")!r}), side_px=12)
"""
    (path / MANIFEST_NAME).unlink()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as packer:
        assert packer.stdout is not None
        assert packer.stdout.readline() == "writing\n"
        elsewhere, old = path / ".table.another-machine.tmp", path / "as-once-named.partial"
        elsewhere.write_bytes(b"half")
        old.write_bytes(b"half")
        os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
        pack(source, tmp_path / "t", side_px=12)
        assert len(list(path.glob(".table.*.tmp"))) == 2  # both may be written to
        packer.kill()
    assert pack(source, tmp_path / "t", side_px=12).reused
    assert list(path.glob(".table.*")) == [elsewhere]
    os.utime(elsewhere, (time.time() - 2 * 24 * 3600,) * 2)
    (path / MANIFEST_NAME).unlink()
    pack(source, tmp_path / "t", side_px=12)
    table, manifest = files_below(path)
    assert (table[:7], manifest) == ("images-", MANIFEST_NAME)


def test_several_packers_at_once_agree(folder: Folder, tmp_path: Path) -> None:
    source = open_source(str(folder(ants=15, bees=15)))
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(pack, source, tmp_path / "t", side_px=12, num_threads=2) for _ in range(4)]
    assert len({run.result().fingerprint for run in runs}) == 1
    assert len(files_below(tmp_path / "t")) == 2
    assert len(ImageTable.open(runs[0].result().path)) == 30


def test_work_under_way_and_record_batches_are_bounded(photo: Photo, encode: Encode, tmp_path: Path) -> None:
    """Memory does not grow with the number of pictures: each is read once, few are under way, batches stay small."""
    data = [encode(photo(512, 512, seed=number), "BMP") for number in range(60)]
    lock = threading.Lock()
    reads: list[int] = []
    ahead: list[int] = []

    def read(number: int) -> bytes:
        with lock:
            reads.append(number)
        if number == 0:
            time.sleep(0.2)  # a slow first picture: the others must not run away
        return data[number]

    def note(done: int, total: int) -> None:
        with lock:
            ahead.append(len(reads) - done)

    pictures = [
        Picture(f"{number:03d}", "ab"[number % 2], None, lambda number=number: read(number)) for number in range(60)
    ]
    report = pack(MemorySource(pictures), tmp_path / "t", side_px=512, num_threads=3, progress=note)
    assert sorted(reads) == list(range(60))
    assert max(ahead) <= 3 * 4
    reader = pa.ipc.open_file(pa.memory_map(str(next(report.path.glob("*.arrow")))))
    sizes = [reader.get_batch(number).column("pixels").nbytes for number in range(reader.num_record_batches)]
    assert len(sizes) == 3  # 60 x 768 KiB, 21 in each
    assert max(sizes) <= BATCH_BYTES + 1024
    for number in range(reader.num_record_batches):
        reader.get_batch(number).validate(full=True)
    table = ImageTable.open(report.path)
    for row in (0, 20, 21, 59):
        np.testing.assert_array_equal(table.image(row).permute(1, 2, 0).numpy(), decode_picture(data[row]))


def test_ids_that_begin_alike_are_told_apart() -> None:
    ids = np.array([b"0" * 8 + tail * 56 for tail in (b"1", b"2", b"1", b"3")] + [b"5" * 64] * 2)
    assert packing._under_two_labels(ids, np.array([0, 1, 0, 0, 2, 2], np.int32)) == set()
    assert packing._under_two_labels(ids, np.array([0, 1, 1, 0, 2, 3], np.int32)) == {"0" * 8 + "1" * 56, "5" * 64}
    assert packing._under_two_labels(ids[:0], np.empty(0, np.int32)) == set()


def test_one_picture_larger_than_a_batch(photo: Photo, encode: Encode, tmp_path: Path) -> None:
    wide = encode(Image.new("RGB", (60_000, 100), "teal"))
    pictures = [
        Picture(name, name, None, lambda data=data: data) for name, data in (("a", wide), ("b", encode(photo(9, 9))))
    ]
    table = ImageTable.open(pack(MemorySource(pictures), tmp_path / "t", side_px=128).path)
    assert [tuple(table.image(row).shape) for row in (0, 1)] == [(3, 100, 60_000), (3, 9, 9)]


def test_a_fault_of_the_program_is_not_taken_for_a_bad_file(tmp_path: Path) -> None:
    def read() -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pack(MemorySource([Picture("a", "a", None, read)]), tmp_path / "t", side_px=8)
    assert files_below(tmp_path / "t") == []


def test_warning_filters_are_left_as_they_were(folder: Folder, tmp_path: Path) -> None:
    before = list(warnings.filters)
    pack(open_source(str(folder(ants=2, bees=2))), tmp_path / "t", side_px=12)
    assert list(warnings.filters) == before


@pytest.mark.shared_data
def test_real_photographs(shared_data: Path, tmp_path: Path) -> None:
    """397 JPEGs, some with spaces and brackets in their names, and one GIF with a palette."""
    source = open_source(str(shared_data / "hymenoptera_data"))
    report = pack(source, tmp_path, side_px=192)
    table = ImageTable.open(report.path)
    assert (len(table), report.class_names, report.bad_files) == (398, ("ants", "bees"), ())
    assert [int((table.sides == side).sum()) for side in ("train", "val", "test")] == [245, 153, 0]
    assert sum(name.endswith(".gif") for name in table.names) == 1
    assert all(min(table.image(row).shape[1:]) <= 192 for row in range(398))
    assert pack(source, tmp_path, side_px=192).reused
    for row in range(0, 398, 40):
        data = (shared_data / "hymenoptera_data" / table.names[row]).read_bytes()
        np.testing.assert_array_equal(table.image(row).permute(1, 2, 0).numpy(), decode_picture(data, 192))


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EMFILE, errno.ENOTCONN])
def test_what_is_no_fault_of_a_file_sets_none_aside(folder: Folder, tmp_path: Path, code: int) -> None:
    def read() -> bytes:
        raise OSError(code, os.strerror(code))

    pictures = [*open_source(str(folder(ants=3))).pictures(), Picture("bees/0.png", "bees", None, read)]
    with pytest.raises(StorageError, match=rf"bees/0\.png: cannot be read \({os.strerror(code)}\), which says nothing"):
        pack(MemorySource(pictures), tmp_path / "t", side_px=16)
    assert files_below(tmp_path / "t") == []


def test_a_check_comes_before_anything_is_read(folder: Folder, tmp_path: Path) -> None:
    def refuse(pictures: Sequence[Picture]) -> None:
        raise InputError(f"{len(pictures)} pictures will not do")

    root = folder(ants=3, bees=2)
    with pytest.raises(InputError, match="5 pictures will not do"):
        pack(open_source(str(root)), tmp_path / "t", side_px=16, check=refuse, progress=lambda *_: pytest.fail("read"))
    assert files_below(tmp_path / "t") == []
    assert pack(open_source(str(root)), tmp_path / "t", side_px=16).num_images == 5
    assert pack(open_source(str(root)), tmp_path / "t", side_px=16, check=refuse).reused


def test_a_disk_that_was_away_for_a_while_leaves_no_table_with_holes(folder: Folder, tmp_path: Path) -> None:
    tries = 0

    def read() -> bytes:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return b"x"

    pictures = [*open_source(str(folder(ants=3))).pictures(), Picture("bees/0.png", "bees", None, read)]
    with pytest.raises(StorageError, match=r"bees/0\.png could not be read \(.*\) and now it can: .* start again"):
        pack(MemorySource(pictures), tmp_path / "t", side_px=16)
    assert files_below(tmp_path / "t") == []


def test_a_disk_that_is_gone_is_no_set_of_bad_files(folder: Folder, tmp_path: Path) -> None:
    root = folder(ants=3, bees=3)
    source = open_source(str(root))

    def goes_away(pictures: Sequence[Picture]) -> None:
        root.rename(tmp_path / "elsewhere")

    with pytest.raises(InputError, match="cannot be listed"):
        pack(source, tmp_path / "t", side_px=16, check=goes_away)
    (tmp_path / "elsewhere").rename(root)
    assert pack(source, tmp_path / "t", side_px=16).num_images == 6
