"""Parts that are written while the next ones are computed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from store_support import NUM_ROWS, SHAPE, all_rows, make_features, make_key, make_store

from trainables.features import filling
from trainables.features.filling import parts_together
from trainables.features.layout import find_shards

real_write = filling.write_shard


class Gate:
    """A disk that is as slow as the test wants it to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open, self.error, self.threads = threading.Event(), None, set[str]()
        monkeypatch.setattr(filling, "write_shard", self._write)

    def _write(self, folder: Path, plan: Any, number: int, words_RD: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        assert self.is_open.wait(30)
        if self.error is not None:
            raise self.error
        return real_write(folder, plan, number, words_RD)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def test_the_caller_goes_on_while_a_part_is_written(tmp_path: Path, gate: Gate) -> None:
    store, key = make_store(tmp_path), make_key()
    features = make_features(key)
    with store.fill(key, NUM_ROWS, SHAPE) as writer:
        assert writer.plan.num_shards == 3
        parts = writer.parts()
        first = next(parts)
        writer.put_behind(first, features[first.first : first.stop])
        assert writer.is_writing(first.number)
        second = next(parts)
        assert second.number != first.number
        assert not writer.try_claim(first.number), "under way"
        assert not find_shards(tmp_path / key.digest())
        gate.is_open.set()
        writer.put_behind(second, features[second.first : second.stop])
        for part in parts:
            writer.put_behind(part, features[part.first : part.stop])
    assert all(name.startswith("features") for name in gate.threads)
    assert writer.rows_written == NUM_ROWS
    assert torch.equal(all_rows(store, key), features)  # type: ignore[arg-type]
    assert not list((tmp_path / key.digest()).glob("*.lease"))


def test_a_wrong_shape_is_refused_at_once(tmp_path: Path) -> None:
    store, key = make_store(tmp_path), make_key()
    with store.fill(key, NUM_ROWS, SHAPE) as writer, pytest.raises(ValueError, match="was promised"):
        writer.put_behind(next(writer.parts()), torch.zeros(3, *SHAPE))


def test_a_full_disk_ends_storing_without_an_error(tmp_path: Path, gate: Gate) -> None:
    store, keys = make_store(tmp_path), [make_key(), make_key(input_size_px=96)]
    gate.error = OSError(28, "No space left on device")
    gate.is_open.set()
    writers = [store.fill(key, NUM_ROWS, SHAPE) for key in keys]
    handed_out = 0
    for part, wanting in parts_together(writers):
        handed_out += 1
        for writer in wanting:
            writer.put_behind(part, make_features(writer.plan.key)[part.first : part.stop])
    for writer in writers:
        writer.close()
        assert not writer.is_on
    assert handed_out <= 2, "one part is under way when the next is asked for"
    assert not store.storing.is_on
    assert store.entries() == []


def test_another_error_reaches_the_caller_and_leaves_no_claim(tmp_path: Path, gate: Gate) -> None:
    store, key = make_store(tmp_path), make_key()
    gate.error = RuntimeError("a mistake")
    gate.is_open.set()

    def fill() -> None:
        with store.fill(key, NUM_ROWS, SHAPE) as writer:
            for part in writer.parts():
                writer.put_behind(part, make_features(key)[part.first : part.stop])

    with pytest.raises(RuntimeError, match="a mistake"):
        fill()
    gate.error = None
    fill()
    assert torch.equal(all_rows(store, key), make_features(key))  # type: ignore[arg-type]
