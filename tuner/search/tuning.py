"""One Ray Tune run over the lanes: what Tune is told, and what it tells the journal.

In: a searcher, a scheduler, the pool of lanes. Out: records in the journal, one trial after another. The journal is the
truth; Tune's own experiment state is not used to resume.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from trainables.files.outages import StorageAwayError
from trainables.lanes.trial import EPOCH, OUTCOME, REASON, WAITED, LaneTrial, client_prefix
from tuner.cluster.lanes import LanePool
from tuner.notebook import is_notebook
from tuner.records.champion import seconds_of, totals_of
from tuner.records.journal import Outcome, TrialRecord, taken_over
from tuner.records.spending import Spending
from tuner.search.exchanging import Exchange
from tuner.search.members import Move
from tuner.search.patience import Patience
from tuner.search.searching import COST, NUMBER, StudySearcher

Record = Callable[..., bool]
"""Writes the journal; False where it can no longer be written."""
_MOST_DEATHS = 3
"""How often a trial's actor may die, or its lane be lost, without one more epoch before the trial is given up."""
_AWAY = f"{StorageAwayError.__name__}: "
METRIC_GROUPS = ("train/", "val/", "time/", "compute/")


class StopSwitch:
    """Whether the sweep is to end at the running trials' next epoch, and why.

    Args:
        spending: What the search has spent of its budget.
    """

    def __init__(self, spending: Spending) -> None:
        self.spending = spending
        self.is_interrupted = False
        self.why = ""

    def interrupt(self, why: str = "interrupted by the user") -> None:
        """Asks for the end; running epochs are finished and kept. Safe in a signal handler."""
        self.is_interrupted, self.why = True, self.why or why

    def __bool__(self) -> bool:
        """Whether to stop, for either reason."""
        return self.is_interrupted or self.spending.reason is not None


