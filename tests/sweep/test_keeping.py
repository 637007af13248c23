"""Checkpoints that stay: the best few, and never fewer than one that was read and found whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainables.jobs import BEST_CHECKPOINT, LAST_CHECKPOINT
from trainables.training.checkpoint import Checkpoint, is_whole, save_checkpoint
from tuner.records.journal import TrialRecord
from tuner.search.keeping import Keeper


def ended(number: int, accuracy: float | None, outcome: str = "completed") -> TrialRecord:
    epochs = () if accuracy is None else ({"epoch": 1, "val/accuracy": accuracy, "val/loss": 1.0},)
    return TrialRecord(number, {}, epochs, outcome)


class Disk:
    """Folders of trials, each with both checkpoints."""

    def __init__(self, root: Path, number: int) -> None:
        self.root = root
        for trial in range(number):
            for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
                save_checkpoint(str(self.path(trial, name)), Checkpoint("abc", {"w": torch.full((3,), float(trial))}))

    def path(self, trial: int, name: str = BEST_CHECKPOINT) -> Path:
        return Path(self.directory(trial)) / name

    def directory(self, trial: int) -> str:
        return str(self.root / f"{trial:04d}")

    def left(self, name: str = BEST_CHECKPOINT) -> list[int]:
        return sorted(int(path.parent.name) for path in self.root.glob(f"*/{name}"))


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path, 8)


def keeper(disk: Disk, num_best: int, *trials: TrialRecord, mode: str = "max") -> Keeper:
    return Keeper(disk.directory, metric="val/accuracy", mode=mode, num_best=num_best, trials=trials)


def test_the_best_stay_and_who_runs_keeps_all(disk: Disk) -> None:
    keep = keeper(disk, 2)
    for trial in (ended(0, 0.5), ended(1, 0.9), ended(2, 0.7, "stopped_early"), ended(3, 0.6)):
        keep.take(trial)
    assert disk.left() == [1, 2, 4, 5, 6, 7]
    assert disk.left(LAST_CHECKPOINT) == [4, 5, 6, 7]
    keep.take(ended(4, 0.99, "failed"))
    keep.take(ended(5, None, "diverged"))
    assert disk.left() == [1, 2, 6, 7]
    small = keeper(disk, 0, ended(6, 0.2), ended(7, 0.1), mode="min")
    small.take(ended(1, 0.9))
    assert disk.left() == [2, 7], "at least one stays, and the smaller is better here"


def test_a_resume_finishes_what_a_crash_left_undone(disk: Disk) -> None:
    trials = [ended(number, number / 10) for number in range(6)] + [TrialRecord(6, {})]
    keeper(disk, 2, *trials)
    assert disk.left() == [4, 5, 6, 7]
    keeper(disk, 2, *trials)
    assert disk.left() == [4, 5, 6, 7]
    assert disk.left(LAST_CHECKPOINT) == [6, 7]


def test_nothing_goes_while_no_better_one_is_whole(disk: Disk) -> None:
    for trial in (2, 3):
        path = disk.path(trial)
        path.write_bytes(path.read_bytes()[:-1])
    keep = keeper(disk, 2, ended(0, 0.1), ended(1, 0.2), ended(2, 0.8), ended(3, 0.9))
    assert set(disk.left()) >= {1, 2, 3}
    assert any(is_whole(str(disk.path(trial))) for trial in disk.left()[:3])
    keep.take(ended(4, 0.95))
    assert set(disk.left()) >= {3, 4}
    assert is_whole(str(disk.path(4)))
    assert 1 not in disk.left()


def test_a_storage_that_is_away_is_no_reason_to_stop(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    (disk.root / "plain").write_text("a file")
    lost = Keeper(lambda _: str(disk.root / "plain" / "x"), metric="val/accuracy", mode="max", num_best=1)
    lost.take(ended(0, 0.5))
    assert "could not be removed" in caplog.text
