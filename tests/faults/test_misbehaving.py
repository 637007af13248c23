"""Trials that misbehave cost themselves; the lane and every other trial are as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults_support import Sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


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
    sweep.plant(["1-pause"])
    first = sweep.start()
    sweep.await_pause(first)
    for arguments in ((), ("resume", "faulty")):
        second = sweep.start(*arguments)
        _, err = second.communicate(timeout=60)
        assert second.returncode == 2, err
        assert "faulty" in err
    sweep.go_on()
    out, err = first.communicate(timeout=240)
    assert first.returncode == 0, err
    assert "models:/faulty/1" in out
    sweep.assert_nothing_is_left()


def test_a_clock_that_jumps_forward_and_back(sweep: Sweep, undisturbed: Sweep, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    sweep.plant(["2-pause", "3-pause", "2-pause"], THAW_PLANTED_CLOCK=str(clock))
    process = sweep.start()
    for seconds in (3600, -3600, 0):
        sweep.await_pause(process)
        clock.write_text(str(seconds))
        sweep.go_on()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    times = [record["time"] for record in sweep.records()]
    assert max(times) - min(times) > 7000, "the clock was wrong"
    assert sweep.numbers() == undisturbed.numbers()
    assert "models:/faulty/1" in out
    sweep.assert_nothing_is_left()
