"""What a search has spent, over all the runs that a journal tells of."""

from __future__ import annotations

from typing import Any

import pytest

from tuner.records.spending import FLOPS_ARE_SPENT, TIME_IS_UP, Spending, spent_before


def record(event: str, time: float, **fields: Any) -> dict[str, Any]:
    return {"event": event, "time": time, **fields}


def epoch(time: float, gflops: float | None) -> dict[str, Any]:
    return record("epoch", time, number=0, epoch=1, metrics={"compute/gflops": gflops, "val/accuracy": 0.5})


RUNS = [
    record("sweep", 0.0),
    record("search", 100.0, first_points=[]),
    record("trial", 110.0, number=0),
    epoch(120.0, 3.0),
    record("interrupted", 125.0),
    # A second run, killed in its second epoch.
    record("sweep", 1000.0),
    record("search", 1010.0, first_points=[]),
    epoch(1030.0, 3.0),
    epoch(1040.0, None),
    # A third one, to the end: baselines are no part of the search.
    record("sweep", 2000.0),
    record("search", 2000.0, first_points=[]),
    epoch(2005.0, 1.0),
    record("end", 2006.0, number=0),
    record("baseline", 2010.0, number=7),
    epoch(2100.0, 50.0),
    record("finished", 2200.0),
]


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_time_and_flops_of_earlier_runs_count_and_what_lies_between_does_not() -> None:
    assert spent_before(RUNS) == (25.0 + 30.0 + 6.0, 7e9)
    assert spent_before(RUNS[:9]) == (55.0, 6e9)
    assert spent_before([]) == (0.0, 0.0)


def test_a_clock_that_was_set_back_takes_nothing_off() -> None:
    assert spent_before([record("search", 100.0), epoch(40.0, 1.0), record("sweep", 200.0)]) == (0.0, 1e9)


def test_seconds_go_on_where_the_journal_ends() -> None:
    clock = Clock()
    spending = Spending(time_s=81.0, records=RUNS, clock=clock)
    assert (spending.reason, spending.seconds_left()) == (None, 20.0)
    clock.now += 19.0
    assert spending.reason is None
    assert spending.share == pytest.approx(80 / 81)
    clock.now += 1.0
    assert (spending.reason, spending.share, spending.seconds_left()) == (TIME_IS_UP, 1.0, 0.0)


def test_flops_are_counted_once_per_epoch_and_the_estimate_is_by_their_rate() -> None:
    clock = Clock()
    spending = Spending(flops=10e9, clock=clock)
    assert (spending.reason, spending.share, spending.seconds_left()) == (None, 0.0, None)
    clock.now += 8.0
    for _ in range(2):
        spending.see("a", 1, {"compute/gflops": 4.0})
    assert (spending.flops, spending.share, spending.seconds_left()) == (4e9, 0.4, 12.0)
    spending.see("a", 2, {})
    spending.see("b", 1, {"compute/gflops": 6.0})
    assert spending.reason == FLOPS_ARE_SPENT


def test_without_a_bound_nothing_is_ever_spent() -> None:
    spending = Spending(records=RUNS)
    assert (spending.reason, spending.share, spending.seconds_left()) == (None, None, None)
