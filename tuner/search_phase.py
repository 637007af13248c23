"""The search of one sweep: what the journal knows goes in, Ray Tune runs the trials that are left.

In: the spec, the space, what all trials have in common, and lanes. Out: records in the journal. Everything that a
searcher or a scheduler remembers is rebuilt from the journal each time, so a search may begin anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search_spaces.space import Point, SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import TrialConfig
from trainables.jobs import TrainJob
from tuner.interrupts import first_interrupt_calls
from tuner.journal import TrialRecord, read_records, trials_of
from tuner.lanes import LanePool
from tuner.paths import HomePaths
from tuner.progress import Progress
from tuner.searching import ResumableASHA, StudySearcher
from tuner.tuning import StopSwitch, run_tune


class SearchPhase:
    """The trials of one sweep that are still to run.

    Args:
        spec: What to search.
        space: The same, as points.
        base: What every trial has in common.
        home: Where trials keep their checkpoints.
        record: Writes the journal.
        progress: Shows what happens.
        has_epochs: Whether any trial of this process has finished an epoch.
        first_points: See `StudySearcher`.
    """

    def __init__(
        self,
        spec: SweepSpec,
        space: SearchSpace,
        base: TrialConfig,
        home: HomePaths,
        *,
        record: Callable[..., object],
        progress: Progress,
        has_epochs: Callable[[], bool],
        first_points: Sequence[Point] | None = None,
    ) -> None:
        self._spec, self._space, self._base, self._home = spec, space, base, home
        self._paths = home.sweep(spec.name)
        self._record, self._progress, self._has_epochs = record, progress, has_epochs
        self._first_points = first_points

    def run(self, pool: LanePool) -> bool:
        """Runs the trials that are left; False when the sweep was interrupted."""
        spec, switch = self._spec, StopSwitch(self._spec.budget.time_budget_s)
        self._close_overdue()
        history = self._history()
        if sum(trial.outcome is not None for trial in history) >= spec.search.num_trials:
            return True
        searcher = StudySearcher(
            self._space,
            metric=spec.metric,
            mode=spec.mode,
            num_trials=spec.search.num_trials,
            max_concurrent=pool.num_lanes,
            seed=spec.seed,
            make_config=self._config_maker(pool, history),
            history=history,
            first_points=self._first_points,
        )
        state = self._progress.state
        state.metric, state.mode = spec.metric, spec.mode
        state.num_trials, state.max_epochs = spec.search.num_trials, spec.budget.epochs
        self._progress.phase("waiting for the first lane")

        def interrupt() -> None:
            if not self._has_epochs():
                raise KeyboardInterrupt  # the lanes are still coming up: there is nothing to finish
            self._progress.note("Stopping after the running epochs; once more stops at once.", style="yellow")
            switch.interrupt()

        with first_interrupt_calls(interrupt):
            run_tune(
                searcher=searcher,
                scheduler=self._scheduler(history),
                pool=pool,
                switch=switch,
                record=self._record,
                storage=self._home.uri_of(self._paths.ray),
                history=history,
            )
        return not switch.is_interrupted

    def _config_maker(self, pool: LanePool, history: Sequence[TrialRecord]) -> Callable[..., dict[str, Any]]:
        """What Tune hands to a trial, from its number and its point."""
        known_epochs = {trial.number: len(trial.epochs) for trial in history}
        # Tune pickles this together with the searcher: nothing in it may reach a lock, so nothing reaches `self`.
        spec, space, base, home, paths = self._spec, self._space, self._base, self._home, self._paths
        switchboard = {"switchboard": pool.name, "namespace": pool.namespace}

        def make_config(number: int, params: dict[str, Any]) -> dict[str, Any]:
            job = TrainJob(
                config=space.trial_config(params, base),
                directory=home.uri_of(paths.trial(number).root),
                metric=spec.metric,
                mode=spec.mode,
                reported_epochs=known_epochs.get(number, 0),
            )
            return {**switchboard, "params": params, "job": job.model_dump(mode="json")}

        return make_config

    def _scheduler(self, history: Sequence[TrialRecord]) -> TrialScheduler:
        spec = self._spec
        if spec.early_stopping.scheduler == "none":
            return FIFOScheduler()
        return ResumableASHA(
            metric=spec.metric,
            mode=spec.mode,
            max_epochs=spec.budget.epochs,
            grace_period=spec.grace_period,
            reduction_factor=spec.early_stopping.reduction_factor,
            history=history,
        )

    def _close_overdue(self) -> None:
        """Ends what an interruption left open though its last epoch had decided it."""
        history = self._history()
        scheduler = self._scheduler(history)
        for trial in history:
            if trial.outcome is None and len(trial.epochs) >= self._spec.budget.epochs:
                self._record("end", number=trial.number, outcome="completed", reason=None)
            elif trial.number in getattr(scheduler, "overdue", ()):
                self._record(
                    "end", number=trial.number, outcome="stopped_early", reason="decided before the interruption"
                )

    def _history(self) -> list[TrialRecord]:
        return trials_of(read_records(self._paths.journal))
