"""The members of a population, as Ray Tune's population-based training holds them, and how it draws their settings.

In: numbers and points of trials. Out: stand-ins with all that Tune looks at, which outlive its own trials.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial

from search_spaces.dimension import Dimension
from tuner.search.searching import finite


@dataclass(frozen=True)
class Move:
    """A member takes over another's weights and settings.

    Attributes:
        number: The member.
        donor: The other one.
        params: What the member trains with from here on.
        before: What it trained with until here.
    """

    number: int
    donor: int
    params: dict[str, Any]
    before: dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """What stands for a member's checkpoint where Tune hands it on."""

    number: int


class Member:
    """A trial as Tune's class holds it.

    Attributes:
        params: Its point of the space.
        config: The same, and values of fields that have no effect there: Tune wants all.
        trial: Tune's; None while this process has not begun it.
        epoch: Its last one.
        value: The metric after that; None where it is no number.
    """

    def __init__(self, number: int, params: Mapping[str, Any]) -> None:
        self.number, self.trial_id = number, str(number)
        self.trial: Any = None
        self.epoch = 0
        self.value: float | None = None
        self.checkpoint = Kept(number)
        self.experiment_tag = ""
        self.evaluated_params: dict[str, Any] = {}
        self.temporary_state = SimpleNamespace(saving_to=None)
        kept = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None), _latest_checkpoint_result=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=kept)
        self.take(params)

    @property
    def status(self) -> str:
        """As Tune has it; who has not begun waits."""
        return str(Trial.PAUSED if self.trial is None else self.trial.status)

    def is_finished(self) -> bool:
        """Whether it has ended; such are no members."""
        return False

    def take(self, params: Mapping[str, Any]) -> None:
        """Goes on with these settings."""
        self.params, self.config = dict(params), dict(params)

    def see(self, epoch: int, value: Any) -> None:
        """Notes an epoch; one that is told again is not noted."""
        if epoch > self.epoch:
            self.epoch, self.value = epoch, finite(value)

    def set_config(self, config: Mapping[str, Any]) -> None:
        """Called by Tune: what it is to go on with, fields without an effect among them."""
        self.config = dict(config)

    def set_experiment_tag(self, tag: str) -> None:
        """Called by Tune; nobody reads it."""
        self.experiment_tag = tag

    def taken(self) -> int | None:
        """The number of the member whose checkpoint Tune gave to this one since it was asked last."""
        kept = self.run_metadata.checkpoint_manager
        result, kept._latest_checkpoint_result = kept._latest_checkpoint_result, None
        return None if result is None else result.checkpoint.number


class Seen:
    """Tune's controller as its class sees it: the living members are all there is."""

    search_alg = None

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = list(members)

    def get_trials(self) -> list[Member]:
        """The members."""
        return list(self._members)

    get_live_trials = get_trials


def drawn(dimension: Dimension) -> list[Any] | Callable[[], Any]:
    """How Tune draws a setting anew: from a list, or from a function of Python's generator."""
    if dimension.choices is not None:
        return list(dimension.choices)

    def draw() -> float:
        if dimension.is_integer and not dimension.log:
            return random.randint(int(dimension.low), int(dimension.high))
        if not dimension.log:
            return random.uniform(dimension.low, dimension.high)
        value = math.exp(random.uniform(math.log(dimension.low), math.log(dimension.high)))
        return round(value) if dimension.is_integer else value

    return draw


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While this lasts Python's generator, from which Tune draws, begins at a seed."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
