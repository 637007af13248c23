"""A job that takes no step is noticed, told with its place, and ended, also where Python itself stands still."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import pytest

from trainables.lanes.watchdog import Watchdog


class Ends:
    """What a watchdog did in place of ending this process."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.reasons: list[str] = []


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    monkeypatch.setattr("trainables.lanes.watchdog._LAST_RESORT", 1000.0)  # it would end the tests
    return Ends()


def wait_until(condition: object, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not condition():  # type: ignore[operator]
        time.sleep(0.01)


def hang_here(ends: Ends) -> None:
    wait_until(lambda: ends.codes)


def test_a_hang_is_told_with_its_place_and_its_stack_is_logged(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    dog = Watchdog(0.4, ends.codes.append)
    with caplog.at_level(logging.ERROR), dog.watching(ends.reasons.append):
        hang_here(ends)
    assert ends.codes == [1]
    assert "no step for 0.4 s" in ends.reasons[0]
    assert "wait_until" in ends.reasons[0]
    assert "hang_here" in caplog.text


def test_steps_and_waiting_for_others_are_no_hang(ends: Ends) -> None:
    dog = Watchdog(0.4, ends.codes.append)
    with dog.watching(ends.reasons.append):
        for _ in range(12):
            time.sleep(0.05)
            dog.beat()
        with dog.waiting():
            with dog.waiting():
                pass
            time.sleep(0.8)
        time.sleep(0.1)
    time.sleep(0.6)
    assert not ends.codes
    with dog.watching(ends.reasons.append):
        hang_here(ends)
    assert ends.codes == [1], "the next job is watched from its own beginning"


def test_without_a_limit_nothing_is_a_hang(ends: Ends) -> None:
    dog = Watchdog(float("inf"), ends.codes.append)
    with dog.watching(ends.reasons.append):
        dog.beat()
        time.sleep(0.05)
    assert not ends.codes


def test_who_is_told_may_hang_as_well(monkeypatch: pytest.MonkeyPatch, ends: Ends) -> None:
    monkeypatch.setattr("trainables.lanes.watchdog._REPORT_PATIENCE_S", 0.1)
    dog = Watchdog(0.2, ends.codes.append)
    with dog.watching(lambda _: time.sleep(60)):
        hang_here(ends)
    assert ends.codes == [1]


def test_a_hang_that_holds_the_interpreter_ends_the_process_too() -> None:
    program = (
        "import ctypes\n"
        "from trainables.lanes.watchdog import Watchdog\n"
        "with Watchdog(0.5).watching(print):\n"
        "    ctypes.PyDLL(None).sleep(60)\n"  # keeps the interpreter's lock
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert time.monotonic() - started < 20
    assert "Timeout" in done.stderr
