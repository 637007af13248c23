"""Ctrl-C and SIGTERM: the first asks, the second insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def first_interrupt_calls(interrupt: Callable[[], object]) -> Iterator[None]:
    """While open, the first SIGINT or SIGTERM calls ``interrupt``, and the next raises KeyboardInterrupt.

    Signals reach a process's main thread only; in another thread (a notebook's, say) nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    has_asked = False

    def handle(*_: object) -> None:
        nonlocal has_asked
        if has_asked:
            raise KeyboardInterrupt
        has_asked = True
        interrupt()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
