"""Notices a job that takes no step any more, says where it hangs, and ends the process: nothing else ends a hang.

In: beats, one per step. Out: a call with the stack of the thread that hangs, then the process's death, after which the
lane's workers are started anew. A hang that holds the interpreter's lock keeps this thread from running too; then
`faulthandler`, which needs no lock, ends the process somewhat later, and without a call.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_LAST_RESORT = 1.5
"""How many time-outs pass before `faulthandler` ends the process."""

_REPORT_PATIENCE_S = 10.0
_MOST_NAPS_S = 1.0


class Watchdog:
    """Watches one thread, the one that calls `watching`.

    Args:
        timeout_s: Longest time between two beats; infinity: any.
        end: Ends the process, with a code.
    """

    def __init__(self, timeout_s: float, end: Callable[[int], object] = os._exit) -> None:
        self._timeout_s, self._end = timeout_s, end
        self._last = self._armed = time.monotonic()
        self._num_waiting = 0

    def beat(self) -> None:
        """A step was taken."""
        self._last = time.monotonic()
        if not self._num_waiting and self._last - self._armed > self._timeout_s / 4:
            self._arm()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While open, the thread waits for somebody else, which is no hang."""
        self._num_waiting += 1  # one may be open within another
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self._last = time.monotonic()
            self._num_waiting -= 1
            if not self._num_waiting:
                self._arm()

    @contextmanager
    def watching(self, on_hang: Callable[[str], object]) -> Iterator[None]:
        """While open, a hang calls ``on_hang`` with one line that says where, and then ends the process."""
        self._last, self._num_waiting = time.monotonic(), 0
        is_over = threading.Event()
        thread = threading.Thread(
            target=self._watch, args=(threading.get_ident(), on_hang, is_over), name="watchdog", daemon=True
        )
        self._arm()
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        self._armed = time.monotonic()
        if math.isfinite(self._timeout_s):
            faulthandler.dump_traceback_later(
                _LAST_RESORT * self._timeout_s, exit=True, file=sys.__stderr__ or sys.stderr
            )

    def _watch(self, ident: int, on_hang: Callable[[str], object], is_over: threading.Event) -> None:
        while not is_over.wait(min(_MOST_NAPS_S, self._timeout_s / 4)):
            if self._num_waiting or time.monotonic() - self._last < self._timeout_s:
                continue
            faulthandler.cancel_dump_traceback_later()  # this thread runs, so it needs no help
            frame = sys._current_frames().get(ident)
            stack = traceback.extract_stack(frame) if frame is not None else traceback.StackSummary()
            logger.error(
                "no step for %g s; the job hangs here:\n%s", self._timeout_s, "".join(traceback.format_list(stack))
            )
            place = f"{stack[-1].filename}:{stack[-1].lineno} ({stack[-1].name})" if stack else "an unknown place"
            reason = f"no step for {self._timeout_s:g} s (budget.trial_timeout_s); it hung in {place}"
            # Who is told may hang as well.
            teller = threading.Thread(target=on_hang, args=(reason,), daemon=True)
            teller.start()
            teller.join(_REPORT_PATIENCE_S)
            self._end(1)
            return