class _NotKept:
    """Tune pickles what it is given, to restore it later; what lives in this process alone is left out of that."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _SwitchStopper(_NotKept, tune.Stopper):
    def __init__(
        self, switch: StopSwitch, searcher: StudySearcher, patience: Patience, known_epochs: Mapping[int, int]
    ) -> None:
        self._switch, self._searcher, self._patience = switch, searcher, patience
        self._known_epochs = known_epochs

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        number, value = result["config"][NUMBER], result.get(self._searcher.metric)
        # Counted here, where it is decided, and not by the callback: that one hears of a result later. An epoch of an
        # earlier run that is only said again was counted then.
        if result[EPOCH] > self._known_epochs.get(number, 0):
            self._switch.spending.see(trial_id, result[EPOCH], result)
        if result.get(OUTCOME) == "interrupted":
            # Before the scheduler hears of it and judges others without this one; the next one would lack the same.
            self._switch.interrupt(result.get(REASON) or "")
        if self._switch:
            self._searcher.stop()
        return self._patience.is_over(number, result[EPOCH], value) or bool(self._switch)

    def stop_all(self) -> bool:
        return False


class JournalCallback(_NotKept, tune.Callback):
    """Writes what happens to trials into the journal, and takes lanes back from dead trials.

    Args:
        record: Writes the journal; where it cannot, it has turned the switch.
        pool: The lanes.
        switch: Tells a trial that ASHA stopped from one that the sweep's end stopped.
        stop: Ends the proposals.
        metric: What decides.
        mode: ``max`` or ``min``.
        patience: Knows which trials ended for lack of progress.
        history: What earlier runs of the sweep know of trials that go on.
        on_end: Called with each trial that has ended for good, after the journal has it.
        stop_reason: Why the scheduler stops trials.
    """

    def __init__(
        self,
        record: Record,
        pool: LanePool,
        switch: StopSwitch,
        *,
        stop: Callable[[], object],
        metric: str,
        mode: str,
        patience: Patience,
        history: Sequence[TrialRecord] = (),
        on_end: Callable[[TrialRecord], object] = lambda _: None,
        stop_reason: str = "stopped",
    ) -> None:
        self._stop_reason = stop_reason
        self._record, self._pool, self._switch, self._on_end = record, pool, switch, on_end
        self._stop = stop
        self._patience = patience
        self._metric, self._mode = metric, mode
        self._epochs: dict[int, list[dict[str, float]]] = {trial.number: list(trial.epochs) for trial in history}
        self._seconds: dict[str, float] = {}
        self._seconds_before = {trial.number: seconds_so_far(trial) for trial in history if trial.outcome is None}
        self._since: dict[str, float] = {}
        self._has_begun: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial begins on an actor (new or reused)."""
        self._since[trial.trial_id] = time.monotonic()
        self._has_begun.discard(trial.trial_id)
        config = trial.config
        self._record("trial", number=config["number"], params=config["params"], metrics=config.get(COST, {}))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """One more epoch."""
        self._count_time(trial, result)
        metrics = {name: value for name, value in result.items() if name.startswith(METRIC_GROUPS)}
        epochs = self._epochs.setdefault(trial.config["number"], [])
        # A trial that goes on in another actor is told its past anew.
        if metrics and result[EPOCH] > (epochs[-1]["epoch"] if epochs else 0):
            # What comes after a step forward has its own three attempts: a long trial may outlive many machines.
            trial.run_metadata.num_failures = 0
            epochs.append({**metrics, "epoch": result[EPOCH]})
            self._record("epoch", number=trial.config["number"], epoch=result[EPOCH], metrics=metrics)

    def take_over(self, epoch: int, moves: Sequence[Move]) -> None:
        """Trials of a population went on with others' weights after an epoch."""
        for move in moves:
            donor = self._epochs.get(move.donor, [])
            self._epochs[move.number] = taken_over(self._epochs.get(move.number, []), donor, epoch)

    def _count_time(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Adds what an epoch took; time without a lane, or before it was there, is nobody's."""
        name, now = trial.trial_id, time.monotonic()
        waited_s = 0.0 if name in self._has_begun else result[WAITED]
        self._has_begun.add(name)
        self._seconds[name] = self._seconds.get(name, 0.0) + max(0.0, now - self._since.get(name, now) - waited_s)
        self._since[name] = now

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended by itself, or was stopped."""
        outcome: Outcome | None = trial.last_result.get(OUTCOME)
        reason = trial.last_result.get(REASON)
        if outcome is None and self._switch.is_interrupted:
            outcome, reason = "interrupted", "the sweep was interrupted"
        elif outcome is None:
            # The actor may be kept for another trial, and hold the lane until there is one.
            self._pool.take_back(client_prefix(trial.config["number"]))
            reason = self._switch.spending.reason or self._patience.reason(trial.config[NUMBER]) or self._stop_reason
            outcome = "stopped_early"
        self._end(trial, outcome, reason)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's actor died or lost its lane; it goes on in another one."""
        self._pool.take_back(client_prefix(trial.config["number"]))
        if (cause := _cause(trial)).startswith(_AWAY):  # for half a minute already
            self._stop()
            self._switch.interrupt(cause.removeprefix(_AWAY))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's actors died, or lost their lanes, too often; or there is no lane or no storage any more."""
        cause = _cause(trial)
        why = self._pool.lost or (cause.removeprefix(_AWAY) if cause.startswith(_AWAY) else None)
        if self._pool.lost is None:
            self._pool.take_back(client_prefix(trial.config["number"]))
        if why is None:
            self._end(trial, "failed", cause)
            return
        # Not the trial's fault: it goes on when the sweep does.
        self._stop()
        self._switch.interrupt(why)
        self._end(trial, "interrupted", why)

    def _end(self, trial: Trial, outcome: Outcome, reason: str | None) -> None:
        number = trial.config["number"]
        seconds = self._seconds.pop(trial.trial_id, 0.0) + self._seconds_before.pop(number, 0.0)
        epochs = self._epochs.pop(number, [])
        totals = totals_of(epochs, self._metric, self._mode)
        totals = {"time/trial_s": seconds, **totals}
        is_known = self._record("end", number=number, outcome=outcome, reason=reason, metrics=totals)
        # Of an end that the journal does not know nothing may be cleared away: the trial goes on when the sweep does.
        if is_known and outcome != "interrupted":
            self._on_end(TrialRecord(number, trial.config["params"], tuple(epochs), outcome, reason))


def seconds_so_far(trial: TrialRecord) -> float:
    """What earlier runs of a sweep spent on a trial; of one that was killed with them, what its epochs say."""
    return max((trial.metrics or {}).get("time/trial_s", 0.0), seconds_of(trial.epochs))


def run_tune(
    *,
    searcher: StudySearcher,
    scheduler: TrialScheduler,
    pool: LanePool,
    switch: StopSwitch,
    record: Record,
    storage: str,
    patience: Patience,
    history: Sequence[TrialRecord] = (),
    on_end: Callable[[TrialRecord], object] = lambda _: None,
    stop_reason: str = "stopped",
    exchange: Exchange | None = None,
) -> None:
    """Runs the search to its end, or to the switch's; returns when every trial has ended.

    Args:
        searcher: Proposes trials and knows when there are enough.
        scheduler: Stops trials early.
        pool: As many trials run at once as it has lanes.
        switch: Ends the search in an orderly way.
        record: Where to write what happens; where it cannot, it has turned the switch.
        storage: Path or URI for Tune's own files.
        patience: Stops trials that no longer become better.
        history: What earlier runs of the sweep know.
        on_end: Called with each trial that has ended for good.
        stop_reason: Why the scheduler stops trials.
        exchange: What the scheduler moves weights with, if it does.

    Raises:
        StorageAwayError: Weights that a trial takes over found no place.
    """
    # This process handles Ctrl-C itself, and resumes from the journal: Tune's snapshots would only cost time.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    # A traceback for each actor that died would hide what matters; the journal has every cause.
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    # Nor is it news that a snapshot which nobody reads finds no room.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    callback = JournalCallback(
        record,
        pool,
        switch,
        stop=searcher.stop,
        metric=searcher.metric,
        mode=searcher.mode,
        patience=patience,
        history=history,
        on_end=on_end,
        stop_reason=stop_reason,
    )
    if exchange is not None:
        exchange.tell = callback.take_over
    known_epochs = {trial.number: len(trial.epochs) for trial in history}
    tuner = tune.Tuner(
        tune.with_resources(LaneTrial, {"CPU": 0.01}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=pool.num_lanes,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=storage,
            name="tune",
            stop=_SwitchStopper(switch, searcher, patience, known_epochs),
            callbacks=[callback],
            # What there is to keep of a trial its lane has kept.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            # Of actors and lanes; a trial that fails by itself says so as its outcome and is not tried again.
            failure_config=tune.FailureConfig(max_failures=_MOST_DEATHS),
            verbose=0,
            # In a notebook Tune's own reporter, however quiet, clears the cell: the panel and all notes so far.
            progress_reporter=tune.CLIReporter() if is_notebook() else None,
        ),
    )
    try:
        tuner.fit()
    except TuneError as error:
        # Tune makes an error of its own of what a scheduler or a callback raises.
        if isinstance(error.__context__, StorageAwayError):
            raise error.__context__ from error
        raise


def _cause(trial: Trial) -> str:
    """The last line of what Tune knows about a trial's error."""
    # Its file is here; what Tune reads is the copy in the storage, which may have had no room for it.
    file = Path(trial.error_file or "")
    text = file.read_text(errors="replace") if file.is_file() else str(trial.get_error() or "")
    lines = [line for line in text.splitlines() if line.strip()]
    text = lines[-1].strip() if lines else "its actor died"
    if (place := text.find(_AWAY)) >= 0:
        return text[place:]
    return text.rsplit("LaneLostError: ", 1)[-1]
