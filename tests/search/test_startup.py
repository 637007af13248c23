"""The first trials are drawn together, sorted by price, and numbered afterwards."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from search_spaces.advice import rules_of_thumb
from search_spaces.search_spec import SearchSpec
from search_spaces.space import SearchSpace
from tuner.search.startup import num_startup_trials, seed_of, startup_points

SPACE = SearchSpace(SearchSpec(), num_stages=6)
RULES = rules_of_thumb(SPACE)


def price(point: Any) -> float:
    return float(-point["freeze_depth"])


def draw(**changes: Any) -> list[Any]:
    return startup_points(SPACE, **{"first_points": RULES, "num_points": 10, "seed": 0, "price": price, **changes})


def test_given_points_and_random_ones_go_by_price() -> None:
    points = draw()
    depths = [point["freeze_depth"] for point in points]
    assert depths == sorted(depths, reverse=True)
    assert len(set(depths)) > 2
    assert all(any(rule.items() <= point.items() for point in points) for rule in RULES)
    assert all(SPACE.contains(point) for point in points)


def test_the_price_changes_the_order_and_nothing_else() -> None:
    plain = draw(price=lambda _: 0.0)
    key = str
    assert sorted(map(key, plain)) == sorted(map(key, draw()))
    assert draw() == draw()
    assert draw(seed=1) != draw()


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_random_points_are_those_that_tpe_would_have_drawn() -> None:
    study = optuna.create_study()
    study.sampler = optuna.samplers.TPESampler(multivariate=True, group=True, seed=seed_of(0, 5))
    assert draw(price=lambda _: 0.0)[5] == SPACE.suggest(study.ask())


def test_what_a_given_point_leaves_out_is_drawn() -> None:
    (point,) = draw(first_points=[{"freeze_depth": 2}], num_points=1)
    assert point["freeze_depth"] == 2
    assert SPACE.contains(point)


@pytest.mark.parametrize(("num_given", "expected"), [(0, 8), (3, 8), (6, 8), (7, 9), (12, 14)])
def test_beside_given_points_some_are_drawn(num_given: int, expected: int) -> None:
    assert num_startup_trials(num_given) == expected


def test_of_too_many_given_points_the_foremost_are_taken() -> None:
    points = draw(num_points=2)
    assert [point["freeze_depth"] for point in points] == [6, 3]
    assert draw(num_points=0) == []


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_a_given_point_outside_the_space_is_refused() -> None:
    with pytest.raises(ValueError, match=r"first point 0, .*9.*, does not lie in the space"):
        draw(first_points=[{"freeze_depth": 9}])
