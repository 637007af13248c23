"""A trial that is several trainings in lockstep: one per fold of cross-validation and per seed, scored by their mean.

In: what `TrialRun` takes, for a configuration with folds or repeats. Out: what it gives: metrics per epoch, and one
checkpoint that holds all. After each epoch every replica has been trained as far, so whoever judges a trial by its
epochs (successive halving, patience, a person) judges the mean, and a trial that is given up has cost as many epochs
of each. Replicas are trained one after another and share nothing but the workbench: each gives the bits that it would
give alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Literal

import torch

from trainables.config import TrialConfig
from trainables.jobs import SPREAD
from trainables.ranks import Ranks
from trainables.training.checkpoint import Checkpoint, CheckpointError
from trainables.training.loop import DivergedError, TrialRun
from trainables.training.workbench import Workbench

_SUMMED = ("time/", "compute/")


class ReplicatedRun:
    """One trial of several replicas on one rank; every rank of the lane makes the same one.

    Args:
        config: What to train; see `TrialConfig.replicas`.
        bench: The process's workbench.
        ranks: This process among the lane's workers.
        cuts_to_keep: See `TrainJob`.
    """

    def __init__(
        self,
        config: TrialConfig,
        bench: Workbench,
        ranks: Ranks,
        cuts_to_keep: Mapping[Literal["train", "val"], Collection[int]] | None = None,
    ) -> None:
        self.config = config
        self.replicas: tuple[TrialRun, ...] = ()
        try:
            for replica in config.replicas():
                self.replicas = (*self.replicas, TrialRun(replica, bench, ranks, cuts_to_keep))
        except BaseException:
            self.close()
            raise

    @property
    def epoch(self) -> int:
        """Epochs that every replica has been trained for."""
        return min(replica.epoch for replica in self.replicas)

    def close(self) -> None:
        """Lets go of the stored features that the replicas read."""
        for replica in self.replicas:
            replica.close()

    def run_epoch(self, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Trains one epoch of every replica; see `combined` for what is said of them.

        Raises:
            DivergedError: The loss of one is not finite: the mean of the others would be too good.
            StoppedError: ``should_stop`` said so; the run is of no use then.
        """
        metrics = []
        for replica in self.replicas:
            try:
                metrics.append(replica.run_epoch(should_stop))
            except DivergedError as error:
                raise DivergedError(f"{_named(replica.config, self.config)}: {error}") from error
        return combined(metrics, num_folds=len(metrics) // self.config.repeats)

    def checkpoint(self, meta: dict[str, Any] | None = None, *, weights_only: bool = False) -> Checkpoint:
        """The state of all after their last whole epoch; see `TrialRun.checkpoint`.

        Args:
            meta: JSON values to keep beside the loop's own.
            weights_only: The first replica alone, as a checkpoint of its own configuration: where there are no folds it
                is the trial's model, and the others say how far to trust it.
        """
        if weights_only:
            return self.replicas[0].checkpoint(meta, weights_only=True)
        states = [replica.checkpoint() for replica in self.replicas]
        return Checkpoint(
            prefix_hash=_joined_hash([state.prefix_hash for state in states]),
            tail=_numbered([state.tail for state in states]),
            meta={"epoch": self.epoch, "config": self.config.model_dump(mode="json"), **(meta or {})},
            optimizer=_numbered([state.optimizer for state in states]),
            average=_numbered([state.average for state in states]),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from ``checkpoint``: what follows equals what an uninterrupted trial would give.

        Raises:
            CheckpointError: It was made for other replicas, another network, or on other frozen weights.
        """
        hashes = [replica.prefix_hash for replica in self.replicas]
        tail = checkpoint.tail_for(_joined_hash(hashes))
        for number, replica in enumerate(self.replicas):
            own = Checkpoint(
                prefix_hash=hashes[number],
                tail=_of_number(tail, number),
                meta=checkpoint.meta,
                optimizer=_of_number(checkpoint.optimizer, number),
                average=_of_number(checkpoint.average, number),
            )
            if not own.tail:
                raise CheckpointError(f"this checkpoint has no weights of {_named(replica.config, self.config)}")
            replica.restore(own)


def combined(metrics: Sequence[Mapping[str, float]], num_folds: int) -> dict[str, float]:
    """One epoch of all replicas as one of a trial.

    Scores are means, seconds and FLOPs sums. Beside a validation score stands its standard deviation (with n - 1): over
    folds, each the mean of its repeats, or where there is but one split over the seeds.

    Args:
        metrics: Of each replica, by fold and in it by seed.
        num_folds: How many folds these are; 1 where there are only seeds.
    """
    result: dict[str, float] = {}
    # What a fold has no figure for (an area under a curve, where it shows one class) the trial has none for.
    for name in (name for name in metrics[0] if all(name in each for each in metrics)):
        values = [each[name] for each in metrics]
        if name.startswith(_SUMMED):
            result[name] = math.fsum(values)
            continue
        result[name] = fmean(values)
        if name.startswith("val/"):
            size = len(values) // num_folds
            of_folds = [fmean(values[first : first + size]) for first in range(0, len(values), size)]
            result[name + SPREAD] = stdev(of_folds if num_folds > 1 else values)
    return result


def _named(replica: TrialConfig, trial: TrialConfig) -> str:
    seed, fold = f"seed {replica.seed}", replica.data.fold
    return f"fold {fold + 1} of {trial.data.folds}, {seed}" if isinstance(fold, int) else seed


def _joined_hash(hashes: Sequence[str]) -> str:
    """Of weights that are one file one hash; random ones are drawn from each seed."""
    return "+".join(dict.fromkeys(hashes))


def _numbered(tensors: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{number}/{name}": tensor for number, each in enumerate(tensors) for name, tensor in each.items()}


def _of_number(tensors: Mapping[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    prefix = f"{number}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
