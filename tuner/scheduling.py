"""The scheduler of a spec, as it stands after what a journal tells.

In: the spec, the space, the journal's records. Out: one of Ray Tune's schedulers; why it stops trials, in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from tuner.halving import ResumableASHA
from tuner.hyperband import HYPERBAND_STOPPED, ResumableHyperBand
from tuner.journal import Record, trials_of
from tuner.median import ResumableMedian

STOP_REASONS = {
    "asha": "ASHA: others were better after as many epochs",
    "median": "median: its best epoch was below the median of the others' means",
    "hyperband": HYPERBAND_STOPPED,
    "none": "stopped",
}


def build_scheduler(
    spec: SweepSpec,
    space: SearchSpace,
    records: Sequence[Record],
    is_ending: Callable[[], bool] = lambda: False,
    num_lanes: int | None = None,
) -> TrialScheduler:
    """The scheduler that the spec names.

    Args:
        spec: Says which one, and its settings.
        space: Says which trials train the head alone: these neither stop nor are stopped.
        records: The journal.
        is_ending: Whether the search is to end.
        num_lanes: How many trials run side by side.
    """
    early = spec.early_stopping

    def is_exempt(params: Mapping[str, Any]) -> bool:
        return bool(params) and params.get("freeze_depth") == space.stages_of(params)

    if early.scheduler == "median":
        return ResumableMedian(
            metric=spec.metric, mode=spec.mode, grace_period=spec.grace_period, records=records, is_exempt=is_exempt
        )
    if early.scheduler == "hyperband":
        return ResumableHyperBand(
            metric=spec.metric,
            mode=spec.mode,
            max_epochs=spec.budget.epochs,
            reduction_factor=early.reduction_factor,
            records=records,
            is_exempt=is_exempt,
            is_ending=is_ending,
            num_lanes=num_lanes,
        )
    if early.scheduler == "none":
        return FIFOScheduler()
    return ResumableASHA(
        metric=spec.metric,
        mode=spec.mode,
        max_epochs=spec.budget.epochs,
        grace_period=spec.grace_period,
        reduction_factor=early.reduction_factor,
        history=trials_of(list(records)),
        is_exempt=is_exempt,
    )
