"""The search of one sweep: what the journal knows goes in, Ray Tune runs the trials that are left.

In: the spec, the space, what all trials have in common, and lanes. Out: records in the journal. Everything that a
searcher or a scheduler remembers is rebuilt from the journal each time, so a search may begin anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import TrialScheduler

from search_spaces.advice import rules_of_thumb
from search_spaces.listing import trials_in_all
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import TrialConfig
from trainables.files.outages import StorageAwayError
from trainables.jobs import TrainJob
from tuner.cluster.lanes import LanePool
from tuner.networks.pricing import Pricing
from tuner.paths import HomePaths
from tuner.progress import Progress
from tuner.records.champion import totals_of
from tuner.records.journal import Outcome, Record, TrialRecord, read_records, trials_of
from tuner.records.spending import Spending
from tuner.search.cost_aware import Cooling
from tuner.search.exchanging import Exchange
from tuner.search.interrupts import first_interrupt_calls
from tuner.search.keeping import Keeper
from tuner.search.patience import Patience
from tuner.search.population import ResumablePBT
from tuner.search.scheduling import STOP_REASONS, Surroundings, build_scheduler
from tuner.search.searching import StudySearcher
from tuner.search.tuning import StopSwitch, run_tune, seconds_so_far


class SearchPhase:
    """The trials of one sweep that are still to run.

    Args:
        spec: What to search.
        space: The same, as points.
        pricing: What trials cost and may store.
        bases: What every trial on each backbone has in common, by name.
        home: Where trials keep their checkpoints.
        record: Writes the journal.
        progress: Shows what happens.
        has_epochs: Whether any trial of this process has finished an epoch.
        first_points: Searched fields of the points to try first; None: common advice. A sweep that goes on takes those
            that it began with.
    """

    def __init__(
        self,
        spec: SweepSpec,
        space: SearchSpace,
        pricing: Pricing,
        bases: Mapping[str, TrialConfig],
        home: HomePaths,
        *,
        record: Callable[..., object],
        progress: Progress,
        has_epochs: Callable[[], bool],
        first_points: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._spec, self._space, self._bases, self._home = spec, space, dict(bases), home
        self._pricing, self._first_points = pricing, first_points
        self._paths = home.sweep(spec.name)
        self._record, self._progress, self._has_epochs = record, progress, has_epochs

    def run(self, pool: LanePool) -> str | None:
        """Runs the trials that are left; why the sweep was interrupted, None when it was not.

        Raises:
            LanesLostError: There is no lane any more; the trials that ran are noted as interrupted.
        """
        spec, budget = self._spec, self._spec.budget
        records = read_records(self._paths.journal)
        switch = StopSwitch(Spending(time_s=budget.time_s, flops=budget.flops, records=records))
        num_trials = trials_in_all(spec, self._space)
        self._show_what_was(records, switch.spending, num_trials)
        self._close_overdue(switch.spending.reason)
        history = self._history()
        num_left = (num_trials or math.inf) - _num_ended(history)
        if switch.spending.reason is not None and 0 < num_left < math.inf:
            text = f"{num_left} trials are not begun: {switch.spending.reason}; raise it by --set to have them"
            self._progress.note(text, style="yellow")
        if switch or num_left <= 0:
            return None
        first_points = self._begin(records)
        make_config = self._config_maker(pool, history)
        searcher = StudySearcher(
            self._space,
            metric=spec.metric,
            mode=spec.mode,
            num_trials=num_trials,
            max_concurrent=pool.num_lanes,
            seed=spec.seed,
            make_config=make_config,
            history=history,
            first_points=first_points,
            pricing=self._pricing,
            sampler=spec.search.sampler,
            cooling=self._cooling(pool) if spec.search.cost_aware else None,
            num_drawn=num_trials if spec.is_population else None,
        )
        record = self._recorder(switch, searcher)
        exchange = self._exchange(record)
        self._progress.phase("waiting for the first lane")

        def interrupt() -> None:
            if not self._has_epochs():
                raise KeyboardInterrupt  # the lanes are still coming up: there is nothing to finish
            self._progress.note("Stopping after the running epochs; once more stops at once.", style="yellow")
            switch.interrupt()

        keeper = Keeper(
            self._directory_of,
            metric=spec.metric,
            mode=spec.mode,
            num_best=spec.keep_checkpoints,
            trials=history,
        )
        with first_interrupt_calls(interrupt):
            run_tune(
                searcher=searcher,
                scheduler=self._scheduler(Surroundings(lambda: bool(switch), pool.num_lanes, exchange, make_config)),
                pool=pool,
                switch=switch,
                record=record,
                storage=self._home.uri_of(self._paths.ray),
                patience=self._patience(history),
                history=history,
                on_end=keeper.take,
                stop_reason=STOP_REASONS[spec.early_stopping.scheduler],
                exchange=exchange,
            )
        pool.check()
        return switch.why if switch.is_interrupted else None

    def _show_what_was(self, records: Sequence[Record], spending: Spending, num_trials: int | None) -> None:
        """Tells the display what to count, and what an earlier run of the sweep did."""
        state = self._progress.state
        state.metric, state.mode = self._spec.metric, self._spec.mode
        state.num_trials, state.max_epochs = num_trials, self._spec.budget.trial_epochs
        state.spending = spending
        state.go_on_from(records)

    def _begin(self, records: Sequence[Record]) -> Sequence[Mapping[str, Any]]:
        """Starts the clock in the journal; returns the points to try first, those of the sweep's beginning."""
        points = rules_of_thumb(self._space) if self._first_points is None else self._first_points
        first_points = next((record["first_points"] for record in records if record["event"] == "search"), points)
        self._record("search", first_points=first_points)
        return list(first_points)

    def _cooling(self, pool: LanePool) -> Cooling:
        budget = self._spec.budget
        lane_s = None if budget.time_s is None else budget.time_s * pool.num_lanes
        # A trial of the head alone spends next to nothing of a budget of FLOPs: the price would count for ever.
        num_trials = self._spec.most_trials if budget.flops is None else self._pricing.num_trials
        return Cooling(num_trials, budget.flops, lane_s)

    def _config_maker(self, pool: LanePool, history: Sequence[TrialRecord]) -> Callable[..., dict[str, Any]]:
        """What Tune hands to a trial, from its number and its point."""
        # A trial that waited when the sweep was interrupted says its last epoch again, and is told to wait again.
        num_again = 1 if self._spec.early_stopping.scheduler in ("hyperband", "pbt") else 0
        inherited = {trial.number: trial.lineage[-1].until for trial in history if trial.lineage}
        known_epochs = {trial.number: max(0, len(trial.epochs) - num_again) for trial in history}
        switchboard = {"switchboard": pool.name, "namespace": pool.namespace}
        # Tune pickles this together with the searcher: nothing in it may reach a lock, so nothing reaches `self`.
        spec, space, bases, home, paths = self._spec, self._space, self._bases, self._home, self._paths
        pricing = self._pricing

        def make_config(number: int, params: dict[str, Any], inherited_epochs: int | None = None) -> dict[str, Any]:
            job = TrainJob(
                config=space.trial_config(params, bases[space.backbone_of(params)]),
                directory=home.uri_of(paths.trial(number).root),
                metric=spec.metric,
                mode=spec.mode,
                reported_epochs=known_epochs.get(number, 0),
                inherited_epochs=inherited.get(number, 0) if inherited_epochs is None else inherited_epochs,
                cuts_to_keep=pricing.cuts_to_keep(params),
                last_epoch=spec.budget.last_epoch,
            )
            affinity = pricing.affinity(params)
            return {**switchboard, "params": params, "job": job.model_dump(mode="json"), "affinity": affinity}

        return make_config

    def _scheduler(self, around: Surroundings) -> TrialScheduler:
        return build_scheduler(self._spec, self._space, read_records(self._paths.journal), around)

    def _directory_of(self, number: int) -> str:
        return self._home.uri_of(self._paths.trial(number).root)

    def _recorder(self, switch: StopSwitch, searcher: StudySearcher) -> Callable[..., bool]:
        """Writes the journal from within Tune; where that cannot be written any more, the search ends."""

        def record(event: Any, **fields: Any) -> bool:
            try:
                self._record(event, **fields)
            except StorageAwayError as error:  # Tune would take it for a failure of the trial
                switch.interrupt(str(error))
                searcher.stop()
                return False
            return True

        return record

    def _exchange(self, record: Callable[..., object]) -> Exchange:
        """What moves weights between the trials of a population."""
        space, bases = self._space, self._bases

        def config_of(params: Mapping[str, Any]) -> TrialConfig:
            return space.trial_config(params, bases[space.backbone_of(params)])

        return Exchange(self._directory_of, config_of, record)

    def _patience(self, history: Sequence[TrialRecord]) -> Patience:
        return Patience(self._spec.early_stopping.patience, self._spec.metric, self._spec.mode, history)

    def _close_overdue(self, spent: str | None) -> None:
        """Ends what an interruption left open though its last epoch had decided it, or though the budget is spent."""
        history = self._history()
        scheduler = self._scheduler(Surroundings(exchange=self._exchange(self._record)))
        overdue = {*getattr(scheduler, "overdue", ()), *self._patience(history).overdue}
        for trial in history:
            if trial.outcome is None and len(trial.epochs) >= self._spec.budget.trial_epochs:
                self._close(trial, "completed", None)
            elif trial.number in overdue:
                self._close(trial, "stopped_early", "decided before the interruption")
            elif trial.outcome is None and spent is not None:
                self._close(trial, "stopped_early", spent)
        if spent is None and isinstance(scheduler, ResumablePBT):
            scheduler.settle()

    def _close(self, trial: TrialRecord, outcome: Outcome, reason: str | None) -> None:
        totals = totals_of(trial.epochs, self._spec.metric, self._spec.mode)
        totals = {"time/trial_s": seconds_so_far(trial), **totals}
        self._record("end", number=trial.number, outcome=outcome, reason=reason, metrics=totals)

    def _history(self) -> list[TrialRecord]:
        return trials_of(read_records(self._paths.journal))


def _num_ended(history: Sequence[TrialRecord]) -> int:
    return sum(trial.outcome is not None for trial in history)
