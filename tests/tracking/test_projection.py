"""What MLflow is told, as values."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tuner.tracking.projection import RunState, as_param, plan


def _record(event: str, time: float = 10.0, **fields: Any) -> dict[str, Any]:
    return {"event": event, "time": time, **fields}


def test_the_parent_comes_first_and_each_run_once() -> None:
    records = [
        _record("trial", 2.0, number=7, params={"lr": 0.1, "grad_clip_norm": None}),
        _record("sweep", 1.0, name="s", params={"backbone": "lenet"}, note="**hello**"),
        _record("epoch", 3.0, number=7, epoch=1, metrics={"val/accuracy": 0.5, "train/loss": None}),
        _record("epoch", 4.5, number=7, epoch=2, metrics={"val/accuracy": 0.75}),
        _record("end", 5.0, number=7, outcome="completed", metrics={"time/trial_s": 3.0}),
    ]
    updates, states = plan(records, {}, "s")
    parent, child = updates
    assert (parent.key, parent.name, parent.start_ms) == ("sweep", "s", 1000)
    assert parent.params == {"backbone": "lenet"}
    assert parent.tags == {"mlflow.note.content": "**hello**"}
    assert (child.key, child.name, child.start_ms, child.end_ms) == ("7", "trial 0007", 2000, 5000)
    assert child.params == {"lr": "0.1", "grad_clip_norm": "none"}
    points = [(point.name, point.value, point.time_ms, point.step) for point in child.metrics]
    assert points[0] == ("val/accuracy", 0.5, 3000, 1)
    assert points[1][0] == "train/loss"
    assert math.isnan(points[1][1])
    assert points[2:] == [("val/accuracy", 0.75, 4500, 2), ("time/trial_s", 3.0, 5000, 2)]
    assert states == {"sweep": RunState(0, True), "7": RunState(2, False)}


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("completed", "FINISHED"),
        ("stopped_early", "FINISHED"),
        ("diverged", "FAILED"),
        ("failed", "FAILED"),
        ("interrupted", "KILLED"),
    ],
)
def test_each_outcome_has_a_state_and_a_tag(outcome: str, status: str) -> None:
    (update,), states = plan([_record("end", number=1, outcome=outcome, reason="why")], {"1": RunState(3)}, "s")
    assert update.status == status
    assert update.tags == {"thaw.outcome": outcome, "thaw.reason": "why"}
    assert states["1"] == RunState(3, False)


def test_a_resumed_trial_keeps_its_parameters_and_its_first_reports() -> None:
    records = [
        _record("trial", number=1, params={"lr": 0.1}),
        _record("epoch", number=1, epoch=3, metrics={"val/accuracy": 0.9}),
        _record("epoch", number=1, epoch=4, metrics={"val/accuracy": 0.8}),
    ]
    (update,), states = plan(records, {"1": RunState(3, False)}, "s")
    assert update.params == {}
    assert [(point.step, point.value) for point in update.metrics] == [(4, 0.8)]
    assert (update.status, update.end_ms) == ("RUNNING", None)
    assert update.tags == {"thaw.outcome": "running", "thaw.reason": ""}
    assert states["1"] == RunState(4, True)


def test_a_trials_price_is_told_once_beside_what_it_came_to() -> None:
    price = {"compute/predicted_gflops": 12.5}
    begun, states = plan([_record("trial", 2.0, number=1, params={}, metrics=price)], {}, "s")
    assert [(point.name, point.value, point.step) for point in begun[0].metrics] == [
        ("compute/predicted_gflops", 12.5, 0)
    ]
    again = [
        _record("sweep", 3.0, name="s", params={}),
        _record("search", 3.0, first_points=[]),
        _record("trial", 4.0, number=1, params={}, metrics={"compute/predicted_gflops": 2.0}),
    ]
    updates, _ = plan(again, states, "s")
    assert [point for update in updates for point in update.metrics] == []


def test_the_end_of_a_sweep_closes_what_is_open() -> None:
    states = {"sweep": RunState(), "1": RunState(2, False), "2": RunState(1, True)}
    updates, after = plan([_record("interrupted", 8.0, reason="Ctrl-C")], states, "s")
    assert [(update.key, update.status, update.end_ms) for update in updates] == [
        ("sweep", "KILLED", 8000),
        ("2", "KILLED", 8000),
    ]
    assert not any(state.is_open for state in after.values())
    (failed,), _ = plan([_record("finished", outcome="failed", reason="no trial survived")], {}, "s")
    assert (failed.status, failed.tags["thaw.reason"]) == ("FAILED", "no trial survived")
    (finished,), _ = plan([_record("finished")], {}, "s")
    assert finished.status == "FINISHED"


def test_the_champion_marks_both_runs() -> None:
    record = _record("champion", 9.0, number=12, metrics={"test/accuracy": 0.9, "test/accuracy_low": 0.8})
    parent, child = plan([record], {}, "s")[0]
    assert {point.name: point.value for point in parent.metrics} == {"test/accuracy": 0.9, "test/accuracy_low": 0.8}
    assert parent.tags == {"thaw.champion": "trial 0012"}
    assert (child.key, child.tags, child.metrics) == ("12", {"thaw.champion": "yes"}, [])


def test_a_refit_is_a_run_of_its_own() -> None:
    params = {"refit_of": "trial 3", "epochs": 5}
    (update,), _ = plan([_record("refit", number=20000, name="trial 3", params=params)], {}, "s")
    assert (update.name, update.tags["thaw.refit"]) == ("refit of trial 3", "trial 3")
    assert update.params == {"refit_of": "trial 3", "epochs": "5"}


def test_a_baseline_has_a_name_of_its_own() -> None:
    (update,), _ = plan([_record("baseline", number=40, name="from_scratch", params={"lr": 1})], {}, "s")
    assert (update.name, update.tags["thaw.baseline"], update.params) == (
        "baseline from_scratch",
        "from_scratch",
        {"lr": "1"},
    )


def test_parameters_read_well_and_keep_their_digits() -> None:
    assert [as_param(v) for v in (None, True, 1e-4, 0.1 + 0.2, "adamw", ["a", 1])] == [
        "none",
        "yes",
        "0.0001",
        "0.30000000000000004",
        "adamw",
        "a, 1",
    ]


def test_totals_are_the_parents() -> None:
    (update,), _ = plan([_record("totals", metrics={"reuse/hit_rate": 0.5})], {}, "s")
    assert update.key == "sweep"
    assert [(point.name, point.value, point.step) for point in update.metrics] == [("reuse/hit_rate", 0.5, 0)]


def test_another_champion_takes_the_mark_over() -> None:
    _, states = plan([_record("champion", number=3, metrics={})], {}, "s")
    updates, states = plan([_record("champion", number=7, metrics={})], states, "s")
    assert {update.key: update.tags["thaw.champion"] for update in updates} == {
        "sweep": "trial 0007", "3": "no", "7": "yes",
    }  # fmt: skip
    assert [key for key, state in states.items() if state.is_champion] == ["7"]
