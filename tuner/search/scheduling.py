"""The scheduler of a spec, as it stands after what a journal tells.

In: the spec, the space, the journal's records. Out: one of Ray Tune's schedulers; why it stops trials, in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search_spaces.perturbing import perturbed_dimensions, trains_heads_alone
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from tuner.records.journal import Record
from tuner.search.asha import ResumableASHA
from tuner.search.hyperband import HYPERBAND_STOPPED, ResumableHyperBand
from tuner.search.median import ResumableMedian
from tuner.search.members import Move
from tuner.search.population import ResumablePBT

STOP_REASONS = {
    "asha": "ASHA: others were better after as many epochs",
    "median": "median: its best epoch was below the median of the others' means",
    "hyperband": HYPERBAND_STOPPED,
    "pbt": "stopped",
    "none": "stopped",
}


@dataclass(frozen=True)
class Surroundings:
    """What a scheduler that lets trials wait has to know of the search around it.

    Attributes:
        is_ending: Whether the search is to end.
        num_lanes: How many trials run side by side; None: nothing runs.
        exchange: See `tuner.search.population.ResumablePBT`.
        make_config: See there.
    """

    is_ending: Callable[[], bool] = lambda: False
    num_lanes: int | None = None
    exchange: Callable[[int, Sequence[Move]], Sequence[Move]] = lambda _epoch, _moves: ()
    make_config: Callable[[int, dict[str, Any], int], dict[str, Any]] = lambda _number, _params, _epoch: {}


_NOTHING = Surroundings()


def build_scheduler(
    spec: SweepSpec,
    space: SearchSpace,
    records: Sequence[Record],
    around: Surroundings = _NOTHING,
) -> TrialScheduler:
    """The scheduler that the spec names.

    Args:
        spec: Says which one, and its settings.
        space: Says which trials train the head alone: these neither stop nor are stopped.
        records: The journal.
        around: The search that it is for.
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
            is_ending=around.is_ending,
            num_lanes=around.num_lanes,
        )
    if early.scheduler == "pbt":
        return _build_population(spec, space, records, around, is_exempt)
    if early.scheduler == "none":
        return FIFOScheduler()
    return ResumableASHA(
        metric=spec.metric,
        mode=spec.mode,
        max_epochs=spec.budget.epochs,
        grace_period=spec.grace_period,
        reduction_factor=early.reduction_factor,
        records=records,
        is_exempt=is_exempt,
    )


def _build_population(
    spec: SweepSpec,
    space: SearchSpace,
    records: Sequence[Record],
    around: Surroundings,
    is_exempt: Callable[[Mapping[str, Any]], bool],
) -> ResumablePBT:
    population = spec.early_stopping.population
    return ResumablePBT(
        metric=spec.metric,
        mode=spec.mode,
        population=spec.most_trials or 0,
        interval=population.perturbation_interval,
        quantile_fraction=population.quantile_fraction,
        resample_probability=population.resample_probability,
        mutations=perturbed_dimensions(space),
        seed=spec.seed,
        exchange=around.exchange,
        make_config=around.make_config,
        records=records,
        is_exempt=None if trains_heads_alone(space) else is_exempt,
        is_ending=around.is_ending,
        num_lanes=around.num_lanes,
    )
