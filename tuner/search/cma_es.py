"""Optuna's CMA-ES, told its generations anew for each trial.

Optuna keeps the state of the evolution in the study's trials, which do not outlive the process. Here it follows from
what the trials were and brought, so a proposal is the same before and after an interruption.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna

from tuner.search.sampling import BestEpochTPE, judged_trials

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class BestEpochCmaEs(optuna.samplers.CmaEsSampler):
    """CMA-ES (Hansen and Ostermeier 2001) over the numbers that all trials have; a TPE proposes the rest, one by one.

    A generation is so many trials one behind the other in the order of their numbers, those aside that failed or have
    not ended; of each the best epoch counts. The distribution begins in the middle of the space.

    Args:
        numbers: The fields that it moves, at least two.
        num_startup: Trials that were not proposed by it.
        seed: Of this proposal.
    """

    def __init__(self, numbers: Mapping[str, BaseDistribution], num_startup: int, seed: int) -> None:
        self._numbers, self._num_startup, self._seed = dict(numbers), num_startup, seed
        self._generation_size = 4 + math.floor(3 * math.log(len(numbers)))
        super().__init__(
            n_startup_trials=0,
            independent_sampler=BestEpochTPE(seed=seed, n_startup_trials=num_startup),
            warn_independent_sampling=False,
            seed=seed,
            popsize=self._generation_size,
        )

    def infer_relative_search_space(self, *_: Any) -> dict[str, BaseDistribution]:
        """Called by Optuna: Optuna's own goes by the trials so far, and gives up when it finds fewer fields later."""
        return self._numbers

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Called by Optuna (5.0): brings the evolution up to date and asks it."""
        if trial.number < self._num_startup:
            return {}
        past: list[FrozenTrial] = []
        ended = [other for other in judged_trials(study) if other.number < trial.number]
        for index, other in enumerate(ended[self._num_before(ended) :]):
            generation, place = divmod(index, self._generation_size)
            attributes: dict[str, Any] = {}
            if generation and not place:
                super().sample_relative(_Past(study, past, attributes), trial, search_space)  # type: ignore[arg-type]
            known = copy.copy(other)
            known.system_attrs = {**attributes, self._attr_key_generation: generation}
            past.append(known)
        self._cma_rng.rng.seed(self._seed)  # what came before has drawn from it too
        proposed: dict[str, Any] = super().sample_relative(_Past(study, past, {}), trial, search_space)  # type: ignore[arg-type]
        return proposed

    def _num_before(self, ended: Sequence[FrozenTrial]) -> int:
        return sum(trial.number < self._num_startup for trial in ended)


class _Past:
    """A study that holds some trials; what Optuna notes of the present one goes into a mapping."""

    def __init__(self, study: optuna.Study, trials: list[FrozenTrial], attributes: dict[str, Any]) -> None:
        self.direction, self._trials, self._attributes = study.direction, trials, attributes
        self._storage = self

    def _is_multi_objective(self) -> bool:
        return False

    def _get_trials(self, **_: Any) -> list[FrozenTrial]:
        return self._trials

    def set_trial_system_attr(self, _trial_id: int, key: str, value: Any) -> None:
        self._attributes[key] = value
