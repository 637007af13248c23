"""Trials that train the head alone neither stop nor are stopped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from trainables.trial import EPOCH
from tuner.halving import ResumableASHA
from tuner.journal import TrialRecord
from tuner.searching import NUMBER

METRIC = "val/accuracy"
HEAD_ONLY = 6


def asha(history: tuple[TrialRecord, ...] = ()) -> ResumableASHA:
    return ResumableASHA(
        metric=METRIC,
        mode="max",
        max_epochs=8,
        grace_period=2,
        reduction_factor=3,
        history=history,
        is_exempt=lambda params: params["freeze_depth"] == HEAD_ONLY,
    )


def trial(number: int, depth: int) -> Any:
    return SimpleNamespace(config={NUMBER: number, "params": {"freeze_depth": depth}})


def test_a_head_that_is_near_its_end_at_once_does_not_stop_deeper_trials_nor_do_they_stop_it() -> None:
    scheduler = asha()
    head, deep, poor, late_head = trial(0, HEAD_ONLY), trial(1, 3), trial(2, 2), trial(3, HEAD_ONLY)
    for each in (head, deep, poor, late_head):
        scheduler.on_trial_add(None, each)
    assert scheduler.on_trial_result(None, head, {METRIC: 0.95, EPOCH: 2}) == "CONTINUE"
    assert scheduler.on_trial_result(None, deep, {METRIC: 0.8, EPOCH: 2}) == "CONTINUE"
    assert scheduler.on_trial_result(None, poor, {METRIC: 0.7, EPOCH: 2}) == "STOP"
    assert scheduler.on_trial_result(None, late_head, {METRIC: 0.1, EPOCH: 2}) == "CONTINUE"
    scheduler.on_trial_complete(None, head, {METRIC: 0.96, EPOCH: 8})
    assert scheduler.rungs()[2] == {1: 0.8, 2: 0.7}


def test_what_the_journal_knows_of_heads_fills_no_rung() -> None:
    def record(number: int, depth: int, value: float) -> TrialRecord:
        epochs = tuple({METRIC: value, "epoch": epoch} for epoch in (1, 2))
        return TrialRecord(number, {"freeze_depth": depth}, epochs)

    scheduler = asha((record(0, HEAD_ONLY, 0.95), record(1, 3, 0.8), record(2, HEAD_ONLY, 0.1)))
    assert scheduler.overdue == ()
    assert scheduler.rungs()[2] == {1: 0.8}
