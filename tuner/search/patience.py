"""Ends trials that have stopped becoming better, whatever the others do; an interruption does not make it forget.

In: each epoch's metric, and the trials that the journal already knows. Out: whether a trial is over, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuner.search.searching import Mode, finite, finite_values

if TYPE_CHECKING:
    from tuner.records.journal import TrialRecord


class Patience:
    """How long each trial of a sweep has not become better.

    Args:
        epochs: A trial is over when its best epoch is so many epochs ago; None: never.
        metric: What counts.
        mode: Whether a good trial has a small or a large metric.
        history: The trials that the journal knows.

    Attributes:
        overdue: Numbers of trials of the history that have no outcome and are over: the sweep ended before anybody
            acted on it.
    """

    def __init__(self, epochs: int | None, metric: str, mode: Mode, history: Sequence[TrialRecord] = ()) -> None:
        self._epochs, self._metric, self._sign = epochs, metric, 1 if mode == "max" else -1
        self._best: dict[int, tuple[float, int]] = {}
        self._last: dict[int, int] = {}
        overdue = []
        for trial in history:
            values = finite_values(trial, metric)
            over = [self.is_over(trial.number, epoch, values.get(epoch)) for epoch in range(1, len(trial.epochs) + 1)]
            if trial.outcome is None and over and over[-1]:
                overdue.append(trial.number)
        self.overdue = tuple(overdue)

    def is_over(self, number: int, epoch: int, value: float | None) -> bool:
        """Takes an epoch in, once however often it is told; a value that is not finite is no better than any."""
        value = finite(value)
        if epoch > self._last.get(number, 0):
            self._last[number] = epoch
            if value is not None and (number not in self._best or self._sign * value > self._best[number][0]):
                self._best[number] = self._sign * value, epoch
        return self._epochs is not None and epoch - self._best.get(number, (0.0, 0))[1] >= self._epochs

    def reason(self, number: int) -> str | None:
        """Why a trial is over; None while it is not."""
        if self._epochs is None or self._last.get(number, 0) - self._best.get(number, (0.0, 0))[1] < self._epochs:
            return None
        return f"no better {self._metric} for {self._epochs} epochs (early_stopping.patience)"
