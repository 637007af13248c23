"""Optuna's TPE and Gaussian process, judging every trial by the best epoch that it had, as the champion is chosen.

Optuna ranks a trial that was stopped early behind every whole one. Here that would teach it the wrong thing: a trial
that successive halving stopped at its sixth epoch may be the best of all, and lone heads, which halving spares, are
always whole, so proposals would drift to them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Container
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_MOST_GOOD = 25


class BestEpochTPE(optuna.samplers.TPESampler):
    """TPE to which a stopped trial is worth its best intermediate value; what the study says of it stays as it is.

    Of n trials the best 0.75 sqrt(n) count as good (Watanabe 2023, "Tree-Structured Parzen Estimator", section 4):
    Optuna's own tenth would be a single one until there are eleven.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._gamma = num_good

    def _sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Called by Optuna (5.0) for each group of fields; reads the study's trials and proposes."""
        judged: dict[str, Any] = super()._sample(_Judged(study), trial, search_space)  # type: ignore[arg-type]
        return judged


class BestEpochGP(optuna.samplers.GPSampler):
    """A Gaussian process to which a stopped trial is worth its best intermediate value."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Called by Optuna for the fields that all trials have, the stopped ones too."""
        found: dict[str, BaseDistribution] = super().infer_relative_search_space(_Judged(study), trial)  # type: ignore[arg-type]
        return found

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Called by Optuna for those fields together."""
        proposed: dict[str, Any] = super().sample_relative(_Judged(study), trial, search_space)  # type: ignore[arg-type]
        return proposed


def num_good(num_trials: int) -> int:
    """How many of so many trials are what the next one should resemble."""
    return min(math.ceil(0.75 * math.sqrt(num_trials)), _MOST_GOOD)


def judged_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended with a value, by number; a stopped one is whole, worth its best epoch."""
    return _Judged(study)._get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


class _Judged:
    """A study whose stopped trials are whole ones, worth their best epoch."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._best = max if study.direction == StudyDirection.MAXIMIZE else min

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        wanted = states
        if states is not None and TrialState.COMPLETE in states:
            wanted = tuple(state for state in TrialState if state in states or state == TrialState.PRUNED)
        trials = self._study._get_trials(deepcopy=deepcopy, states=wanted, use_cache=use_cache)
        judged = (self._judge(trial) for trial in trials)
        return [trial for trial in judged if states is None or trial.state in states]

    def _judge(self, trial: FrozenTrial) -> FrozenTrial:
        if trial.state != TrialState.PRUNED or not trial.intermediate_values:
            return trial
        whole = copy.copy(trial)
        whole.state, whole.value = TrialState.COMPLETE, self._best(trial.intermediate_values.values())
        return whole
