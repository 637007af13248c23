"""Proposes trials and stops poor ones, for Ray Tune, in a way that an interruption does not disturb.

In: the search space, the trials that the journal already knows, and what Tune reports. Out: configurations of new
trials, and decisions to stop. Optuna's study lives in memory and ASHA's rungs live in the scheduler; both are rebuilt
from the journal's trials, so that neither can disagree with it. Facts of Ray 2.60 that this rests on:

* Tune hands a trial's last result to `on_trial_complete` only: a result on which a trial stops, by itself or by the
  scheduler, never reaches the searcher's `on_trial_result`.
* `suggest` may return None (ask again later) while a trial runs; with none running Tune waits in a loop of seconds.
* Tune saves the searcher but not the scheduler, at times of its own.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from search_spaces.space import SearchSpace
from trainables.errors import InputError
from trainables.trial import EPOCH, OUTCOME

if TYPE_CHECKING:
    from tuner.journal import TrialRecord

NUMBER = "number"
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
    """Optuna's TPE as a Ray Tune searcher, by ask and tell.

    The Parzen estimator is multivariate and grouped (Falkner et al., ICML 2018; the groups are those of the conditional
    fields), and seeded for each trial from the sweep's seed and the trial's number: the proposal for a number depends
    on the trials before it and on nothing else, whether or not the sweep was interrupted between them.

    Args:
        space: What may vary.
        metric: The result's key to go by.
        mode: Whether a good trial has a small or a large metric.
        num_trials: Trials in all, those of the history included.
        max_concurrent: Trials that run side by side.
        seed: Of the proposals.
        history: The trials that the journal knows. Those without an outcome run again under their numbers, first.
        make_config: Tune's configuration of a trial, of its number and its point.
        first_points: Searched fields of the first trials' points; None: the space's rules of thumb. The same each time
            that a sweep goes on.

    Raises:
        InputError: A trial of the history is no point of the space.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        metric: str,
        mode: Mode,
        num_trials: int,
        max_concurrent: int,
        seed: int,
        make_config: MakeConfig,
        history: Sequence[TrialRecord] = (),
        first_points: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._space = space
        self._num_trials = num_trials
        self._max_concurrent = max_concurrent
        self._seed = seed
        self._make_config = make_config
        self._is_stopped = False
        self._live: dict[str, _LiveTrial] = {}
        self._resumed = {record.number: record for record in history if record.outcome is None}
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # its lines per study and trial would break the progress
        self._study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
        self._rebuild(history, space.rules_of_thumb() if first_points is None else first_points)

    @property
    def study(self) -> optuna.Study:
        """The study, to be read."""
        return self._study

    @property
    def num_handed_out(self) -> int:
        """Trials that have ended or run."""
        return len(self._study.get_trials(deepcopy=False)) - len(self._waiting())

    def stop(self) -> None:
        """Ends the proposals; trials that run go on."""
        self._is_stopped = True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration; None while as many run as may; `FINISHED` when there are no more."""
        if self._is_stopped or self.num_handed_out >= self._num_trials:
            return str(Searcher.FINISHED)
        if len(self._live) >= self._max_concurrent:
            return None
        trial = self._ask()
        point = self._space.suggest(trial)
        live = self._live[trial_id] = _LiveTrial(trial)
        if trial.number in self._resumed:
            for epoch, value in finite_values(self._resumed[trial.number], self.metric).items():
                live.report(epoch, value)
        return {**self._make_config(trial.number, dict(point)), NUMBER: trial.number}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Notes an epoch after which the trial goes on."""
        if trial_id in self._live:
            self._note(self._live[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna how a trial ended: whole with its best value, stopped early with its epochs, or failed."""
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

    def _rebuild(self, history: Sequence[TrialRecord], first_points: Sequence[Mapping[str, Any]]) -> None:
        """Fills the study so that each trial has its number; numbers that nobody holds are asked anew."""
        by_number = {record.number: record for record in history}
        firsts = dict(enumerate(first_points))
        for number in range(max([*by_number, *firsts], default=-1) + 1):
            record = by_number.get(number)
            if record is None:
                self._study.enqueue_trial(dict(firsts.get(number, {})))
            else:
                self._add(record)

    def _add(self, record: TrialRecord) -> None:
        if not self._space.contains(record.params):
            raise InputError(
                f"search: trial {record.number} ({record.params}) is no point of this space; a sweep goes on with the "
                "spec it began with, so give the changed one another name"
            )
        distributions = self._space.searched(record.params)
        params = {name: record.params[name] for name in distributions}
        if record.outcome is None:
            self._study.enqueue_trial(params)
            return
        values = finite_values(record, self.metric)
        state, value = self._verdict(record.outcome, values)
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state, value=value, params=params, distributions=distributions, intermediate_values=values
            )
        )

    def _ask(self) -> optuna.Trial:
        number = min(self._waiting(), default=len(self._study.get_trials(deepcopy=False)))
        digest = hashlib.sha256(f"{self._seed}:{number}".encode()).digest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`
            self._study.sampler = optuna.samplers.TPESampler(
                multivariate=True,
                group=True,
                constant_liar=self._max_concurrent > 1,
                seed=int.from_bytes(digest[:4]),
            )
        return self._study.ask()

    def _waiting(self) -> list[int]:
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return [trial.number for trial in waiting]

    def _note(self, live: _LiveTrial, result: Mapping[str, Any]) -> None:
        value = _finite(result.get(self.metric))
        if value is not None and EPOCH in result:
            live.report(int(result[EPOCH]), value)

    def _verdict(self, outcome: str, values: Mapping[int, float]) -> tuple[TrialState, float | None]:
        """What Optuna is told; a whole trial counts by its best epoch, because that is the one that is kept."""
        if outcome in _FAILED or (outcome == "completed" and not values):
            return TrialState.FAIL, None
        if outcome == "completed":
            return TrialState.COMPLETE, (max if self.mode == "max" else min)(values.values())
        return TrialState.PRUNED, values[max(values)] if values else None


@dataclass(frozen=True)
class _Numbered:
    """A trial as ASHA sees it: by its number in the sweep, which outlives Tune's own ids."""

    trial_id: str


class ResumableASHA(ASHAScheduler):
    """Asynchronous successive halving (Li et al., MLSys 2020) that an interruption does not make forget.

    Ray Tune saves no scheduler, so after a restart its rungs would be empty, and the next trials would be judged
    without those before. Here the rungs are filled from the journal, and a trial that goes on is known by its number:
    it is not judged twice at a rung that it passed.

    Args:
        metric: The result's key to go by.
        mode: Whether a good trial has a small or a large metric.
        max_epochs: Epochs of a whole trial.
        grace_period: Epochs before which no trial is stopped.
        reduction_factor: At each rung about one trial in this many goes on.
        history: The trials that the journal knows.

    Attributes:
        overdue: Numbers of trials of the history that have no outcome and whose last epoch ASHA stops: the sweep ended
            before anybody acted on it. They want an outcome in the journal, not more epochs.
    """

    def __init__(
        self,
        *,
        metric: str,
        mode: Mode,
        max_epochs: int,
        grace_period: int,
        reduction_factor: float,
        history: Sequence[TrialRecord] = (),
    ) -> None:
        super().__init__(
            time_attr=EPOCH,
            metric=metric,
            mode=mode,
            max_t=max_epochs,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
        )
        self._judged: dict[str, int] = {}
        # Ended trials first: an open one was judged last, against them.
        ordered = sorted(history, key=lambda record: (record.outcome is None, record.number))
        self.overdue = tuple(record.number for record in ordered if self._replay(record) and record.outcome is None)

    def rungs(self) -> dict[float, dict[int, float]]:
        """For each rung, by its epoch, the metric of each trial that reached it, by number."""
        sign = self._metric_op
        return {
            epoch: {int(number): sign * value for number, value in recorded.items()}
            for epoch, recorded in self._brackets[0]._rungs
        }

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Takes a trial in."""
        super().on_trial_add(tune_controller, _numbered(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Decides whether the trial goes on; an epoch without a finite metric, or judged before, decides nothing."""
        numbered = _numbered(trial)
        if not self._is_news(numbered, result):
            return str(TrialScheduler.CONTINUE)
        if result[EPOCH] < self._max_t:
            self._judged[numbered.trial_id] = result[EPOCH]
        return str(super().on_trial_result(tune_controller, numbered, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """Notes the last epoch of a trial that ended by itself."""
        numbered = _numbered(trial)
        if self._is_news(numbered, result):
            super().on_trial_complete(tune_controller, numbered, result)
        else:
            self._trial_info.pop(numbered.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forgets a trial that never ran."""
        super().on_trial_remove(tune_controller, _numbered(trial))

    def _replay(self, record: TrialRecord) -> bool:
        """Judges a trial's epochs anew; whether the last of them stops it."""
        trial, action = _Numbered(str(record.number)), TrialScheduler.CONTINUE
        for epoch, value in finite_values(record, self._metric).items():
            action = self._brackets[0].on_result(trial, epoch, self._metric_op * value)
            self._judged[trial.trial_id] = epoch
        return bool(action == TrialScheduler.STOP)

    def _is_news(self, trial: _Numbered, result: Mapping[str, Any]) -> bool:
        has_value = _finite(result.get(self._metric)) is not None and EPOCH in result
        return has_value and result[EPOCH] > self._judged.get(trial.trial_id, 0)


def finite_values(record: TrialRecord, metric: str) -> dict[int, float]:
    """The metric by epoch, in order, without the epochs that have no finite value."""
    values = {int(epoch["epoch"]): _finite(epoch.get(metric)) for epoch in record.epochs}
    return {epoch: value for epoch, value in sorted(values.items()) if value is not None}


def _finite(value: Any) -> float | None:
    is_finite = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_finite else None


def _numbered(trial: Any) -> _Numbered:
    return _Numbered(str(trial.config[NUMBER]))
