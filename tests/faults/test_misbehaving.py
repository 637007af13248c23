"""Trials that misbehave cost themselves; the lane and every other trial are as if nothing had happened."""

from __future__ import annotations

import pytest
from faults_support import Sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults]


def test_each_kind_costs_its_own_trial(sweep: Sweep, undisturbed: Sweep) -> None:
    sweep.plant(["2-raise", "2-memory", "3-nan", "3-kill", "2-hang"])
    out = sweep.finish()
    trials = {trial.number: trial for trial in sweep.trials()}
    assert [trials[number].outcome for number in range(6)] == [
        "failed", "failed", "diverged", "completed", "failed", "completed"
    ]  # fmt: skip
    reasons = [trials[number].reason or "" for number in range(5)]
    assert "RuntimeError: a planted mistake" in reasons[0]
    assert "out of memory; a smaller batch_size" in reasons[1]
    assert "epoch 3" in reasons[2]
    assert "no step for 6 s" in reasons[4]
    assert "sitecustomize.py" in reasons[4], "where it hangs"
    whole = undisturbed.numbers()
    assert {number: sweep.numbers()[number] for number in (3, 5)} == {number: whole[number] for number in (3, 5)}
    assert [len(trials[number].epochs) for number in range(6)] == [1, 1, 2, 4, 1, 4]
    assert "models:/faulty/1" in out
    sweep.assert_nothing_is_left()


def test_one_name_runs_once(sweep: Sweep) -> None:
    sweep.plant(["1-wait"] * 6)
    first = sweep.start()
    sweep.await_record(lambda record: record["event"] == "sweep", first)
    for arguments in ((), ("resume", "faulty")):
        second = sweep.start(*arguments)
        _, err = second.communicate(timeout=60)
        assert second.returncode == 2, err
        assert "faulty" in err
    out, err = first.communicate(timeout=240)
    assert first.returncode == 0, err
    assert "models:/faulty/1" in out
    sweep.assert_nothing_is_left()
