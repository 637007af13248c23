"""How much of this machine others took while a program ran: a figure beside every measurement of minutes.

In: the process id of the program. Out: a share of the machine's processor time. Read from the kernel's counters every
few seconds; where there are none (no ``/proc``), the share is unknown.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_EVERY_S = 2.0


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
        # By process and its start. The dead stay in it: Ray's raylet does not wait for its children, so their time is
        # in nobody's sum. What a process did after the last look is missed, and then looks like a neighbour's.
        own: dict[tuple[int, int], int] = {}
        while not self._is_over.wait(_EVERY_S):
            below = _ticks_below(self._root)
            if not below:
                return
            own |= below
            ticks = (time.perf_counter() - started) * (os.cpu_count() or 1) * os.sysconf("SC_CLK_TCK")
            self.share = max(0.0, (_busy_ticks() - busy_before - sum(own.values())) / ticks)


def _busy_ticks() -> int:
    """Ticks since boot, over all processors, that were neither idle nor waiting for a disk."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return user + nice + system + sum(rest)


def _ticks_below(root: int) -> dict[tuple[int, int], int]:
    """Ticks of ``root`` and everything alive under it, by process and its start."""
    return {(process.pid, process.start): process.used for process in processes_below(root)}


class Process(NamedTuple):
    """One process that is alive: its start since boot and the processor time that it used, both in clock ticks."""

    pid: int
    start: int
    used: int


def processes_below(root: int) -> Iterator[Process]:
    """``root`` and everything alive under it."""
    parents: dict[int, int] = {}
    found: list[Process] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        process = Process(int(folder.name), start=int(fields[19]), used=int(fields[11]) + int(fields[12]))
        parents[process.pid] = int(fields[1])
        found.append(process)
    for process in found:
        ancestor = process.pid
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
        if ancestor == root:
            yield process
