"""Class folders behind a storage URI: the pictures and sides of the same folder on a disk, and clear refusals.

An object store is stood in for by fsspec's memory behind pyarrow's interface: no folders but those that names imply.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from search_spaces.data_spec import DataSpec
from trainables.config import SplitConfig
from trainables.data import remote_folder
from trainables.data.packing import pack
from trainables.data.sources import as_source, open_source
from trainables.data.table import ImageTable
from trainables.errors import InputError, StorageError
from tuner.paths import HomePaths
from tuner.pictures.dealing import prepare_data

Folder = Callable[..., Path]


class Bucket(pyarrow.fs.FSSpecHandler):
    """Counts how often it is listed; reads slowly, or fails."""

    def __init__(self, store: MemoryFileSystem) -> None:
        super().__init__(store)
        self.num_listings = self.num_reading = self.most_reading = 0
        self.failure: Callable[[str], Exception | None] = lambda path: None
        self._counting = threading.Lock()

    def get_file_info_selector(self, selector: Any) -> Any:
        self.num_listings += 1
        return super().get_file_info_selector(selector)

    def open_input_stream(self, path: str) -> Any:
        with self._counting:
            self.num_reading += 1
            self.most_reading = max(self.most_reading, self.num_reading)
        try:
            time.sleep(0.01)
            if (failure := self.failure(path)) is not None:
                raise failure
            return super().open_input_stream(path)
        finally:
            with self._counting:
                self.num_reading -= 1


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    store = MemoryFileSystem()
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    bucket = Bucket(store)

    def opened(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
        return pyarrow.fs.PyFileSystem(bucket), uri.removeprefix("s3:/")

    monkeypatch.setattr(remote_folder, "open_filesystem", opened)
    yield bucket
    store.store.clear()


def upload(place: Path, bucket: Bucket, name: str = "/bucket/set") -> None:
    for file in sorted(place.rglob("*")):
        if file.is_file():
            bucket.fs.pipe_file(f"{name}/{file.relative_to(place).as_posix()}", file.read_bytes())


def sided(folder: Folder) -> Path:
    for side in ("train", "val"):
        place = folder(f"pictures/{side}", ants=8, bees=8)
    (place.parent / "train" / "ants" / ".hidden.png").write_bytes(b"x")
    (place.parent / "train" / "bees" / "deeper").mkdir()
    (place.parent / "train" / "bees" / "000.png").rename(place.parent / "train" / "bees" / "deeper" / "000.png")
    (place.parent / "notes.txt").write_text("no picture")
    return place.parent


@pytest.mark.parametrize("has_sides", [False, True])
def test_a_bucket_holds_what_the_same_folder_on_a_disk_does(
    has_sides: bool, folder: Folder, bucket: Bucket, tmp_path: Path
) -> None:
    place = sided(folder) if has_sides else folder(ants=8, bees=8)
    upload(place, bucket)
    here, there = open_source(f"folder:{place}"), open_source("folder:s3://bucket/set/")
    shown = [(each.name, each.class_name, each.side) for each in there.pictures()]
    assert shown == [(each.name, each.class_name, each.side) for each in here.pictures()]
    packed = pack(there, tmp_path / "t", side_px=16)
    assert packed.fingerprint == pack(here, tmp_path / "t", side_px=16).fingerprint
    assert bucket.num_listings == 1
    assert 2 < bucket.most_reading <= 16, "pictures are waited for side by side"
    assert pack(open_source("folder:s3://bucket/set"), tmp_path / "t", side_px=16).reused
    bucket.fs.pipe_file("/bucket/set/ants/new.png" if not has_sides else "/bucket/set/val/ants/new.png", b"x")
    assert not pack(open_source("folder:s3://bucket/set"), tmp_path / "t", side_px=16).reused


def test_file_uris_are_read_by_pyarrow_too(folder: Folder, tmp_path: Path) -> None:
    place = folder(ants=12, bees=12)
    (place / "ants" / "broken.png").write_bytes(b"no picture")
    spec = DataSpec(
        source=as_source(place.as_uri()), image_size_px=16, split=SplitConfig(train=0.5, val=0.25, test=0.25)
    )
    assert spec.source == f"folder:{place.as_uri()}"
    data = prepare_data(spec, HomePaths.at(tmp_path / "home"), lambda *_: None)
    assert sum(data.counts["train"].values()) + sum(data.counts["val"].values()) + data.size("test") == 24
    assert [bad.name for bad in data.report.bad_files] == ["ants/broken.png"]
    local = pack(open_source(f"folder:{place}"), tmp_path / "t", side_px=24)
    assert np.array_equal(ImageTable.open(local.path).ids, ImageTable.open(data.report.path).ids)
    (place / "empty").mkdir()
    with pytest.raises(InputError, match="class folder 'empty' is empty"):
        open_source(spec.source).pictures()


def test_what_went_away_is_set_aside_and_storage_that_fails_stops_packing(
    folder: Folder, bucket: Bucket, tmp_path: Path
) -> None:
    upload(folder(ants=8, bees=8), bucket)
    source = open_source("folder:s3://bucket/set")
    source.pictures()
    bucket.fs.rm("/bucket/set/ants/000.png")
    assert [bad.name for bad in pack(source, tmp_path / "t", side_px=16).bad_files] == ["ants/000.png"]
    bucket.failure = lambda path: OSError("timeout\n was reached") if path.endswith("bees/003.png") else None
    with pytest.raises(StorageError) as error:
        pack(open_source("folder:s3://bucket/set"), tmp_path / "t", side_px=16)
    assert "bees/003.png: cannot be reached (timeout was reached)" in str(error.value)
    assert not list((tmp_path / "t").rglob("*.partial"))


def test_mistakes_end_in_one_line(folder: Folder, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(folder(ants=8, bees=8), bucket)
    with pytest.raises(InputError, match="no such folder"):
        open_source("folder:s3://bucket/nowhere")
    with pytest.raises(InputError, match="is a file, not a folder"):
        open_source("folder:s3://bucket/set/ants/000.png")
    with pytest.raises(InputError, match="no class folders there"):
        open_source("folder:s3://bucket/set/ants").pictures()
    bucket.fs.pipe_file("/bucket/half/train/ants/0.png", b"x")
    with pytest.raises(InputError, match="only the folder 'train' stands there"):
        open_source("folder:s3://bucket/half").pictures()

    def refuse(uri: str) -> Any:
        raise OSError(f"When listing {uri}:\n AWS Error ACCESS_DENIED during ListObjectsV2: No response body.")

    monkeypatch.setattr(remote_folder, "open_filesystem", refuse)
    with pytest.raises(InputError) as error:
        open_source("folder:s3://bucket/set")
    assert "\n" not in str(error.value)
    assert "AWS_ACCESS_KEY_ID" in str(error.value)
    monkeypatch.undo()
    with pytest.raises(InputError, match="cannot be reached"):
        open_source("folder:nothing://bucket/set")


def test_addresses_need_no_scheme_on_the_command_line() -> None:
    assert as_source("s3://bucket/set") == "folder:s3://bucket/set"
    assert as_source("parquet:s3://bucket/set") == "parquet:s3://bucket/set"
    assert as_source("photos/parts") == "folder:photos/parts"
    assert as_source("digits") == "digits"
    assert as_source("csv:list.csv") == "csv:list.csv"


def test_an_empty_folder_of_a_side_is_refused_as_a_local_one_is(folder: Folder) -> None:
    place = folder("sided", **{"train/a": 3, "train/b": 3})
    (place / "val").mkdir()
    for uri in (f"folder:{place}", f"folder:{place.as_uri()}"):
        with pytest.raises(InputError, match="its folder for the val side holds no pictures"):
            open_source(uri).pictures()
