"""kill -9 of every process that a sweep consists of: it ends with the numbers of an undisturbed one."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress

import pytest
from faults_support import TITLES, Sweep, kill

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults]


def test_every_process_of_a_running_trial(sweep: Sweep, undisturbed: Sweep) -> None:
    """One after the other in one sweep: what mends the first must mend the next as well."""
    sweep.plant(["3-pause"] * len(TITLES))
    process = sweep.start()
    struck: dict[str, float] = {}
    for title, names in TITLES.items():
        sweep.await_pause(process)
        victims = sweep.processes(*names)
        assert victims, names
        for pid in victims:
            kill(pid)
        struck[title] = time.time()
        sweep.go_on()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert sweep.numbers() == undisturbed.numbers()
    assert "models:/faulty/1" in out
    for title, since in struck.items():
        sweep.note_recovery(f"kill -9 of the {title}", since)
    sweep.assert_nothing_is_left()


def test_the_driver_at_random_moments(sweep: Sweep, undisturbed: Sweep) -> None:
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    arguments: tuple[str, ...] = ()
    for _ in range(2):
        process = sweep.start(*arguments)
        sweep.await_record(lambda record: record["event"] == "sweep", process)
        known = len(sweep.records())
        progress = known + moments.randrange(2, 12)
        sweep.await_record(lambda _, wanted=progress: len(sweep.records()) >= wanted, process)
        kill(process.pid)
        process.communicate(timeout=60)
        arguments = ("resume", "faulty")
        if any(record["event"] == "finished" for record in sweep.records()):
            break
    resumed_at = time.time()
    out = sweep.finish("resume", "faulty")
    if sweep.records()[-1]["time"] > resumed_at:
        sweep.note_recovery("kill -9 of the driver, from `thaw resume` on", resumed_at)
    assert "found:" in out, f"seed {seed}"
    assert sweep.numbers() == undisturbed.numbers(), f"seed {seed}"
    ends = [record["number"] for record in sweep.records() if record["event"] == "end"]
    assert sorted(ends) == sorted(set(ends)), f"seed {seed}: a trial ended twice"
    sweep.assert_nothing_is_left()


def test_a_lane_that_dies_at_every_start_fails_no_trial(sweep: Sweep, undisturbed: Sweep) -> None:
    sweep.plant(["3-pause"])
    process = sweep.start()
    sweep.await_pause(process)
    while process.poll() is None:
        for pid in sweep.processes(*TITLES["controller"]):
            with suppress(ProcessLookupError):
                kill(pid)
        time.sleep(0.2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "every lane is lost" in err, err
    assert "`thaw resume faulty`" in err, err
    assert "Traceback" not in err
    assert sweep.records()[-1]["event"] == "interrupted"
    sweep.go_on()
    sweep.finish("resume", "faulty")
    assert sweep.numbers() == undisturbed.numbers()
    sweep.assert_nothing_is_left()


def test_a_signal_ends_a_sweep_in_order_and_a_second_one_at_once(sweep: Sweep, undisturbed: Sweep) -> None:
    sweep.plant(["2-pause", "2-pause"])
    process = sweep.start()
    sweep.await_pause(process)
    sweep.await_record(lambda record: record["event"] == "epoch", process)  # before that there is nothing to keep
    process.send_signal(signal.SIGTERM)
    sweep.go_on()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "thaw resume faulty" in out
    assert sweep.records()[-1]["event"] == "interrupted"
    process = sweep.start("resume", "faulty")
    sweep.await_pause(process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # another one: two pending signals of one kind are one
    process.communicate(timeout=30)
    sweep.finish("resume", "faulty")
    assert sweep.numbers() == undisturbed.numbers()
    sweep.assert_nothing_is_left()
