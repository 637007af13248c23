"""The first Ctrl-C asks, the second insists, and afterwards signals are what they were."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tuner.search.interrupts import first_interrupt_calls


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_asks_and_second_insists(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    asked = []
    with pytest.raises(KeyboardInterrupt), first_interrupt_calls(lambda: asked.append(1)):
        os.kill(os.getpid(), number)
        assert asked == [1]
        os.kill(os.getpid(), number)
    assert asked == [1]
    assert signal.getsignal(number) is before


def test_other_threads_change_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run() -> None:
        with first_interrupt_calls(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
