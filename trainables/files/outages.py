"""Storage that is full or away for a while: what is to be kept there waits for it, and then gives up."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from trainables.errors import ForPeople

_Kept = TypeVar("_Kept")
logger = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""How long what is to be kept waits for a storage that is full or away."""
_MAY_PASS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN,
    errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH,
)  # fmt: skip


class StorageAwayError(ForPeople, RuntimeError):
    """What is to be kept finds no place; the message is one line, with the remedy."""


def patiently(keep: Callable[[], _Kept], what: str, *, doing: str = "written") -> _Kept:
    """Calls ``keep`` and returns its result; where the storage is away, again each second for `PATIENCE_S`.

    Args:
        keep: Writes something, whole or not at all, or reads it.
        what: What it writes, for the messages: ``checkpoints``.
        doing: What is being done with it, likewise.

    Raises:
        StorageAwayError: The storage is away for that long.
        OSError: Something else is wrong, that waiting does not mend.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return keep()
        except OSError as error:
            if not may_pass(error):
                raise
            if time.monotonic() > deadline:
                raise StorageAwayError(
                    f"{what} cannot be {doing} ({error}); make room or bring the storage back, then resume"
                ) from error
            logger.warning("%s cannot be %s, trying again: %s", what, doing, error)
            time.sleep(1)


def may_pass(error: OSError) -> bool:
    """Whether it is the storage that takes nothing at present, rather than a mistake."""
    return error.errno is None or error.errno in _MAY_PASS
