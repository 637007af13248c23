"""The points of a space one by one, and what all of them have: for samplers that list, and those that move numbers.

In: a space. Out: its points, how many trials a search over it has, and whether the sampler of a spec can propose in it.
A space is only asked for points, by stand-ins for Optuna's trials that draw nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from search_spaces.search_spec import LISTING_SAMPLERS
from search_spaces.space import Point, SearchSpace
from trainables.errors import InputError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from search_spaces.spec import SweepSpec

MOST_POINTS = 10_000
_LEAST_NUMBERS = 2


def check_sampler(spec: SweepSpec, space: SearchSpace) -> None:
    """Checks that the spec's sampler can propose in the space.

    Raises:
        InputError: It cannot; what to change is said.
    """
    sampler = spec.search.sampler
    if sampler in LISTING_SAMPLERS and num_points(space) > MOST_POINTS:
        raise InputError(
            f"search.sampler: {sampler} would try more than {MOST_POINTS} points; list fewer values in search, or use "
            "another sampler"
        )
    numbers = common_numbers(space) if sampler == "cmaes" else {}
    if sampler == "cmaes" and len(numbers) < _LEAST_NUMBERS:
        raise InputError(
            f"search.sampler: cmaes moves numbers that every trial has, at least {_LEAST_NUMBERS} of them, and here "
            f"{'there is none' if not numbers else 'only ' + next(iter(numbers)) + ' is one'}; give ranges, to lr and "
            "weight_decay say, or use tpe"
        )


def trials_in_all(spec: SweepSpec, space: SearchSpace) -> int | None:
    """Trials of the search; None where only the budget ends it."""
    if spec.search.sampler not in LISTING_SAMPLERS:
        return spec.most_trials
    size = num_points(space)
    return size if spec.most_trials is None else min(size, spec.most_trials)


def num_points(space: SearchSpace) -> int:
    """How many points there are; one more than `MOST_POINTS` stands for any larger number."""
    return sum(1 for _ in islice(points_of(space), MOST_POINTS + 1))


def points_of(space: SearchSpace) -> Iterator[Point]:
    """Every point of a space without ranges of real numbers, each once, the last fields changing fastest."""
    places: list[int] = []
    while True:
        script = _Script(places)
        yield space.suggest(script)  # type: ignore[arg-type]
        places += [0] * (len(script.sizes) - len(places))
        while places and places[-1] + 1 == script.sizes[len(places) - 1]:
            places.pop()
        if not places:
            return
        places[-1] += 1


def grid_of(space: SearchSpace) -> tuple[dict[str, list[Any]], set[tuple[Any, ...]]]:
    """The values of every searched field, and the combinations that are tried, values in the order of sorted names.

    A field that has no effect beside the others would only repeat a trial, so that of such combinations one is there.
    """
    axes: dict[str, dict[Any, None]] = {}
    points = [space.asked(point) for point in points_of(space)]
    for point in points:
        for name, value in point.items():
            axes.setdefault(name, {})[value] = None
    names = sorted(axes)
    return (
        {name: list(axes[name]) for name in names},
        {tuple(point.get(name, next(iter(axes[name]))) for name in names) for point in points},
    )


def common_numbers(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The fields that are searched as numbers in a range and have an effect at every point, by name in order."""
    first, *others = (space.searched(point) for point in _corners(space))
    common = sorted(name for name in first if all(name in other for other in others))
    return {name: first[name] for name in common if not hasattr(first[name], "choices")}


def _corners(space: SearchSpace) -> Iterator[Point]:
    """Points with every choice of each field, all ranges at their lowest, and again at their highest.

    What has an effect depends on single choices and on the ends of ranges (the deepest freeze), so these show it.
    """
    for is_high in (False, True):
        plain = _Corner({}, is_high)
        yield space.suggest(plain)  # type: ignore[arg-type]
        waiting, seen = dict(plain.sizes), set(plain.sizes)
        while waiting:
            name, size = waiting.popitem()
            for place in range(size):
                corner = _Corner({name: place}, is_high)
                yield space.suggest(corner)  # type: ignore[arg-type]
                waiting |= {other: corner.sizes[other] for other in corner.sizes if other not in seen}
                seen |= set(corner.sizes)


class _Script:
    """Stands for an Optuna trial: takes the value at a given place of each field; the first one beyond them."""

    def __init__(self, places: Sequence[int]) -> None:
        self._places = places
        self.sizes: list[int] = []

    def suggest_categorical(self, _name: str, choices: Sequence[Any]) -> Any:
        place = self._places[len(self.sizes)] if len(self.sizes) < len(self._places) else 0
        self.sizes.append(len(choices))
        return choices[place]

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> Any:
        return self.suggest_categorical(name, range(low, high + 1))

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> Any:
        raise InputError(
            f"search.{name}: from {low} to {high} there are more values than can be tried; list those to try"
        )


class _Corner:
    """Stands for an Optuna trial: one field at a given choice, the others at their first, ranges at one end."""

    def __init__(self, places: Mapping[str, int], is_high: bool) -> None:
        self._places, self._is_high = places, is_high
        self.sizes: dict[str, int] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.sizes[name] = len(choices)
        return choices[self._places.get(name, 0)]

    def suggest_int(self, _name: str, low: float, high: float, **_: Any) -> float:
        return high if self._is_high else low

    suggest_float = suggest_int
