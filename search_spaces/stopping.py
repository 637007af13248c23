"""What the schedulers cannot be combined with: rules as those of `contradictions`, for `early_stopping` alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from search_spaces.perturbing import PERTURBED
from search_spaces.ranges import Range, listed
from trainables.config import POLICIES_WITH_MAGNITUDE

if TYPE_CHECKING:
    from search_spaces.spec import SweepSpec

_DRAWING_SAMPLERS = ("tpe", "random")
"""Those that draw their first trials, a population's among them, from the seed."""
_IDLE = {
    "hyperband": {"grace_period": "its brackets have rungs of their own"},
    "median": {"reduction_factor": "it has no rungs"},
    "pbt": {
        "grace_period": "it stops no trial",
        "reduction_factor": "it has no rungs",
        "patience": "a trial that becomes no better takes over from another",
    },
}


def stopping_contradictions(spec: SweepSpec) -> Iterator[str]:
    """One line per contradiction: the field, why, and what to change."""
    yield from _idle_stopping(spec)
    yield from _population(spec)


def _idle_stopping(spec: SweepSpec) -> Iterator[str]:
    early = spec.early_stopping
    for name, why in _IDLE.get(early.scheduler, {}).items():
        if getattr(early, name) != type(early).model_fields[name].default:
            yield (
                f"early_stopping.{name}: {early.scheduler} does not use it, {why}; leave it out, or use the scheduler "
                "asha"
            )
    if early.population != type(early).model_fields["population"].default and early.scheduler != "pbt":
        yield (
            f"early_stopping.population: only the scheduler pbt has one, and early_stopping.scheduler is "
            f"{early.scheduler}; leave it out, or set that to pbt"
        )


def _population(spec: SweepSpec) -> Iterator[str]:
    """What population-based training cannot be combined with."""
    if not spec.is_population:
        return
    search, interval = spec.search, spec.early_stopping.population.perturbation_interval
    if search.sampler not in _DRAWING_SAMPLERS:
        yield (
            f"search.sampler: {search.sampler} has no say in a population, which is drawn before there are results; "
            "leave it out, or use the scheduler asha"
        )
    if search.cost_aware:
        yield (
            "search.cost_aware: nothing is proposed once a population is drawn; leave it out, or use the scheduler asha"
        )
    if spec.data.folds or search.repeats > 1:
        field, number = ("data.folds", spec.data.folds) if spec.data.folds else ("search.repeats", search.repeats)
        yield (
            f"{field}: {number}, and a trial of several trainings has no one set of weights that another could take "
            "over; leave it out, or use the scheduler asha"
        )
    if search.num_trials == 1:
        yield "search.num_trials: one trial has nobody to take over from; give at least 2, or use the scheduler none"
    if interval >= spec.budget.trial_epochs:
        yield (
            f"early_stopping.population.perturbation_interval: {interval} is not less than the "
            f"{spec.budget.trial_epochs} of budget.epochs, so nothing would ever be taken over; lower it, or train "
            "longer"
        )
    idle = {"backbone_lr_ratio", "layer_decay"} if spec.is_head_only else set()
    if not set(listed(search.augmentation)) & set(POLICIES_WITH_MAGNITUDE):
        idle.add("magnitude")
    if not any(_is_open(getattr(search, name)) for name in PERTURBED if name not in idle):
        yield (
            f"early_stopping.scheduler: pbt changes {', '.join(PERTURBED)}, and each of them has one value; give one a "
            "range, as in lr: {low: 3.0e-4, high: 3.0e-2, log: true}, or use the scheduler asha"
        )


def _is_open(field: Any) -> bool:
    return isinstance(field, Range) or len(listed(field)) > 1
