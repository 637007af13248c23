"""Ray Tune's median rule, filled from the journal: what it decides after an interruption is what it would have decided.

In: what Tune reports, and the journal's records. Out: decisions to stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

from trainables.lanes.trial import EPOCH
from tuner.records.journal import Record
from tuner.search.asha import Numbered, by_number, has_value, overdue_after
from tuner.search.searching import Mode


class ResumableMedian(MedianStoppingRule):
    """Stops a trial whose best epoch is worse than the median of the other trials' means so far (Golovin et al. 2017).

    The means begin at the grace period, and three other trials must have come as far.

    Args:
        metric: The result's key to go by.
        mode: Whether a good trial has a small or a large metric.
        grace_period: Epochs before which no trial is stopped.
        records: The journal: its epochs are judged again in their order.
        is_exempt: See `tuner.search.asha.ResumableASHA`.

    Attributes:
        overdue: Numbers of open trials whose last epoch the rule stops: the sweep ended before anybody acted on it.
    """

    def __init__(
        self,
        *,
        metric: str,
        mode: Mode,
        grace_period: int,
        records: Sequence[Record] = (),
        is_exempt: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        # Tune's own would pause a trial for the sake of waiting ones; an infinite slice keeps it from that.
        super().__init__(time_attr=EPOCH, metric=metric, mode=mode, grace_period=grace_period, min_time_slice=math.inf)
        self._judged: dict[str, int] = {}
        self._is_exempt = is_exempt or (lambda _: False)
        self.overdue = overdue_after(records, self._is_exempt, self._judge_again)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Decides whether the trial goes on; an epoch without a finite metric, or judged before, decides nothing."""
        if self._is_exempt(trial.config.get("params", {})) or not self._is_news(by_number(trial), result):
            return str(TrialScheduler.CONTINUE)
        return self._judge(tune_controller, by_number(trial), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """Notes the last epoch of a trial that ended by itself."""
        if not self._is_exempt(trial.config.get("params", {})) and self._is_news(by_number(trial), result):
            self._judge(tune_controller, by_number(trial), result)

    def _judge(self, tune_controller: Any, trial: Numbered, result: Mapping[str, Any]) -> str:
        self._judged[trial.trial_id] = result[EPOCH]
        decision = str(super().on_trial_result(tune_controller, trial, dict(result)))
        self._stopped_trials.discard(trial)
        return decision

    def _is_news(self, trial: Numbered, result: Mapping[str, Any]) -> bool:
        return has_value(result, self._metric) and result[EPOCH] > self._judged.get(trial.trial_id, 0)

    def _judge_again(self, trial: Numbered, result: Mapping[str, Any]) -> str | None:
        return self._judge(None, trial, result) if self._is_news(trial, result) else None
