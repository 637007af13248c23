"""Which checkpoints stay: those of the best trials, and what trials that run go on from.

In: trials as they end. Out: files removed. An ended trial never runs again, so its last state goes at once; its best
weights stay while it is among the best few. Nothing is removed before a whole checkpoint of a better trial was read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from operator import itemgetter

from trainables.files.storage import join, remove_file
from trainables.jobs import BEST_CHECKPOINT, LAST_CHECKPOINT
from trainables.training.checkpoint import is_whole
from tuner.records.champion import is_fit, merit
from tuner.records.journal import TrialRecord

logger = logging.getLogger(__name__)


class Keeper:
    """Keeps the checkpoints of the best trials.

    Args:
        directory_of: Where a trial's checkpoints are, by its number: a path or URI.
        metric: What decides.
        mode: ``max`` or ``min``.
        num_best: How many trials keep their best weights, at least one.
        trials: Those that have ended before.
    """

    def __init__(
        self,
        directory_of: Callable[[int], str],
        *,
        metric: str,
        mode: str,
        num_best: int,
        trials: Sequence[TrialRecord] = (),
    ) -> None:
        self._directory_of, self._metric, self._mode = directory_of, metric, mode
        self._num_best = max(1, num_best)
        self._kept: list[tuple[tuple[float, float, int], TrialRecord]] = []
        self._is_read: set[int] = set()
        for trial in trials:
            if trial.outcome is not None:
                self.take(trial)

    def take(self, trial: TrialRecord) -> None:
        """Removes what an ended trial leaves that nobody needs; a storage that is away is no reason to stop."""
        try:
            remove_file(join(self._directory_of(trial.number), LAST_CHECKPOINT))
            if not is_fit(trial, self._metric):
                remove_file(join(self._directory_of(trial.number), BEST_CHECKPOINT))
                return
            # Merit takes a look at every epoch: once for each trial, of which a sweep that goes on may have thousands.
            self._kept.append((merit(trial, self._metric, self._mode), trial))
            self._kept.sort(key=itemgetter(0), reverse=True)
            while len(self._kept) > self._num_best and self._has_whole(self._kept[: self._num_best]):
                _, worst = self._kept.pop()
                remove_file(join(self._directory_of(worst.number), BEST_CHECKPOINT))
        except OSError as error:
            logger.warning("checkpoints that nobody needs could not be removed: %s", error)

    def _has_whole(self, trials: Sequence[tuple[object, TrialRecord]]) -> bool:
        """Whether a checkpoint of one of them was read and found whole; each is read once."""
        for _, trial in trials:
            if trial.number in self._is_read:
                return True
            if is_whole(join(self._directory_of(trial.number), BEST_CHECKPOINT)):
                self._is_read.add(trial.number)
                return True
        return False
