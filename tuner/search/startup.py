"""The first trials of a sweep, drawn before any result is known: given points and random ones, cheapest first.

In: the space, points worth trying, a seed, a price. Out: the points of trials 0, 1, 2... Optuna's TPE proposes at
random until it has seen some trials, so nothing is lost by drawing these together, and then the cheap ones can go
first: the sweep has its first results, and successive halving its first comparisons, sooner. They are sorted before
they are numbered, so a number means the same trial whether or not a sweep was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from search_spaces.space import Point, SearchSpace

_LEAST_TRIALS = 8
_LEAST_DRAWN = 2


def num_startup_trials(num_given: int) -> int:
    """How many trials of a sweep run before results decide; some are drawn, because given points agree in much.

    The sweep's length is no matter: one of fewer trials that is made longer has drawn as many in the end, in another
    order (they are sorted among those that there were to be).
    """
    return max(_LEAST_TRIALS, num_given + _LEAST_DRAWN)


def startup_points(
    space: SearchSpace,
    *,
    first_points: Sequence[Mapping[str, Any]],
    num_points: int,
    seed: int,
    price: Callable[[Mapping[str, Any]], float] = lambda _: 0.0,
) -> list[Point]:
    """The points of the first trials, whole and in the order of their numbers.

    Args:
        space: What may vary.
        first_points: Searched fields of points that go first, in whole or in part; what is left out is drawn.
        num_points: How many points in all; of `first_points` no more than that are taken, the foremost.
        seed: Of what is drawn.
        price: By which all of them are sorted; equal ones keep their order.

    Raises:
        ValueError: A given point does not lie in the space.
    """
    study = optuna.create_study()
    points: list[Point] = []
    for number in range(num_points):
        given = dict(first_points[number]) if number < len(first_points) else {}
        study.sampler = optuna.samplers.RandomSampler(seed=seed_of(seed, number))
        study.enqueue_trial(space.asked(given))
        point = space.suggest(study.ask())
        if not space.contains(point):
            raise ValueError(f"first point {number}, {given}, does not lie in the space")
        points.append(point)
    return sorted(points, key=price)


def seed_of(seed: int, number: int) -> int:
    """A seed for one trial's proposal, from the sweep's and the trial's number."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4])
