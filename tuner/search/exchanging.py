"""One member of a population takes over another's weights: checkpoints are copied, and the journal is told.

In: the moves that a scheduler has decided, while both members wait. Out: the donor's last and best checkpoints in the
member's directory, as if it had trained them, and one record of all moves. Checkpoints come first: what is cut off
before the record is written is decided and done again, with the same result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from trainables.config import TrialConfig
from trainables.files.outages import patiently
from trainables.files.storage import join, make_durable, read_bytes, write_bytes
from trainables.jobs import BEST_CHECKPOINT, LAST_CHECKPOINT
from trainables.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from tuner.search.members import Move

logger = logging.getLogger(__name__)


class Exchange:
    """Makes the moves of a population.

    Args:
        directory_of: Where a trial's checkpoints are, by its number: a path or URI.
        config_of: The whole configuration of a point.
        record: Writes the journal.

    Attributes:
        tell: Called with the epoch and the moves when they are made.
    """

    def __init__(
        self,
        directory_of: Callable[[int], str],
        config_of: Callable[[Mapping[str, Any]], TrialConfig],
        record: Callable[..., object],
    ) -> None:
        self._directory_of, self._config_of, self._record = directory_of, config_of, record
        self.tell: Callable[[int, Sequence[Move]], object] = lambda _epoch, _moves: None

    def __call__(self, epoch: int, moves: Sequence[Move]) -> list[Move]:
        """Makes the moves after an epoch; returns those that could be made."""
        made = [move for move in moves if self._copy(epoch, move)]
        self._record("exchange", epoch=epoch, moves=[asdict(move) for move in made])
        self.tell(epoch, made)
        return made

    def _copy(self, epoch: int, move: Move) -> bool:
        source, target = self._directory_of(move.donor), self._directory_of(move.number)
        try:
            last = patiently(partial(load_checkpoint, join(source, LAST_CHECKPOINT)), "checkpoints", doing="read")
            if last.meta["epoch"] != epoch:
                raise CheckpointError(f"it is of epoch {last.meta['epoch']}")
            best = patiently(partial(read_bytes, join(source, BEST_CHECKPOINT)), "checkpoints", doing="read")
        except (FileNotFoundError, CheckpointError) as error:
            logger.warning(
                "trial %d goes on as it is: the checkpoint of trial %d after epoch %d cannot be taken over (%s)",
                move.number, move.donor, epoch, error,
            )  # fmt: skip
            return False
        meta = {**last.meta, "config": self._config_of(move.params).model_dump(mode="json")}
        patiently(partial(self._put, target, replace(last, meta=meta), best), "checkpoints")
        return True

    @staticmethod
    def _put(target: str, last: Checkpoint, best: bytes) -> None:
        save_checkpoint(join(target, LAST_CHECKPOINT), last)
        write_bytes(join(target, BEST_CHECKPOINT), best)
        for name in (LAST_CHECKPOINT, BEST_CHECKPOINT):
            make_durable(join(target, name))
