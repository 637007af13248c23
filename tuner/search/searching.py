"""Proposes trials for Ray Tune, in a way that an interruption does not disturb.

In: the search space, the trials that the journal already knows, and what Tune reports. Out: configurations of new
trials. Optuna's study lives in memory and is rebuilt from the journal's trials, so that it cannot disagree with them.
Facts of Ray 2.60 that this rests on:

* Tune hands a trial's last result to `on_trial_complete` only: a result on which a trial stops, by itself or by the
  scheduler, never reaches the searcher's `on_trial_result`.
* `suggest` may return None (ask again later) while a trial runs; with none running Tune waits in a loop of seconds.
* Tune saves the searcher at times of its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces.advice import rules_of_thumb
from search_spaces.listing import common_numbers
from search_spaces.search_spec import LISTING_SAMPLERS, SamplerName
from search_spaces.space import SearchSpace
from trainables.errors import InputError
from trainables.lanes.trial import EPOCH, OUTCOME
from tuner.networks.pricing import Looked, Pricing
from tuner.search.cma_es import BestEpochCmaEs
from tuner.search.cost_aware import Cooling, CostAwareTPE
from tuner.search.exhaustive import NumberedBruteForce, NumberedGrid
from tuner.search.sampling import BestEpochGP, BestEpochTPE
from tuner.search.startup import num_startup_trials, seed_of, startup_points

if TYPE_CHECKING:
    from tuner.records.journal import TrialRecord

NUMBER = "number"
COST = "cost"
_SECONDS = ("time/train_s", "time/val_s")
_MOST_FAILURES = 10
_FAILED = ("diverged", "failed")

Mode = Literal["min", "max"]
MakeConfig = Callable[[int, dict[str, Any]], dict[str, Any]]


@dataclass
class _LiveTrial:
    """A trial that Tune runs: Optuna's handle, and the metric by epoch."""

    handle: optuna.Trial
    values: dict[int, float] = field(default_factory=dict)

    def report(self, epoch: int, value: float) -> None:
        """Tells Optuna an epoch's value; an epoch that a restarted trial runs again is told once."""
        if epoch not in self.values:
            self.values[epoch] = value
            self.handle.report(value, step=epoch)


