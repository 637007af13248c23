"""What a search has spent of its budget: seconds and FLOPs, earlier runs of the same sweep included.

In: the bounds, the journal's records, the epochs as they come. Out: whether something is spent, and how much of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tuner.records.journal import Record

TIME_IS_UP = "the time budget is spent"
FLOPS_ARE_SPENT = "the budget of FLOPs is spent"
GFLOPS = "compute/gflops"
_SEARCHING = frozenset({"trial", "epoch", "end"})
_ENDS_SEARCH = frozenset({"sweep", "search", "baseline", "refit", "champion", "finished", "interrupted"})


class Spending:
    """A search's account; its clock runs from when it is made.

    Args:
        time_s: Seconds that the search may take; None for any number.
        flops: FLOPs that it may compute; None for any number.
        records: The journal so far: what earlier runs spent is counted.
        clock: Seconds.
    """

    def __init__(
        self,
        *,
        time_s: float | None = None,
        flops: float | None = None,
        records: Iterable[Record] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._time_s, self._flops, self._clock = time_s, flops, clock
        self._past_s, self.flops = spent_before(records)
        self._started = clock()
        self._counted: set[tuple[str, int]] = set()

    @property
    def seconds(self) -> float:
        """Of searching, the present run's included."""
        return self._past_s + self._clock() - self._started

    def see(self, trial: str, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Counts an epoch, once."""
        if (trial, epoch) not in self._counted:
            self._counted.add((trial, epoch))
            self.flops += 1e9 * float(metrics.get(GFLOPS) or 0.0)

    @property
    def reason(self) -> str | None:
        """What is spent, in words; None while there is some of everything left."""
        if self._time_s is not None and self.seconds >= self._time_s:
            return TIME_IS_UP
        return FLOPS_ARE_SPENT if self._flops is not None and self.flops >= self._flops else None

    @property
    def share(self) -> float | None:
        """How much is spent of what is spent most, from 0 to 1; None without a bound."""
        shares: list[float] = []
        if self._time_s is not None:
            shares.append(self.seconds / self._time_s)
        if self._flops is not None:
            shares.append(self.flops / self._flops)
        return min(1.0, max(shares)) if shares else None

    def seconds_left(self) -> float | None:
        """An estimate, FLOPs being spent as fast as until now; None without a bound or any experience."""
        estimates: list[float] = []
        if self._time_s is not None:
            estimates.append(self._time_s - self.seconds)
        if self._flops is not None and self.flops > 0:
            estimates.append((self._flops - self.flops) * self.seconds / self.flops)
        return max(0.0, min(estimates)) if estimates else None


def spent_before(records: Iterable[Record]) -> tuple[float, float]:
    """Seconds and FLOPs of all searching that a journal tells of, time between the runs and after the search aside.

    An epoch that was run again after an interruption was computed twice and counts twice.
    """
    seconds, gflops = 0.0, 0.0
    began: float | None = None
    last = 0.0
    for record in records:
        event = record["event"]
        if began is not None and event in _ENDS_SEARCH:
            # Clocks are set back now and then; no run took less than no time.
            seconds += max(0.0, (record["time"] if event == "interrupted" else last) - began)
            began = None
        if event == "search":
            began = last = record["time"]
        elif began is not None and event in _SEARCHING:
            last = record["time"]
            if event == "epoch":
                gflops += float(record["metrics"].get(GFLOPS) or 0.0)
    return seconds + (0.0 if began is None else max(0.0, last - began)), 1e9 * gflops
