"""A store behind the store: read through, written behind, and done without when it is away."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pyarrow.fs
import pytest
from store_support import (
    NUM_ROWS,
    all_rows,
    entry,
    fill,
    flip_byte,
    make_features,
    make_key,
    make_store,
    script,
    torch,
)

from trainables.errors import InputError
from trainables.features import shared


def test_one_node_computes_for_all(tmp_path: Path) -> None:
    key, uri = make_key(), (tmp_path / "shared").as_uri()
    one = make_store(tmp_path / "one", shared_uri=uri)
    fill(one, key)
    assert one.close()
    assert {path.name for path in (tmp_path / "shared" / key.digest()).iterdir()} == {
        path.name for path in entry(one, key).iterdir() if path.suffix == ".arrow" or path.name == "manifest.json"
    }
    other = make_store(tmp_path / "other", shared_uri=str(tmp_path / "shared"))
    assert torch.equal(all_rows(other, key), make_features(key))
    assert other.open(make_key(dtype="bf16")) is None
    shutil.rmtree(tmp_path / "shared")
    assert torch.equal(all_rows(make_store(tmp_path / "other"), key), make_features(key))


def test_what_is_shared_is_not_evicted_before_it_is_copied_and_comes_back_after(tmp_path: Path) -> None:
    key, uri = make_key(), (tmp_path / "shared").as_uri()
    store = make_store(tmp_path / "one", shared_uri=uri)
    fill(store, key)
    assert store.close()
    assert store.clear().num_removed == 1
    assert not store.has(key)
    assert torch.equal(all_rows(store, key), make_features(key))


def test_what_was_filled_before_there_was_a_shared_store_is_copied_when_it_is_read(tmp_path: Path) -> None:
    """Or what a lane had no time to copy before it ended."""
    key = make_key()
    fill(make_store(tmp_path / "one"), key)
    store = make_store(tmp_path / "one", shared_uri=(tmp_path / "shared").as_uri())
    all_rows(store, key)
    assert store.close()
    assert (tmp_path / "shared" / key.digest() / "manifest.json").is_file()


def test_a_damaged_local_entry_is_fetched_again(tmp_path: Path) -> None:
    key = make_key()
    store = make_store(tmp_path / "one", shared_uri=(tmp_path / "shared").as_uri())
    fill(store, key)
    assert store.close()
    flip_byte(next(entry(store, key).glob("*.arrow")), -600)
    assert torch.equal(all_rows(store, key), make_features(key))


@pytest.mark.parametrize("name", ["*.arrow", "manifest.json"])
def test_damage_in_the_shared_store_is_not_copied_and_is_mended(tmp_path: Path, name: str) -> None:
    key, uri = make_key(), (tmp_path / "shared").as_uri()
    one = make_store(tmp_path / "one", shared_uri=uri)
    fill(one, key)
    assert one.close()
    flip_byte(next((tmp_path / "shared" / key.digest()).glob(name)), -100)
    other = make_store(tmp_path / "other", shared_uri=uri)
    assert other.open(key) is None
    assert fill(other, key) > 0
    assert other.close()
    third = make_store(tmp_path / "third", shared_uri=uri)
    assert torch.equal(all_rows(third, key), make_features(key))


def test_a_half_copied_entry_is_not_read(tmp_path: Path) -> None:
    key, uri = make_key(), (tmp_path / "shared").as_uri()
    one = make_store(tmp_path / "one", shared_uri=uri)
    fill(one, key)
    assert one.close()
    next((tmp_path / "shared" / key.digest()).glob("*.arrow")).unlink()
    other = make_store(tmp_path / "other", shared_uri=uri)
    assert other.open(key) is None
    assert fill(other, key) > 0
    assert torch.equal(all_rows(other, key), make_features(key))


def test_unreachable_storage_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "shared").write_text("a file, not a folder")
    store = make_store(tmp_path / "one", shared_uri=(tmp_path / "shared" / "below").as_uri())
    for dtype in ("fp32", "bf16"):
        key = make_key(dtype=dtype)
        assert store.open(key) is None
        assert fill(store, key) == NUM_ROWS
        assert torch.equal(all_rows(store, key), make_features(key))
        assert store.close()
    [record] = caplog.records
    assert "the local cache goes on alone" in record.message


def test_an_object_store_that_nobody_serves(tmp_path: Path) -> None:
    # In a process of its own: pyarrow's S3 has threads that outlive the test.
    body = f"""
import logging, time
logging.basicConfig(stream=sys.stdout, format='LOG %(message)s')
uri = 's3://key:secret@bucket/features?endpoint_override=127.0.0.1:9&scheme=http&region=eu-west-1'
started = time.monotonic()
store, key = make_store(Path({str(tmp_path)!r}), shared_uri=uri, shared_timeout_s=3), make_key()
print(store.open(key), fill(store, key), store.close(), time.monotonic() - started < 30)
"""
    run = subprocess.run(script(body), capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert len([line for line in lines if line.startswith("LOG")]) == 1
    assert lines[-1] == f"None {NUM_ROWS} True True"
    assert "s3://bucket/features" in run.stdout
    assert "secret" not in run.stdout


def test_a_storage_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(shared, "read_bytes", lambda _: time.sleep(5))
    store = make_store(tmp_path / "one", shared_uri=tmp_path.as_uri(), shared_timeout_s=0.2)
    started = time.monotonic()
    assert store.open(make_key()) is None
    assert store.open(make_key(dtype="bf16")) is None
    assert time.monotonic() - started < 2
    assert "no answer within" in caplog.text


def test_a_connection_lost_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    key, uri = make_key(), (tmp_path / "shared").as_uri()
    one = make_store(tmp_path / "one", shared_uri=uri)
    fill(one, key)
    assert one.close()
    other = make_store(tmp_path / "other", shared_uri=uri)

    def lose(*_: object) -> None:
        raise OSError("connection reset")

    monkeypatch.setattr(shared, "_open_input", lose)
    assert other.open(key) is None
    assert "connection reset" in caplog.text
    assert fill(other, key) == NUM_ROWS
    assert torch.equal(all_rows(other, key), make_features(key))


def test_an_unknown_scheme_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cache\.shared_uri: ftpx://host/folder"):
        make_store(tmp_path, shared_uri="ftpx://host/folder")


def test_other_filesystems_of_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = pyarrow.fs._MockFileSystem()
    for module in ("trainables.files.storage", "trainables.features.shared"):
        monkeypatch.setattr(f"{module}.open_filesystem", lambda uri: (memory, uri.partition("://")[2].lstrip("/")))
    key = make_key(dtype="bf16")
    one = make_store(tmp_path / "one", shared_uri="mock://bucket/features")
    fill(one, key)
    assert one.close()
    other = make_store(tmp_path / "other", shared_uri="mock://bucket/features")
    assert torch.equal(all_rows(other, key), make_features(key))
