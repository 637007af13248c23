"""Stops poor trials for Ray Tune, in a way that an interruption does not disturb.

In: what Tune reports, and the trials that the journal already knows. Out: decisions to stop. Ray 2.60 saves
the searcher but not the scheduler, so after a restart ASHA's rungs would be empty: here the journal fills them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler, async_hyperband

from trainables.lanes.trial import EPOCH
from tuner.search.searching import NUMBER, Mode, finite

if TYPE_CHECKING:
    from tuner.records.journal import Record


@dataclass(frozen=True)
class Numbered:
    """A trial as ASHA sees it: by its number in the sweep, which outlives Tune's own ids."""

    trial_id: str


class _Bracket(async_hyperband._Bracket):
    """Rungs that judge gently while they hold few trials.

    Ray's own let the first trial pass and the second one only if it beats the first. But the trials of a sweep run from
    the deepest freeze, which is near its end after an epoch, to those that train much, start slowly and may end higher:
    nearly all of these would be stopped. Here a trial goes on while it is among the best third (or whatever the
    reduction factor says), and one more, of those that reached the rung; and of the first three it always does.
    """

    def cutoff(self, recorded: Mapping[str, float]) -> float | None:
        """What the next trial must reach."""
        num_passing = max(math.ceil((len(recorded) + 1) / self.rf) + 1, math.ceil(self.rf))
        if len(recorded) < num_passing:
            return None
        return sorted(recorded.values(), reverse=True)[num_passing - 1]


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
        records: The journal: its epochs are judged again in their order.
        is_exempt: Whether a trial, by its parameters, runs to its end whatever the others do, and says nothing about
            them. Made for those that train the head alone: from stored features they cost next to nothing, and they
            are near their end after one epoch, when deeper trials have hardly begun.

    Attributes:
        overdue: Numbers of open trials whose last epoch ASHA stops: the sweep ended before anybody acted on it. They
            want an outcome in the journal, not more epochs.
    """

    def __init__(
        self,
        *,
        metric: str,
        mode: Mode,
        max_epochs: int,
        grace_period: int,
        reduction_factor: float,
        records: Sequence[Record] = (),
        is_exempt: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        super().__init__(
            time_attr=EPOCH,
            metric=metric,
            mode=mode,
            max_t=max_epochs,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
        )
        self._brackets = [_Bracket(grace_period, max_epochs, reduction_factor, 0)]
        self._judged: dict[str, int] = {}
        self._is_exempt = is_exempt or (lambda _: False)
        self.overdue = overdue_after(records, self._is_exempt, self._judge_again)

    def rungs(self) -> dict[float, dict[int, float]]:
        """For each rung, by its epoch, the metric of each trial that reached it, by number."""
        sign = self._metric_op
        return {
            epoch: {int(number): sign * value for number, value in recorded.items()}
            for epoch, recorded in self._brackets[0]._rungs
        }

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Takes a trial in."""
        super().on_trial_add(tune_controller, by_number(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Decides whether the trial goes on; an epoch without a finite metric, or judged before, decides nothing."""
        numbered = by_number(trial)
        if self._is_exempt(trial.config.get("params", {})) or not self._is_news(numbered, result):
            return str(TrialScheduler.CONTINUE)
        if result[EPOCH] < self._max_t:
            self._judged[numbered.trial_id] = result[EPOCH]
        return str(super().on_trial_result(tune_controller, numbered, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """Notes the last epoch of a trial that ended by itself."""
        numbered = by_number(trial)
        if not self._is_exempt(trial.config.get("params", {})) and self._is_news(numbered, result):
            super().on_trial_complete(tune_controller, numbered, result)
        else:
            self._trial_info.pop(numbered.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forgets a trial that never ran."""
        super().on_trial_remove(tune_controller, by_number(trial))

    def _judge_again(self, trial: Numbered, result: Mapping[str, Any]) -> str | None:
        if not self._is_news(trial, result):
            return None
        self._judged[trial.trial_id] = result[EPOCH]
        return str(self._brackets[0].on_result(trial, result[EPOCH], self._metric_op * result[self._metric]))

    def _is_news(self, trial: Numbered, result: Mapping[str, Any]) -> bool:
        return has_value(result, self._metric) and result[EPOCH] > self._judged.get(trial.trial_id, 0)


def overdue_after(
    records: Sequence[Record],
    is_exempt: Callable[[Mapping[str, Any]], bool],
    judge: Callable[[Numbered, Mapping[str, Any]], str | None],
) -> tuple[int, ...]:
    """Has every epoch of the journal judged again, in the order in which they came.

    Args:
        records: The journal.
        is_exempt: Which trials, by their parameters, are not judged.
        judge: From a trial and the result of an epoch to the decision; None where the epoch decides nothing.

    Returns:
        Numbers of open trials whose last decision was to stop.
    """
    exempt: dict[int, bool] = {}
    decisions: dict[int, str] = {}
    for record in records:
        number = record.get("number")
        if record["event"] == "trial":
            exempt[record["number"]] = is_exempt(record["params"])
        elif number not in exempt or exempt[number]:
            continue
        elif record["event"] == "epoch":
            decision = judge(Numbered(str(number)), {**record["metrics"], EPOCH: record["epoch"]})
            if decision is not None:
                decisions[number] = decision
        elif record["event"] == "end" and record["outcome"] != "interrupted":
            decisions.pop(number, None)
    return tuple(sorted(number for number, decision in decisions.items() if decision == TrialScheduler.STOP))


def by_number(trial: Any) -> Numbered:
    """Tune's trial by its number."""
    return Numbered(str(trial.config[NUMBER]))


def has_value(result: Mapping[str, Any], metric: str) -> bool:
    """Whether a result is an epoch's and has a finite metric: anything else decides nothing."""
    return finite(result.get(metric)) is not None and EPOCH in result
