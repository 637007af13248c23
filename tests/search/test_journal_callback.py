"""What Tune tells of trials that could not be kept: the sweep is interrupted, and no trial is failed for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainables.lanes.trial import EPOCH, OUTCOME, REASON
from tuner.records.journal import TrialRecord
from tuner.records.spending import Spending
from tuner.search.patience import Patience
from tuner.search.searching import NUMBER
from tuner.search.tuning import JournalCallback, StopSwitch, _SwitchStopper

AWAY = "ray.exceptions.RayTaskError(StorageAwayError): ...\ntrainables.outages.StorageAwayError: no room; make room\n"


class Surroundings:
    """A journal, a pool and a searcher, as far as the callback knows them."""

    def __init__(self, history: Sequence[TrialRecord] = ()) -> None:
        self.records: list[dict[str, Any]] = []
        self.is_lost = self.is_stopped = False
        self.ended: list[int] = []
        self.switch = StopSwitch(Spending())
        self.patience = Patience(None, "val/accuracy", "max", [])
        self.callback = JournalCallback(
            self.record,
            SimpleNamespace(lost=None, take_back=lambda _: None),  # type: ignore[arg-type]
            self.switch,
            stop=self.stop,
            metric="val/accuracy",
            mode="max",
            patience=self.patience,
            history=history,
            on_end=lambda trial: self.ended.append(trial.number),
        )

    def record(self, event: str, **fields: Any) -> bool:
        if not self.is_lost:
            self.records.append({"event": event, **fields})
        return not self.is_lost

    def stop(self) -> None:
        self.is_stopped = True


def trial(folder: Path, error: str = "", **last_result: Any) -> Any:
    file = folder / "error.txt"
    file.write_text(error)
    config = {"number": 7, "params": {}}
    return SimpleNamespace(
        trial_id="t", config=config, error_file=str(file), last_result=last_result, get_error=lambda: None
    )


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


def test_a_trial_without_storage_waits_for_a_resume(around: Surroundings, tmp_path: Path) -> None:
    around.callback.on_trial_error(1, [], trial(tmp_path, AWAY))
    (end,) = around.records
    assert (end["outcome"], end["reason"]) == ("interrupted", "no room; make room")
    assert (around.switch.is_interrupted, around.switch.why) == (True, "no room; make room")
    assert around.is_stopped
    assert around.ended == []


def test_the_first_such_error_ends_the_search(around: Surroundings, tmp_path: Path) -> None:
    around.callback.on_trial_recover(1, [], trial(tmp_path, "LaneLostError: gone"))
    assert not around.switch
    around.callback.on_trial_recover(1, [], trial(tmp_path, AWAY))
    assert around.switch
    assert around.is_stopped


def test_other_errors_are_the_trials_own(around: Surroundings, tmp_path: Path) -> None:
    around.callback.on_trial_error(1, [], trial(tmp_path, "Failure # 1\n\nRayActorError: killed\n"))
    around.callback.on_trial_error(1, [], trial(tmp_path))
    assert [(end["outcome"], end["reason"]) for end in around.records] == [
        ("failed", "RayActorError: killed"),
        ("failed", "its actor died"),
    ]
    assert around.ended == [7, 7]
    assert not around.switch


def test_nothing_is_cleared_away_of_an_end_that_the_journal_does_not_know(around: Surroundings, tmp_path: Path) -> None:
    around.is_lost = True
    around.callback.on_trial_complete(1, [], trial(tmp_path, **{OUTCOME: "completed"}))
    assert around.ended == []
    around.is_lost = False
    around.callback.on_trial_complete(1, [], trial(tmp_path, **{OUTCOME: "completed"}))
    assert around.ended == [7]


def test_a_trial_that_goes_on_has_the_seconds_of_before(tmp_path: Path) -> None:
    epochs = ({"epoch": 1, "val/accuracy": 0.5, "time/train_s": 30.0, "time/val_s": 2.0},)
    told = TrialRecord(7, {}, epochs, metrics={"time/trial_s": 40.0})
    for history, seconds in ([], 0.0), ([TrialRecord(7, {}, epochs)], 32.0), ([told], 40.0):
        around = Surroundings(history)
        around.callback.on_trial_complete(1, [], trial(tmp_path, **{OUTCOME: "completed"}))
        (end,) = around.records
        assert end["metrics"]["time/trial_s"] == seconds


def test_schedulers_judge_nobody_once_a_trial_found_no_room(around: Surroundings) -> None:
    """The stopper is asked before the scheduler: a bracket is not judged without the trial that is to go on."""
    searcher: Any = SimpleNamespace(metric="val/accuracy", stop=around.stop)
    stopper = _SwitchStopper(around.switch, searcher, around.patience, {})
    result = {"config": {NUMBER: 7}, EPOCH: 1, "val/accuracy": 0.5, OUTCOME: None, REASON: None}
    assert not stopper("t", result)
    assert stopper("t", {**result, OUTCOME: "interrupted", REASON: "no room"})
    assert (around.switch.why, around.is_stopped) == ("no room", True)