class StudySearcher(Searcher):
    """Optuna as a Ray Tune searcher, by ask and tell.

    The Parzen estimator is multivariate and grouped (Falkner et al., ICML 2018; the groups are those of the conditional
    fields), and seeded for each trial from the sweep's seed and the trial's number: the proposal for a number depends
    on the trials before it and on nothing else, whether or not the sweep was interrupted between them. The first ones
    need no trials before them: they are drawn together and run cheapest first (see `startup`).

    Args:
        space: What may vary.
        metric: The result's key to go by.
        mode: Whether a good trial has a small or a large metric.
        num_trials: Trials in all, those of the history included. None: until `stop`, or until so many fail one behind
            the other that no other end is in sight.
        max_concurrent: Trials that run side by side.
        seed: Of the proposals.
        history: The trials that the journal knows. Those without an outcome run again under their numbers, first.
        make_config: Tune's configuration of a trial, of its number and its point.
        first_points: Searched fields of the points to try first; None: common advice.
        pricing: What trials cost; None: nobody asks.
        cooling: Weighs TPE's proposals by that cost, less and less; None: by what they promise alone.
        sampler: Who proposes. Those that list the space take no more trials than it has points.
        num_drawn: Trials that are drawn before any result counts; None: a few.

    Raises:
        InputError: A trial of the history is no point of the space.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        metric: str,
        mode: Mode,
        num_trials: int | None,
        max_concurrent: int,
        seed: int,
        make_config: MakeConfig,
        history: Sequence[TrialRecord] = (),
        first_points: Sequence[Mapping[str, Any]] | None = None,
        pricing: Pricing | None = None,
        cooling: Cooling | None = None,
        sampler: SamplerName = "tpe",
        num_drawn: int | None = None,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._sampler_name = sampler
        self._space = space
        self._num_trials = num_trials
        self._max_concurrent = max_concurrent
        self._seed = seed
        self._make_config = make_config
        self._first_points = rules_of_thumb(space) if first_points is None else first_points
        self._num_startup = num_drawn or num_startup_trials(len(self._first_points))
        if sampler in LISTING_SAMPLERS:  # a point that is drawn might come twice
            self._first_points = [] if sampler == "grid" else self._first_points
            self._num_startup = len(self._first_points)
        self._grid = NumberedGrid(space, seed) if sampler == "grid" else None
        self._numbers = common_numbers(space) if sampler == "cmaes" else {}
        self._pricing, self._cooling = pricing, cooling
        self._points: dict[int, Mapping[str, Any]] = {}
        self._seconds: dict[tuple[int, int], float] = {}
        self._is_stopped = False
        self._live: dict[str, _LiveTrial] = {}
        self._paused: set[str] = set()
        self._has_paused = False
        self._resumed = {record.number: record for record in history if record.outcome is None}
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # its lines per study and trial would break the progress
        self._study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
        self._rebuild(history)

    @property
    def study(self) -> optuna.Study:
        """The study, to be read."""
        return self._study

    @property
    def num_handed_out(self) -> int:
        """Trials that have ended or run."""
        return len(self._study.get_trials(deepcopy=False)) - len(self._waiting())

    def looked(self) -> list[Looked]:
        """The trials that have ended or run, by number, with the epochs that they have."""
        trials = self._study.get_trials(deepcopy=False)
        return [
            Looked(self._points[trial.number], len(trial.intermediate_values))
            for trial in trials
            if trial.number in self._points
        ]

    def stop(self) -> None:
        """Ends the proposals; trials that run go on."""
        self._is_stopped = True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration; None while as many run as may; `FINISHED` when there are no more."""
        if self._is_stopped:
            return str(Searcher.FINISHED)
        if self._is_over():
            # Tune keeps no actor for trials that go on later once it knows that no new ones come: each would be cold.
            return None if self._live and self._has_paused else str(Searcher.FINISHED)
        if len(self._live) - len(self._paused) >= self._max_concurrent:
            return None
        trial = self._ask()
        point = self._space.suggest(trial)
        price = {} if self._pricing is None else {COST: self._pricing.figures(point, self.looked())}
        self._points[trial.number] = point
        live = self._live[trial_id] = _LiveTrial(trial)
        if trial.number in self._resumed:
            for epoch, value in finite_values(self._resumed[trial.number], self.metric).items():
                live.report(epoch, value)
        return {**self._make_config(trial.number, dict(point)), **price, NUMBER: trial.number}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Notes an epoch after which the trial goes on."""
        if trial_id in self._live:
            self._note(self._live[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna how a trial ended: whole with its best value, stopped early with its epochs, or failed."""
        self._paused.discard(trial_id)
        live = self._live.pop(trial_id, None)
        if live is None:
            return
        if result:
            self._note(live, result)
        outcome = (result or {}).get(OUTCOME) or "stopped_early"
        if outcome == "interrupted":
            return
        state, value = self._verdict("failed" if error else outcome, live.values)
        self._study.tell(live.handle, value if state == TrialState.COMPLETE else None, state)

    def on_pause(self, trial_id: str) -> None:
        """A trial waits for others, and another one may run meanwhile."""
        self._paused.add(trial_id)
        self._has_paused = True

    def on_unpause(self, trial_id: str) -> None:
        """A trial goes on that waited."""
        self._paused.discard(trial_id)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **_: Any) -> bool:
        """Refuses a second metric or space; Tune asks even where it has neither."""
        return not config and metric in (None, self.metric) and mode in (None, self.mode)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Takes Tune's own limit over."""
        self._max_concurrent = max_concurrent
        return True

    def save(self, checkpoint_path: str) -> None:
        """Writes nothing: what there is to keep is in the journal, and a second memory could only contradict it."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuses: a searcher is built from the journal.

        Raises:
            InputError: Always.
        """
        raise InputError(f"{checkpoint_path}: a sweep goes on from its journal; use `thaw resume`")

    def _rebuild(self, history: Sequence[TrialRecord]) -> None:
        """Fills the study so that each trial has its number; numbers that nobody holds are asked anew."""
        by_number = {record.number: record for record in history}
        first = self._startup()
        numbers = range(max([*by_number, len(first) - 1], default=-1) + 1)
        # A sweep that was made longer has drawn more points than it had, and sorted them anew: what was tried is out.
        left = [self._space.asked(point) for point in first]
        for record in (by_number[number] for number in numbers[: len(first)] if number in by_number):
            if (tried := self._space.asked(record.params)) in left:
                left.remove(tried)
        for number in numbers:
            if number in by_number:
                self._add(by_number[number])
            else:
                self._study.enqueue_trial(left.pop(0) if number < len(first) else {})

    def _startup(self) -> list[dict[str, Any]]:
        """The points of the first trials; without a price in the order in which they were drawn."""
        pricing = self._pricing
        return startup_points(
            self._space,
            first_points=self._first_points,
            num_points=self._num_startup if self._num_trials is None else min(self._num_startup, self._num_trials),
            seed=self._seed,
            price=lambda point: 0.0 if pricing is None else pricing.cost(point).total,
        )

    def _add(self, record: TrialRecord) -> None:
        if not self._space.contains(record.params):
            raise InputError(
                f"search: trial {record.number} ({record.params}) is no point of this space; a sweep goes on with the "
                "spec it began with, so give the changed one another name"
            )
        distributions = self._space.searched(record.params)
        params = self._space.asked(record.params)
        for epoch in record.epochs:
            self._note_seconds(record.number, int(epoch["epoch"]), epoch)
        if record.outcome is None:
            self._study.enqueue_trial(params)
            return
        self._points[record.number] = record.params
        values = finite_values(record, self.metric)
        state, value = self._verdict(record.outcome, values)
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state, value=value, params=params, distributions=distributions, intermediate_values=values
            )
        )

    def _ask(self) -> optuna.Trial:
        number = min(self._waiting(), default=len(self._study.get_trials(deepcopy=False)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`
            self._study.sampler = self._sampler(number)
        return self._study.ask()

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        if self._sampler_name != "tpe":
            return self._other_sampler(seed_of(self._seed, number))
        options: dict[str, Any] = {
            "multivariate": True,
            "group": True,
            "constant_liar": self._max_concurrent > 1,
            "n_startup_trials": self._num_startup,
            "seed": seed_of(self._seed, number),
        }
        if self._pricing is None or self._cooling is None:
            return BestEpochTPE(**options)
        pricing, before = self._pricing, self.looked()
        weight = self._cooling.weight(number, pricing.spent(before), sum(self._seconds.values()))
        return CostAwareTPE(lambda point: pricing.price(point, before), self._space.fixed, weight, **options)

    def _other_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._grid is not None:
            return self._grid
        if self._sampler_name == "brute_force":
            return NumberedBruteForce(seed=seed)
        if self._sampler_name == "cmaes":
            return BestEpochCmaEs(self._numbers, self._num_startup, seed)
        if self._sampler_name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        # Fields that not every trial has are drawn at random; it would say so for each of them, each time.
        return BestEpochGP(seed=seed, n_startup_trials=self._num_startup, warn_independent_sampling=False)

    def _is_over(self) -> bool:
        if self._num_trials is not None:
            return self.num_handed_out >= self._num_trials
        ended = [trial.state for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]
        last = ended[-_MOST_FAILURES:]
        return len(last) == _MOST_FAILURES and all(state == TrialState.FAIL for state in last)

    def _waiting(self) -> list[int]:
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return [trial.number for trial in waiting]

    def _note(self, live: _LiveTrial, result: Mapping[str, Any]) -> None:
        value = finite(result.get(self.metric))
        if value is not None and EPOCH in result:
            live.report(int(result[EPOCH]), value)
            self._note_seconds(live.handle.number, int(result[EPOCH]), result)

    def _note_seconds(self, number: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        self._seconds[number, epoch] = sum(finite(metrics.get(name)) or 0.0 for name in _SECONDS)

    def _verdict(self, outcome: str, values: Mapping[int, float]) -> tuple[TrialState, float | None]:
        """What Optuna is told; a whole trial counts by its best epoch, because that is the one that is kept."""
        if outcome in _FAILED or (outcome == "completed" and not values):
            return TrialState.FAIL, None
        if outcome == "completed":
            return TrialState.COMPLETE, (max if self.mode == "max" else min)(values.values())
        return TrialState.PRUNED, values[max(values)] if values else None


def finite_values(record: TrialRecord, metric: str) -> dict[int, float]:
    """The metric by epoch, in order, without the epochs that have no finite value."""
    values = {int(epoch["epoch"]): finite(epoch.get(metric)) for epoch in record.epochs}
    return {epoch: value for epoch, value in sorted(values.items()) if value is not None}


def finite(value: Any) -> float | None:
    """A number that is one; None for NaN, infinities and anything else."""
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_number else None
