"""Optuna's samplers that try every point of a finite space once, so that an interruption does not disturb them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import optuna

from search_spaces.listing import grid_of
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, TrialState


_MOST_COMBINED = 5_000_000
"""Combinations of all values that Optuna lists before those without effect are taken out."""


class NumberedGrid(optuna.samplers.GridSampler):
    """A grid in an order that the seed shuffles; a trial's number alone says which point it gets.

    Combinations that differ only in a field without effect are one.

    Args:
        space: Without ranges of real numbers.
        seed: Of the order.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        axes, distinct = grid_of(space)
        if math.prod(map(len, axes.values())) <= _MOST_COMBINED:
            super().__init__(axes, seed=seed)
            self._all_grids = [values for values in self._all_grids if values in distinct]
        else:  # each network has its own depths: all of them combined would fill the memory
            super().__init__({name: values[:1] for name, values in axes.items()}, seed=seed)
            self._search_space = axes
            places = {name: {value: place for place, value in enumerate(values)} for name, values in axes.items()}
            self._all_grids = sorted(
                distinct, key=lambda values: [places[n][v] for n, v in zip(axes, values, strict=True)]
            )
            self._rng.rng.shuffle(self._all_grids)  # type: ignore[arg-type]
        self._n_min_trials = len(self._all_grids)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Called by Optuna (5.0): Optuna's own leaves trials out that are given again after an interruption."""
        study._storage.set_trial_system_attr(trial._trial_id, "grid_id", trial.number)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Ends nothing: the searcher counts."""


class NumberedBruteForce(optuna.samplers.BruteForceSampler):
    """Every point once, in random order; which one depends on the points before and the seed, not on their results."""

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Ends nothing: the searcher counts."""
