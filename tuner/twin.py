"""A sweep's own records in a home that is shared storage: written here line by line, copied there now and then.

In: the sweep's folder on this machine. Out: its spec, journal and ledger below the home's URI, so that they outlive the
machine, and back on another one, so that a sweep can go on there. Nothing is done where the home is a folder.
"""

from __future__ import annotations

import logging
import time

from trainables.storage import join, list_folders, read_bytes, write_bytes
from tuner.paths import HomePaths, SweepPaths

logger = logging.getLogger(__name__)

PUSH_EVERY_S = 30.0
"""The journal is copied whole: at most so often while a sweep runs, and at its turning points."""


class SweepTwin:
    """The copy of one sweep's records.

    Args:
        home: The home.
        name: The sweep's name.
    """

    def __init__(self, home: HomePaths, name: str) -> None:
        self._home, self._paths = home, home.sweep(name)
        self._next_push = 0.0

    def push(self, *, at_once: bool = False) -> None:
        """Copies what there is, if the last time is long enough ago. A storage that is away is not the sweep's end."""
        if not self._home.is_shared or not (at_once or time.monotonic() >= self._next_push):
            return
        try:
            for path in _records(self._paths):
                if path.is_file():
                    write_bytes(self._home.uri_of(path), path.read_bytes())
        except OSError as error:
            logger.warning("the sweep's records could not be copied to %s: %s", self._home.root, error)
        self._next_push = time.monotonic() + PUSH_EVERY_S


def pull_sweeps(home: HomePaths) -> None:
    """Fetches the records of sweeps that this machine does not know; those that it knows are newer here."""
    if not home.is_shared:
        return
    for name in list_folders(home.uri_of(home.sweeps)):
        paths = home.sweep(name)
        if paths.journal.exists():
            continue
        # The journal last: a sweep with one is complete.
        for path in _records(paths):
            try:
                write_bytes(str(path), read_bytes(home.uri_of(path)))
            except FileNotFoundError:
                continue


def _records(paths: SweepPaths) -> list:
    return [paths.spec, paths.ledger, paths.journal]
