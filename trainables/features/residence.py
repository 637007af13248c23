"""How much of the store a process keeps mapped in memory: a bound, kept by giving pages back to the kernel's cache.

In: which entries are read, and how much of them. Nothing is lost by it: a page that is read again comes from the
kernel's cache of the disk, which is not the process's, or from the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from trainables.features.reading import Features

# Around a page that is missing the kernel maps its neighbours, as far as it has them (fault_around_bytes).
_AROUND_BYTES = 1 << 16
_SHARE_OF_MEMORY = 0.25


class PageBudget:
    """Gives pages back before those in memory are more than a limit.

    Args:
        limit_bytes: Most memory that pages of stored features take in this process; None: a quarter of the machine's.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._limit_bytes = int(_SHARE_OF_MEMORY * memory) if limit_bytes is None else limit_bytes
        self._mapped: dict[int, tuple[Features, int]] = {}

    def touch(self, features: Features, num_rows: int) -> None:
        """Notes that some rows were read, and gives all pages back where the limit could be passed by as many again."""
        touched = num_rows * (features.plan.row_bytes + _AROUND_BYTES)
        _, before = self._mapped.get(id(features), (features, 0))
        self._mapped[id(features)] = features, min(before + touched, features.num_bytes)
        if sum(num_bytes for _, num_bytes in self._mapped.values()) + touched > self._limit_bytes:
            for held, _ in self._mapped.values():
                held.release()
            self._mapped.clear()

    def forget(self, closed: Iterable[Features]) -> None:
        """Lets go of entries that are closed; their maps end with the last tensor on them."""
        for features in closed:
            self._mapped.pop(id(features), None)
