"""The values that one field of a search may take.

In: a field of `SearchSpec`: one value, a list of choices, or a range. Out: `Dimension`, which asks Optuna for a value,
and knows its neighbours and its distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search_spaces.ranges import DepthRange, Range, listed

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Value = int | float | str | None


@dataclass(frozen=True)
class Dimension:
    """The values one field may take: the listed ones, or all from `low` to `high`."""

    choices: tuple[Value, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    is_integer: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return self.choices is not None and len(self.choices) == 1

    def __contains__(self, value: object) -> bool:
        if self.choices is not None:
            return value in self.choices
        is_number = isinstance(value, int if self.is_integer else (int, float)) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high  # type: ignore[operator]

    def nearest(self, wanted: tuple[Value, ...]) -> Value:
        """The first wanted value that is allowed, else the allowed one next to the first wanted number."""
        for value in wanted:
            if value in self:
                return value
        first = next((value for value in wanted if isinstance(value, (int, float))), wanted[0])
        if self.choices is None and isinstance(first, (int, float)):
            return type(first)(min(max(first, self.low), self.high))
        choices = self.choices or (first,)
        numbers = [value for value in choices if isinstance(value, (int, float)) and isinstance(first, (int, float))]
        return min(numbers, key=lambda value: abs(value - first), default=choices[0])

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Asks an Optuna trial for a value."""
        if self.choices is not None:
            return trial.suggest_categorical(name, self.choices)
        if self.is_integer:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def values(self) -> tuple[Value, ...]:
        """All of them.

        Raises:
            ValueError: They are real numbers of a range.
        """
        if self.choices is not None:
            return self.choices
        if not self.is_integer:
            raise ValueError(f"from {self.low} to {self.high} there are more values than can be listed")
        return tuple(range(int(self.low), int(self.high) + 1))

    def distribution(self) -> BaseDistribution:
        """The Optuna distribution that `suggest` draws from."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        if self.is_integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


def dimension_of(field: Any, num_stages: int = 0) -> Dimension:
    """The values that a field of a spec declares.

    Args:
        field: One value, choices, or a range.
        num_stages: What 'all' stands for in a depth.
    """
    if isinstance(field, DepthRange):
        high = num_stages if field.high == "all" else field.high
        if field.low == high:
            return Dimension(choices=(high,))
        return Dimension(low=field.low, high=high, is_integer=True)
    if isinstance(field, Range):
        is_integer = isinstance(field.low, int)
        return Dimension(low=field.low, high=field.high, log=field.log, is_integer=is_integer)
    return Dimension(choices=tuple(dict.fromkeys(num_stages if value == "all" else value for value in listed(field))))
