"""Ray Tune's HyperBand over warm lanes, filled from the journal.

In: what Tune reports, and the journal's records. Out: decisions to stop trials, to let them wait, and to go on.

HyperBand lets the trials of a bracket wait for each other: those that wait give their lanes back, and go on later from
the last epoch's checkpoint. A trial that waited when the sweep was interrupted says its last epoch again when it is
resumed, and then waits again; so Tune sees what it would have seen. The brackets are Tune's own, and hold stand-ins of
trials, by their numbers, because Tune's trials do not outlive the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler, hyperband
from ray.tune.schedulers.hb_bohb import HyperBandForBOHB

from trainables.lanes.trial import EPOCH
from tuner.records.journal import Record
from tuner.search.asha import has_value
from tuner.search.searching import NUMBER, Mode, finite

HYPERBAND_STOPPED = "HyperBand: others of its bracket were better after as many epochs"


class _StandIn:
    """A trial as the brackets hold it.

    Attributes:
        trial: Tune's; None while this process has not begun it.
        is_here: Whether it has said an epoch in this process, or has none; until then it counts as waiting.
        last: Its last result.
        is_doomed: Whether its bracket stopped it while it was not here.
        session: Of the journal, in which it began last.
    """

    def __init__(self, number: int, session: int) -> None:
        self.number, self.trial_id, self.session = number, str(number), session
        self.trial: Any = None
        self.is_here = False
        self.is_doomed = False
        self.last: dict[str, Any] | None = None

    @property
    def status(self) -> str:
        """As Tune has it."""
        return str(self.trial.status) if self.is_here else str(Trial.PAUSED)

    @property
    def is_saving(self) -> bool:
        """Whether Tune is about to let it wait."""
        return self.is_here and bool(self.trial.is_saving)


class _Bracket(hyperband._Bracket):
    """A bracket that is full once it has had all its trials.

    Tune's own asks how many are left. Then, after a trial that fails, the others wait; and a bracket whose last trials
    end one by one takes new ones for ever.
    """

    def filled(self) -> bool:
        """Whether it takes no more trials."""
        return len(self._all_trials) >= self._n0 or self._n < self._n0


class ResumableHyperBand(HyperBandForBOHB):
    """HyperBand (Li et al., JMLR 2018) that an interruption does not make forget.

    It is Tune's variant for searchers that propose one trial after another: the bracket with the shortest first rung is
    filled first, and a bracket is judged when it is full and all its trials wait, or when nothing else is left to run.
    The best of a bracket run all their epochs.

    Args:
        metric: The result's key to go by.
        mode: Whether a good trial has a small or a large metric.
        max_epochs: Epochs of a whole trial.
        reduction_factor: At each rung about one trial in this many goes on.
        records: The journal.
        is_exempt: See `tuner.search.asha.ResumableASHA`.
        is_ending: Whether the search is to end: then waiting trials end too.
        num_lanes: How many trials run side by side: of those that may go on, the others wait. None: any number.

    Attributes:
        overdue: Numbers of open trials that their bracket has stopped: the sweep ended before anybody acted on it.
    """

    def __init__(
        self,
        *,
        metric: str,
        mode: Mode,
        max_epochs: int,
        reduction_factor: float,
        records: Sequence[Record] = (),
        is_exempt: Callable[[Mapping[str, Any]], bool] | None = None,
        is_ending: Callable[[], bool] = lambda: False,
        num_lanes: int | None = None,
    ) -> None:
        super().__init__(
            time_attr=EPOCH,
            metric=metric,
            mode=mode,
            max_t=max_epochs,
            reduction_factor=reduction_factor,
            stop_last_trials=False,
        )
        self._is_exempt, self._is_ending = is_exempt or (lambda _: False), is_ending
        self._num_lanes = num_lanes
        self._known: dict[int, _StandIn] = {}
        self._replay(records)
        self.overdue = tuple(sorted(number for number, known in self._known.items() if known.is_doomed))

    def brackets(self) -> list[tuple[float, dict[int, int]]]:
        """For each bracket the epoch of its next rung, and by number the epochs that its living trials have."""
        return [
            (bracket._cumul_r, {each.number: (last or {}).get(EPOCH, 0) for each, last in bracket._live_trials.items()})
            for band in self._hyperbands
            for bracket in band
            if bracket is not None
        ]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Takes a trial in; one that goes on has its place already."""
        if self._is_exempt(trial.config.get("params", {})):
            return
        number = trial.config[NUMBER]
        known = self._known[number] if number in self._known else self._add(number)
        known.trial, known.is_here = trial, known.last is None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Decides whether the trial goes on, waits or ends; an epoch that is older than its last decides nothing."""
        known = self._known.get(trial.config[NUMBER])
        if known is None or not has_value(result, self._metric):
            return str(TrialScheduler.CONTINUE)
        if known.last is not None and result[EPOCH] < known.last[EPOCH]:
            return str(TrialScheduler.CONTINUE)
        known.is_here = True
        if known.is_doomed:
            return str(TrialScheduler.STOP)
        return self._judge(self._seen(tune_controller, known), known, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """Takes a trial that has ended out of its bracket."""
        self.on_trial_remove(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Takes a trial that failed out of its bracket; one that Tune tries again has this status, and stays."""
        if trial.status != Trial.ERROR:
            self.on_trial_remove(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Takes a trial out of its bracket; those that waited for it alone go on."""
        known = self._known.get(trial.config[NUMBER])
        if known is not None:
            self._end(self._seen(tune_controller), known)

    def choose_trial_to_run(self, tune_controller: Any, allow_recurse: bool = True) -> Any:
        """A trial that is new, or has waited and may go on, if there is one."""
        if not allow_recurse:  # HyperBand asks itself, for one of the brackets' own
            return super().choose_trial_to_run(tune_controller, allow_recurse)
        trials = tune_controller.get_trials()
        pending = next((trial for trial in trials if trial.status == Trial.PENDING), None)
        if self._is_ending():
            for waiting in [trial for trial in trials if trial.status == Trial.PAUSED]:
                tune_controller.stop_trial(waiting)
        if pending is not None or self._is_ending() or self._has_no_lane(trials):
            return pending
        chosen = super().choose_trial_to_run(self._seen(tune_controller), allow_recurse)
        return chosen.trial if chosen is not None and chosen.is_here else None

    def _has_no_lane(self, trials: Sequence[Any]) -> bool:
        """Whether as many trials run as there are lanes: Tune would begin one more, in an actor that only waits."""
        num_running = sum(trial.status == Trial.RUNNING for trial in trials)
        return self._num_lanes is not None and num_running >= self._num_lanes

    def _create_bracket(self, s: int) -> _Bracket:
        return _Bracket(
            time_attr=EPOCH,
            max_trials=self._get_n0(s),
            init_t_attr=self._get_r0(s),
            max_t_attr=self._max_t_attr,
            eta=self._eta,
            s=s,
            stop_last_trials=False,
        )

    def _process_bracket(self, tune_controller: _Controller, bracket: _Bracket) -> str:
        """Called by HyperBand; it marks a bracket that it is at work on, and forgets to take the mark off."""
        try:
            return str(super()._process_bracket(tune_controller, bracket))
        finally:
            bracket.is_being_processed = False

    def _unpause_trial(self, tune_controller: _Controller, trial: _StandIn) -> None:
        """Called by HyperBand: a trial that waited counts as one that runs again."""
        tune_controller.on_unpause(trial)

    def _seen(self, tune_controller: Any, present: _StandIn | None = None) -> _Controller:
        return _Controller(tune_controller, self._remove, present)

    def _add(self, number: int, session: int = 0) -> _StandIn:
        known = self._known[number] = _StandIn(number, session)
        super().on_trial_add(None, known)
        return known

    def _remove(self, known: _StandIn) -> None:
        bracket, _ = self._trial_info[known]
        bracket.cleanup_trial(known)
        bracket.trials_to_unpause.discard(known)

    def _end(self, controller: _Controller, known: _StandIn) -> None:
        bracket, _ = self._trial_info[known]
        was_living = known in bracket._live_trials
        self._remove(known)
        if was_living and bracket.filled() and bracket._live_trials and not bracket.is_being_processed:
            self._process_bracket(controller, bracket)

    def _judge(self, controller: _Controller, known: _StandIn, result: Mapping[str, Any]) -> str:
        known.last = {EPOCH: result[EPOCH], self._metric: result[self._metric]}
        return str(super().on_trial_result(controller, known, dict(known.last)))

    def _replay(self, records: Sequence[Record]) -> None:
        """Lets the brackets decide again what they decided, in the journal's order; all trials count as waiting.

        A bracket that is judged for want of anything else to run leaves a trace: one that waited is stopped, or begins
        again, which it also does at the beginning of each session.
        """
        controller, session = self._seen(None), 0
        for record in records:
            event, known = record["event"], self._known.get(record.get("number", -1))
            if event == "search":
                session += 1
            elif event == "trial" and known is None and not self._is_exempt(record["params"]):
                self._add(record["number"], session)
            elif known is None:
                continue
            elif event == "trial":
                if known.session == session and self._waits(known):
                    self._process_bracket(controller, self._trial_info[known][0])
                known.session = session
            elif event == "epoch":
                is_news = known.last is None or record["epoch"] > known.last[EPOCH]
                if is_news and not known.is_doomed and finite(record["metrics"].get(self._metric)) is not None:
                    self._judge(controller, known, {**record["metrics"], EPOCH: record["epoch"]})
            elif event == "end" and record["outcome"] != "interrupted":
                if record.get("reason") == HYPERBAND_STOPPED and self._waits(known):
                    self._process_bracket(controller, self._trial_info[known][0])
                known.is_doomed = False
                self._end(controller, known)

    def _waits(self, known: _StandIn) -> bool:
        bracket, _ = self._trial_info[known]
        return known in bracket._live_trials and known.last is not None and not bracket.continue_trial(known)


class _Controller:
    """Tune's controller as the brackets see it.

    Args:
        controller: Tune's; None in a replay.
        remove: Takes a trial out of its bracket.
        present: The trial whose result is judged.
    """

    def __init__(self, controller: Any, remove: Callable[[_StandIn], None], present: _StandIn | None) -> None:
        self._controller, self._remove, self._present = controller, remove, present
        self.search_alg = SimpleNamespace(searcher=self)

    def get_trials(self) -> list[Any]:
        """Tune's."""
        return list(self._controller.get_trials())

    def stop_trial(self, known: _StandIn) -> None:
        """Ends a trial that waits; one that is not here ends when it comes."""
        if known.is_here:
            self._controller.stop_trial(known.trial)
        else:
            known.is_doomed = True
            self._remove(known)

    def on_pause(self, _: str) -> None:
        """The present trial is to wait, and does not count as one that runs."""
        if self._controller is not None and self._present is not None:
            self._controller.search_alg.searcher.on_pause(self._present.trial.trial_id)

    def on_unpause(self, known: _StandIn) -> None:
        """A trial that waited counts again."""
        if known.is_here:
            self._controller.search_alg.searcher.on_unpause(known.trial.trial_id)
