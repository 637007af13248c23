"""Files behind a storage URI are whole or not there, and a folder is complete when its manifest is."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs
import pytest
from fsspec.implementations.local import LocalFileSystem

from trainables.files import storage
from trainables.files.storage import fetch_file, join, make_durable, publish_files, read_bytes, write_bytes


class FailingStorage(LocalFileSystem):
    """Loses its connection while a file whose name holds `word` is written."""

    word = ".arrow"
    cachable = False

    def _open(self, path: str, mode: str = "rb", **options: object) -> object:
        file = super()._open(path, mode, **options)
        if "w" in mode and self.word in path:
            file.write(b"half")
            file.close()
            raise ConnectionError("the storage is away")
        return file


@pytest.mark.parametrize(
    ("uri", "below"),
    [
        ("/home/thaw/", "/home/thaw/a/b"),
        ("/what?/thaw", "/what?/thaw/a/b"),
        ("s3://bucket/thaw", "s3://bucket/thaw/a/b"),
        ("s3://bucket/thaw/?endpoint_override=host:9000", "s3://bucket/thaw/a/b?endpoint_override=host:9000"),
    ],
)
def test_places_below_a_path_or_uri(uri: str, below: str) -> None:
    assert join(uri, "a", "b") == below


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_bytes_behind_a_uri_come_back_and_are_replaced_whole(bucket: Path, bucket_uri: str) -> None:
    uri = join(bucket_uri, "trials", "0001", "last.ckpt")
    with pytest.raises(FileNotFoundError):
        read_bytes(uri)
    write_bytes(uri, b"one")
    write_bytes(uri, b"second")
    assert read_bytes(uri) == b"second"
    assert files_in(bucket) == {"trials/0001/last.ckpt"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "images.arrow").write_bytes(b"pixels" * 1000)
    (folder / "manifest.json").write_bytes(b"{}")
    (folder / "left-over.partial").write_bytes(b"not asked for")
    return folder


NAMES = ["images.arrow", "manifest.json"]


def test_a_folder_is_published_once(table: Path, bucket: Path, bucket_uri: str) -> None:
    assert publish_files(table, NAMES, bucket_uri)
    assert files_in(bucket) == set(NAMES)
    assert (bucket / "images.arrow").read_bytes() == (table / "images.arrow").read_bytes()
    (bucket / "images.arrow").touch()
    before = (bucket / "images.arrow").stat().st_mtime_ns
    assert not publish_files(table, NAMES, bucket_uri)
    assert (bucket / "images.arrow").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["images.arrow", "manifest.json"])
def test_what_was_damaged_or_has_changed_is_published_again(
    table: Path, bucket: Path, bucket_uri: str, damage: str
) -> None:
    publish_files(table, NAMES, bucket_uri)
    # A file that lost its end; a manifest of the same length with another content.
    (bucket / damage).write_bytes(b"[]" if damage == "manifest.json" else b"pix")
    assert publish_files(table, NAMES, bucket_uri)
    assert all((bucket / name).read_bytes() == (table / name).read_bytes() for name in NAMES)


def test_an_interrupted_upload_leaves_nothing_that_looks_complete(
    table: Path, bucket: Path, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = storage.open_filesystem
    failing = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(FailingStorage()))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "open_filesystem", lambda uri: (failing, working(uri)[1]))
        with pytest.raises(ConnectionError):
            publish_files(table, NAMES, bucket_uri)
    assert not {"images.arrow", "manifest.json"} & files_in(bucket)
    assert publish_files(table, NAMES, bucket_uri)
    assert (bucket / "images.arrow").read_bytes() == (table / "images.arrow").read_bytes()


class Puts:
    """An object store as `write_bytes` sees it: it can put, and nothing else."""

    type_name = "s3"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    @contextlib.contextmanager
    def open_output_stream(self, name: str) -> Iterator[io.BytesIO]:
        stream = io.BytesIO()
        yield stream
        self.objects[name] = stream.getvalue()


def test_an_object_store_gets_one_put_and_no_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """A put is atomic there, and a move would be a second copy of everything."""
    store = Puts()
    monkeypatch.setattr(storage, "open_filesystem", lambda uri: (store, uri.removeprefix("s3://")))
    write_bytes("s3://bucket/thaw/last.ckpt", b"state")
    assert store.objects == {"bucket/thaw/last.ckpt": b"state"}


@pytest.mark.parametrize(
    "uri", ["s3://bucket/thaw?region=eu-west-1", "gs://bucket/thaw", "abfs://box@account.dfs/thaw"]
)
def test_the_clouds_put_whole_files(uri: str) -> None:
    filesystem, _ = storage.open_filesystem(uri)
    assert filesystem.type_name in storage._OBJECT_STORES


def test_a_file_is_fetched_to_a_path(table: Path, bucket_uri: str, tmp_path: Path) -> None:
    publish_files(table, NAMES, bucket_uri)
    fetch_file(join(bucket_uri, "images.arrow"), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (table / "images.arrow").read_bytes()
    with pytest.raises(FileNotFoundError):
        fetch_file(join(bucket_uri, "nothing"), tmp_path / "other")


def test_large_files_replace_each_other_whole_and_leave_nothing_open(tmp_path: Path) -> None:
    """What the disk has to do for them is done in a thread, for one file at a time."""
    path = tmp_path / "large"
    for number in range(20):
        content = bytes([number]) * (3 << 20)
        write_bytes(str(path), content[:100], content[100:])
        assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["large"]
    deadline = time.monotonic() + 30
    while any(str(tmp_path) in target for target in _open_files()):
        assert time.monotonic() < deadline, "a file stays open"
        time.sleep(0.02)


@pytest.mark.parametrize("num_bytes", [100, 3 << 20])
def test_a_disk_that_is_full_only_at_the_close_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    """As network file systems are."""
    path = tmp_path / "file"
    write_bytes(str(path), b"whole")

    class Full(io.FileIO):
        def close(self) -> None:
            is_first = not self.closed
            super().close()
            if is_first:
                raise OSError(errno.EDQUOT, "quota exceeded")

    monkeypatch.setattr(Path, "open", lambda self, mode: Full(self, mode.replace("b", "")))
    with pytest.raises(OSError, match="quota exceeded"):
        write_bytes(str(path), bytes(num_bytes))
    monkeypatch.undo()
    assert path.read_bytes() == b"whole"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_the_disk_did_not_take_is_not_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "large")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "disk failed")

    monkeypatch.setattr(os, "fsync", broken)
    write_bytes(path, bytes(3 << 20))
    with pytest.raises(OSError, match="disk failed"):
        make_durable(path)
    monkeypatch.undo()
    with pytest.raises(OSError, match="disk failed"):
        make_durable(path)  # which the kernel says only once
    write_bytes(path, bytes(3 << 20))
    make_durable(path)


def _open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return found
