"""The one model that comes of a trial whose score is a mean of several trainings.

In: a trial's configuration and its best epoch. Out: a configuration of one training, and the folder of its weights.

The rule. With folds every model has been kept from some of the pictures, and none is the one that was scored: the mean
was. So the configuration is trained once more, on all pictures that are not tested, along the same schedule and up to
the epoch at which the mean over folds was best (one number, chosen before the refit, which nothing judges); the test
side is read once, for this model. It learns from k / (k - 1) times as many pictures as the folds did, so that the mean
over folds is, if anything, modest about it. With seeds alone the first seed's model at the mean's best epoch is kept,
the one that a trial without repeats would have: to keep the best of them would choose by luck, and say nothing true of
what the next training gives. Baselines are treated alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trainables.config import TrialConfig
from trainables.files.storage import join
from trainables.jobs import BEST_CHECKPOINT, TrainJob
from tuner.cluster.lanes import LaneError, LanePool
from tuner.records.journal import Record

FIRST_REFIT = 20_000
"""Refits are numbered from here, far from any trial and baseline."""


@dataclass(frozen=True)
class Model:
    """Weights that can be tested and exported.

    Attributes:
        config: Of the training that they came of.
        directory: Where its checkpoints are.
    """

    config: TrialConfig
    directory: str

    @property
    def checkpoint(self) -> str:
        """Of the weights."""
        return join(self.directory, BEST_CHECKPOINT)


def is_refit(config: TrialConfig) -> bool:
    """Whether a trial's model is trained after its score is known."""
    return config.data.folds > 0


def kept_model(config: TrialConfig, directory: str) -> Model:
    """The model that a trial without folds has kept in its folder."""
    return Model(config.replicas()[0], directory)


def refit(
    config: TrialConfig, directory: str, num_epochs: int, *, name: str, pool: LanePool, record: Callable[..., object],
    number: int, champion: int,
) -> Model:  # fmt: skip
    """Trains a configuration on all pictures that are not tested; goes on where an earlier run of it stopped.

    Args:
        config: The trial's.
        directory: For this training's checkpoints and nothing else.
        num_epochs: How far.
        name: Whose refit it is.
        pool: Lanes; the first that is free does it.
        record: Writes the journal.
        number: Under which it is recorded.
        champion: The trial that has won, whose model or whose baseline's it is.

    Raises:
        LaneError: It failed or diverged; the journal says so.
    """
    started = time.monotonic()
    params = {"refit_of": name, "epochs": num_epochs}
    record("refit", number=number, name=name, params=params, champion=champion)
    outcome, reason = "completed", None
    try:
        for message in pool.run(TrainJob(config=config.refit(), directory=directory, last_epoch=num_epochs)):
            outcome, reason = message.get("outcome") or outcome, message.get("reason")
            if message["metrics"]:
                record("epoch", number=number, epoch=message["epoch"], metrics=message["metrics"])
    except LaneError as error:
        outcome, reason = "failed", str(error)
    totals = {"time/trial_s": time.monotonic() - started}
    record("end", number=number, outcome=outcome, reason=reason, metrics=totals)
    if outcome != "completed":
        raise LaneError(f"the refit of {name} on all pictures that are not tested {outcome}: {reason}")
    return Model(config.refit(), directory)


def diverged_refits(records: Iterable[Record]) -> set[int]:
    """The trials whose refit diverged, which it would again; a baseline's refit says nothing of its champion."""
    refits: dict[int, int] = {}
    diverged: set[int] = set()
    for record in records:
        if record["event"] == "refit" and record["name"] == f"trial {record.get('champion')}":
            refits[record["number"]] = record["champion"]
        elif record["event"] == "end" and record["outcome"] == "diverged" and record["number"] in refits:
            diverged.add(refits[record["number"]])
    return diverged
