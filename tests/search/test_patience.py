"""When a trial has stopped becoming better, and that an interruption changes nothing about it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tuner.records.journal import TrialRecord
from tuner.search.patience import Patience

METRIC = "val/accuracy"


def trial(values: list[float], number: int = 0, outcome: str | None = None) -> TrialRecord:
    epochs = tuple({"epoch": epoch, METRIC: value} for epoch, value in enumerate(values, start=1))
    return TrialRecord(number, {}, epochs, outcome)


def over(values: list[float | None], epochs: int | None, mode: str = "max") -> list[bool]:
    patience = Patience(epochs, METRIC, mode)
    return [patience.is_over(0, epoch, value) for epoch, value in enumerate(values, start=1)]


def test_a_trial_is_over_when_its_best_epoch_is_long_ago() -> None:
    assert over([0.5, 0.6, 0.6, 0.5, 0.7], 2) == [False, False, False, True, False]
    assert over([0.5, 0.6, 0.6, 0.5], 3) == [False] * 4
    assert over([0.5, 0.4, 0.4], 2, mode="min") == [False, False, False]
    assert over([0.5] * 9, None) == [False] * 9


def test_values_that_are_not_finite_are_no_better() -> None:
    assert over([math.nan, None, 0.1], 2) == [False, True, False]


def test_what_is_told_twice_counts_once_and_trials_are_told_apart() -> None:
    patience = Patience(2, METRIC, "max")
    assert [patience.is_over(0, epoch, 0.5) for epoch in (1, 2, 1, 2)] == [False] * 4
    assert patience.reason(0) is None
    assert patience.is_over(0, 3, 0.5)
    assert patience.reason(0) == "no better val/accuracy for 2 epochs (early_stopping.patience)"
    assert not patience.is_over(1, 1, 0.1)
    assert patience.reason(1) is None


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 12))
def test_an_interruption_changes_nothing(values: list[float], epochs: int, cut: int) -> None:
    whole = over(list(values), epochs)
    before = values[:cut]
    resumed = Patience(epochs, METRIC, "max", [trial(before)])
    assert resumed.overdue == ((0,) if before and whole[len(before) - 1] else ())
    rest = [resumed.is_over(0, epoch, value) for epoch, value in enumerate(values[cut:], start=len(before) + 1)]
    assert rest == whole[len(before) :]
    assert Patience(epochs, METRIC, "max", [trial(before, outcome="completed")]).overdue == ()
