"""The journal keeps whole records through torn writes, and tells the trials back."""

from __future__ import annotations

import errno
import itertools
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from disks import fill

from trainables.errors import InputError
from trainables.files.outages import StorageAwayError
from tuner.records.journal import Journal, iterate_from, read_records, read_trials


def _clock():
    return map(float, itertools.count(1_700_000_000)).__next__


def _epoch(journal: Journal, number: int, epoch: int, accuracy: float) -> None:
    journal.append("epoch", number=number, epoch=epoch, metrics={"val/accuracy": accuracy})


def test_records_come_back_in_order_with_their_times(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    with Journal.open(path, _clock()) as journal:
        first = journal.append("sweep", name="s", params={"source": Path("a/b"), "classes": ("x", "y")})
        second = journal.append("trial", number=np.int64(3), params={"lr": np.float32(0.5), "clip": None})
        assert journal.records() == [first, second]
    assert first == {
        "event": "sweep",
        "time": 1_700_000_000.0,
        "name": "s",
        "params": {"source": "a/b", "classes": ["x", "y"]},
    }
    assert second["time"] == 1_700_000_001.0
    assert second["number"] == 3
    assert second["params"] == {"lr": 0.5, "clip": None}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [first, second]


def test_opening_again_appends(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for number in range(3):
        with Journal.open(path) as journal:
            journal.append("trial", number=number, params={})
    assert [record["number"] for record in read_records(path)] == [0, 1, 2]


@pytest.mark.parametrize("torn", [b'{"event":"epo', b"\x00\x00\x00", b'{"event":"epoch","ti\n', b"\x00\x00\n"])
def test_a_torn_last_line_is_ignored_and_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        journal.append("trial", number=0, params={})
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(read_records(path)) == 1
    with Journal.open(path) as journal:
        assert path.read_bytes() == whole
        _epoch(journal, 0, 1, 0.5)
    assert [record["event"] for record in read_records(path)] == ["trial", "epoch"]


def test_damage_before_the_end_is_an_error_that_says_where(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        for number in range(3):
            journal.append("trial", number=number, params={})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"#" + lines[1] + lines[2])
    with pytest.raises(InputError, match=f"at byte {len(lines[0])} is damaged; restore"):
        read_records(path)
    with pytest.raises(InputError, match="damaged"):
        Journal.open(path)


def test_reading_goes_on_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        journal.append("trial", number=0, params={})
        _, offset = list(iterate_from(path, 0))[-1]
        assert list(iterate_from(path, offset)) == []
        _epoch(journal, 0, 1, 0.5)
        ((record, end),) = iterate_from(path, offset)
    assert record["event"] == "epoch"
    assert end == path.stat().st_size


def test_only_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    attempt = "import pathlib, sys, tuner.records.journal as j; j.Journal.open(pathlib.Path(sys.argv[1])).close()"
    with Journal.open(path) as journal:
        journal.append("trial", number=0, params={})
        second = subprocess.run([sys.executable, "-c", attempt, str(path)], capture_output=True, text=True, check=False)
    assert "InputError" in second.stderr
    assert "running in another process" in second.stderr
    third = subprocess.run([sys.executable, "-c", attempt, str(path)], capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert len(read_records(path)) == 1


def test_unknown_events_outcomes_and_values_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        with pytest.raises(ValueError, match="'epcoh' is none of"):
            journal.append("epcoh", number=0)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="outcome: 'fine' is none of"):
            journal.append("end", number=0, outcome="fine")
        with pytest.raises(TypeError, match="not JSON serializable"):
            journal.append("trial", number=0, params={"lr": object()})
    assert path.read_bytes() == b""


def test_trials_are_told_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        journal.append("sweep", name="s", params={})
        journal.append("trial", number=1, params={"lr": 0.1})
        journal.append("trial", number=0, params={"lr": 0.2})
        journal.append("baseline", number=90, name="head_only", params={})
        _epoch(journal, 1, 1, 0.5)
        _epoch(journal, 90, 1, 0.4)
        _epoch(journal, 0, 1, math.nan)
        _epoch(journal, 1, 2, 0.6)
        journal.append("end", number=0, outcome="diverged", reason="loss is not finite")
        journal.append("end", number=1, outcome="completed", metrics={"time/trial_s": 2.5})
        journal.append("end", number=90, outcome="completed")
    zero, one = read_trials(path)
    assert (zero.number, zero.params, zero.outcome, zero.reason) == (0, {"lr": 0.2}, "diverged", "loss is not finite")
    assert math.isnan(zero.epochs[0]["val/accuracy"])
    assert (one.number, one.outcome, one.reason, one.metrics) == (1, "completed", None, {"time/trial_s": 2.5})
    assert one.epochs == ({"val/accuracy": 0.5, "epoch": 1}, {"val/accuracy": 0.6, "epoch": 2})


def test_an_interrupted_trial_is_open_again_and_its_later_report_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        journal.append("trial", number=0, params={"lr": 0.2})
        _epoch(journal, 0, 1, 0.5)
        _epoch(journal, 0, 2, 0.6)
        journal.append("end", number=0, outcome="interrupted", reason="Ctrl-C")
    assert read_trials(path)[0].outcome is None
    with Journal.open(path) as journal:
        journal.append("trial", number=0, params={"lr": 0.2})
        assert read_trials(path)[0].reason is None
        _epoch(journal, 0, 2, 0.7)
        _epoch(journal, 0, 3, 0.8)
        journal.append("end", number=0, outcome="stopped_early")
    (trial,) = read_trials(path)
    assert trial.outcome == "stopped_early"
    assert [epoch["val/accuracy"] for epoch in trial.epochs] == [0.5, 0.7, 0.8]


def test_a_full_disk_is_waited_for(tmp_path: Path, mount: Callable[[Path, str], None]) -> None:
    mount(tmp_path, "size=64k")
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        journal.append("sweep", name="s")
        filler = fill(tmp_path)
        freeing = threading.Timer(0.5, filler.unlink)
        freeing.start()
        journal.append("finished", reason="x" * 5000)
        freeing.join()
        assert [record["event"] for record in journal.records()] == ["sweep", "finished"]


def test_a_disk_that_stays_full_ends_the_journal(
    tmp_path: Path, mount: Callable[[Path, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after a lost record is refused too, also when there is room again: it would tell another story."""
    mount(tmp_path, "size=64k")
    monkeypatch.setattr("trainables.files.outages.PATIENCE_S", 0.0)
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        journal.append("sweep", name="s")
        before = path.read_bytes()
        filler = fill(tmp_path)
        for _ in range(2):
            with pytest.raises(StorageAwayError, match=r"journal\.jsonl cannot be written .*No space.*make room"):
                journal.append("finished", reason="x" * 5000)
            assert path.read_bytes() == before
            filler.unlink(missing_ok=True)
    with Journal.open(path) as journal:
        journal.append("finished", reason="")
        assert [record["event"] for record in journal.records()] == ["sweep", "finished"]


def test_a_record_that_could_not_be_forced_out_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")])

    def force(_: int) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure

    monkeypatch.setattr("trainables.files.outages.time.sleep", lambda _: None)
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        journal.append("sweep", name="s")
        monkeypatch.setattr("tuner.records.journal.os.fsync", force)
        journal.append("finished", reason="")
    assert [record["event"] for record in read_records(tmp_path / "journal.jsonl")] == ["sweep", "finished"]
    assert next(failures, None) is None
