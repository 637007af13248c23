"""How much of this machine others took while a program ran: a figure beside every measurement of minutes.

In: the process id of the program. Out: a share of the machine's processor time. Read from the kernel's counters every
few seconds; where there are none (no ``/proc``), the share is unknown.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

_EVERY_S = 3.0


class Neighbours:
    """Watches one process and all below it while a ``with`` block runs; what else the machine did is its neighbours'.

    Attributes:
        share: Of the machine's processor time that went to others; None where the kernel does not say.
    """

    def __init__(self, root: int) -> None:
        self.share: float | None = None
        self._root = root
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Neighbours:
        if Path("/proc/stat").exists():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        started, busy_before = time.perf_counter(), _busy_ticks()
        while not self._is_over.wait(_EVERY_S):
            # What a dead child used is counted in its parent's sum; what is gone with its parent is missed, and then
            # looks like a neighbour's: the share errs on the high side.
            own = _ticks_below(self._root)
            if not own:
                return
            ticks = (time.perf_counter() - started) * (os.cpu_count() or 1) * os.sysconf("SC_CLK_TCK")
            self.share = max(0.0, (_busy_ticks() - busy_before - own) / ticks)


def _busy_ticks() -> int:
    """Ticks since boot, over all processors, that were neither idle nor waiting for a disk."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return user + nice + system + sum(rest)


def _ticks_below(root: int) -> int:
    """Ticks of ``root`` and everything under it, their dead children included."""
    table: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        table[int(folder.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    total = 0
    for pid, (_, ticks) in table.items():
        ancestor = pid
        while ancestor in table and ancestor != root:
            ancestor = table[ancestor][0]
        total += ticks if ancestor == root else 0
    return total
