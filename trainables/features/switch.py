"""Something that works until it does not: then it is off, with one warning, and the work goes on without it."""

from __future__ import annotations

import logging
import threading

_log = logging.getLogger(__name__)


class Switch:
    """On at first. Turned off once, for the life of the process.

    Args:
        what: Subject of the warning.
        consequence: How the work goes on without it.
    """

    def __init__(self, what: str, consequence: str) -> None:
        self._what, self._consequence = what, consequence
        self._lock = threading.Lock()
        self.reason: str | None = None

    @property
    def is_on(self) -> bool:
        """Whether nothing has gone wrong yet."""
        return self.reason is None

    def turn_off(self, error: BaseException) -> None:
        """Warns, the first time."""
        with self._lock:
            if self.reason is not None:
                return
            self.reason = str(error) or type(error).__name__
        _log.warning("%s: %s; %s", self._what, self.reason, self._consequence)
