"""kill -9 of every process that a sweep consists of: it ends with the numbers of an undisturbed one."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import pytest
from faults_support import TITLES, Sweep, kill

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


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


AT_ONCE = (130, 1)
"""Ray ends the process with 1 where a lane's thread is caught in it while it is shut down."""


def test_a_signal_ends_a_sweep_in_order_and_a_second_one_at_once(sweep: Sweep, undisturbed: Sweep) -> None:
    sweep.plant(["2-pause", "2-pause"])
    process = sweep.start()
    sweep.await_record(lambda record: record["event"] == "sweep", process)  # no lane is up yet
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode in AT_ONCE, err
    process = sweep.start("resume", "faulty")
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
    _, err = process.communicate(timeout=30)
    assert process.returncode in AT_ONCE, err
    sweep.finish("resume", "faulty")
    assert sweep.numbers() == undisturbed.numbers()
    sweep.assert_nothing_is_left()
