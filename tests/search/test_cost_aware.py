"""An acquisition that weighs improvement against FLOPs, in the place of Optuna's own."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest

from search_spaces.search_spec import SearchSpec
from search_spaces.space import SearchSpace
from tuner.search.cost_aware import Cooling, CostAwareTPE
from tuner.search.sampling import BestEpochTPE

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE = SearchSpace(SearchSpec(), num_stages=6)
OPTIONS = {"multivariate": True, "group": True, "n_startup_trials": 10}


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def price(point: Any) -> float:
    assert {"freeze_depth", "augmentation"} <= set(point)
    return 7.0 - point["freeze_depth"]


def study_of(num_trials: int) -> optuna.Study:
    """Trials of which the depth does not matter, so that only the price can choose among depths."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(num_trials):
        trial = study.ask()
        point = SPACE.suggest(trial)
        study.tell(trial, -abs(math.log10(point["lr"] / 3e-3)))
    return study


def proposals(weight: float, number: int = 12) -> list[Any]:
    points = []
    for seed in range(number):
        study = study_of(40)
        study.sampler = CostAwareTPE(price, SPACE.fixed, weight, seed=seed, **OPTIONS)
        points.append(SPACE.suggest(study.ask()))
    return points


def test_without_weight_the_price_is_no_matter() -> None:
    plain = []
    for seed in range(4):
        study = study_of(40)
        study.sampler = BestEpochTPE(seed=seed, **OPTIONS)
        plain.append(SPACE.suggest(study.ask()))
    assert proposals(0.0, 4) == plain


def test_cheap_trials_are_proposed_while_the_price_counts() -> None:
    dear, cheap = (sum(map(price, proposals(weight))) for weight in (0.0, 1.0))
    assert cheap < 0.75 * dear
    assert proposals(1.0, 3) == proposals(1.0, 3), "the seed decides"
    assert all(SPACE.contains(point) for point in proposals(1.0, 3))


def test_the_price_cools_by_the_bound_that_is_nearest() -> None:
    assert Cooling(num_trials=20).weight(5, 1e15, 1e9) == 0.75
    assert Cooling(flops=4e12).weight(5, 1e12, 1e9) == 0.75
    assert Cooling(num_trials=20, flops=4e12, lane_s=100.0).weight(5, 1e12, 90.0) == pytest.approx(0.1)
    assert Cooling(lane_s=10.0).weight(0, 0.0, 11.0) == 0.0
    with pytest.raises(ValueError, match="needs a budget"):
        Cooling().weight(0, 0.0, 0.0)
