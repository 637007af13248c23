"""Proposals that weigh what a trial should bring against what it computes.

In: what Optuna's Parzen estimators think of some candidates, and the FLOPs of each. Out: the candidate that is tried.
The rule itself is `search_spaces.costs.best_for_its_price`; here it is put in the place of TPE's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.costs import best_for_its_price, cooled_price_weight
from tuner.search.sampling import BestEpochTPE

if TYPE_CHECKING:
    from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator

_PRICED_BY = frozenset({"freeze_depth", "augmentation"})


@dataclass(frozen=True)
class Cooling:
    """How the price counts less and less while a sweep spends its budget; what is None is no bound.

    Attributes:
        num_trials: Of the sweep, or what its budget pays for on average.
        flops: That it may compute.
        lane_s: Seconds that all its lanes together may train.
    """

    num_trials: float | None = None
    flops: float | None = None
    lane_s: float | None = None

    def weight(self, num_trials: int, flops: float, lane_s: float) -> float:
        """The exponent of the price when so much is spent; the bound that is nearest counts.

        Raises:
            ValueError: There is no bound.
        """
        spent = ((num_trials, self.num_trials), (flops, self.flops), (lane_s, self.lane_s))
        shares = [amount / bound for amount, bound in spent if bound is not None]
        if not shares:
            raise ValueError("a price that cools needs a budget")
        return cooled_price_weight(max(shares), 1.0)


class CostAwareTPE(BestEpochTPE):
    """TPE whose acquisition is improvement per ``cost ** price_weight``.

    Of the candidates that TPE draws where good trials are dense, it takes the one with the largest ratio of densities.
    This one takes the best for its price among the same candidates. Fields that do not decide the price, and groups of
    fields without those that do, are left to TPE.

    Args:
        price: As FLOPs, of a point of which the depth and the policy are known.
        fixed: Fields with one value.
        price_weight: 0 ignores the price.
        options: Of TPE.
    """

    def __init__(
        self,
        price: Callable[[Mapping[str, Any]], float],
        fixed: Mapping[str, Any],
        price_weight: float,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._price, self._fixed, self._price_weight = price, fixed, price_weight

    def _compute_acquisition_func(
        self, samples: dict[str, np.ndarray], mpe_below: _ParzenEstimator, mpe_above: _ParzenEstimator
    ) -> np.ndarray:
        """Called by Optuna (5.0) with its candidates as columns of its own numbers; the largest result wins."""
        ratios: np.ndarray = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        if self._price_weight == 0 or not samples.keys() | self._fixed.keys() >= _PRICED_BY:
            return ratios
        distributions = mpe_below._search_space
        candidates = [
            {name: distributions[name].to_external_repr(column[row].item()) for name, column in samples.items()}
            for row in range(len(ratios))
        ]
        costs = [self._price({**self._fixed, **candidate}) for candidate in candidates]
        chosen = best_for_its_price(ratios.tolist(), costs, price_weight=self._price_weight)
        worths = np.zeros(len(ratios))
        worths[chosen] = 1.0
        return worths
