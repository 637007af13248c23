"""Trials that train the head alone neither stop nor are stopped."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from trainables.lanes.trial import EPOCH
from tuner.records.journal import Record
from tuner.search.asha import ResumableASHA
from tuner.search.searching import NUMBER

METRIC = "val/accuracy"
HEAD_ONLY = 6


def asha(records: Sequence[Record] = ()) -> ResumableASHA:
    return ResumableASHA(
        metric=METRIC,
        mode="max",
        max_epochs=8,
        grace_period=2,
        reduction_factor=3,
        records=records,
        is_exempt=lambda params: params["freeze_depth"] == HEAD_ONLY,
    )


def trial(number: int, depth: int) -> Any:
    return SimpleNamespace(config={NUMBER: number, "params": {"freeze_depth": depth}})


def test_a_head_that_is_near_its_end_at_once_does_not_stop_deeper_trials_nor_do_they_stop_it() -> None:
    scheduler = asha()
    head, deep, poor, late_head, poorer, worst = trials = [
        trial(number, depth) for number, depth in enumerate([HEAD_ONLY, 3, 2, HEAD_ONLY, 1, 0])
    ]
    for each in trials:
        scheduler.on_trial_add(None, each)
    assert scheduler.on_trial_result(None, head, {METRIC: 0.95, EPOCH: 2}) == "CONTINUE"
    assert scheduler.on_trial_result(None, deep, {METRIC: 0.8, EPOCH: 2}) == "CONTINUE"
    assert scheduler.on_trial_result(None, poor, {METRIC: 0.7, EPOCH: 2}) == "CONTINUE"
    assert scheduler.on_trial_result(None, poorer, {METRIC: 0.65, EPOCH: 2}) == "CONTINUE"
    assert scheduler.on_trial_result(None, worst, {METRIC: 0.6, EPOCH: 2}) == "STOP"
    assert scheduler.on_trial_result(None, late_head, {METRIC: 0.1, EPOCH: 2}) == "CONTINUE"
    scheduler.on_trial_complete(None, head, {METRIC: 0.96, EPOCH: 8})
    assert scheduler.rungs()[2] == {1: 0.8, 2: 0.7, 4: 0.65, 5: 0.6}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_third_and_one_more_go_on(mode: Literal["max", "min"]) -> None:
    """The slow starters of a sweep are not all stopped by the quick one that came first."""
    scheduler = ResumableASHA(metric=METRIC, mode=mode, max_epochs=8, grace_period=2, reduction_factor=3)
    values = [0.9, 0.8, 0.7, 0.6, 0.5, 0.55, 0.58, 0.75, 0.76, 0.3]
    verdicts = []
    for number, value in enumerate(values):
        scheduler.on_trial_add(None, trial(number, 0))
        result = {METRIC: value if mode == "max" else -value, EPOCH: 2}
        verdicts.append(scheduler.on_trial_result(None, trial(number, 0), result) == "CONTINUE")
    # Of 1 to 3 all pass, of 4 to 6 three, of 7 to 9 four, of 10 five.
    assert verdicts == [True, True, True, False, False, False, False, True, True, False]


def test_what_the_journal_knows_of_heads_fills_no_rung() -> None:
    def records(number: int, depth: int, value: float) -> list[Record]:
        epochs = [{"event": "epoch", "number": number, "epoch": each, "metrics": {METRIC: value}} for each in (1, 2)]
        return [{"event": "trial", "number": number, "params": {"freeze_depth": depth}}, *epochs]

    scheduler = asha([*records(0, HEAD_ONLY, 0.95), *records(1, 3, 0.8), *records(2, HEAD_ONLY, 0.1)])
    assert scheduler.overdue == ()
    assert scheduler.rungs()[2] == {1: 0.8}
