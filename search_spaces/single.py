"""One configuration as a spec: what a sweep looks like that trains a single, known trial.

In: a sweep's spec and a point of its space. Out: a spec whose every field has one value; and which fields of a spec
still have several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.ranges import DepthRange, Range, listed
from search_spaces.search_spec import SearchSpec
from search_spaces.space import BACKBONE
from search_spaces.spec import EarlyStoppingSpec, SweepSpec
from trainables.config import POLICIES_WITH_MAGNITUDE

_NOT_VALUES = ("num_trials", "repeats", "sampler", "cost_aware", "probe")


def single_spec(spec: SweepSpec, point: Mapping[str, Any], name: str, last_epoch: int | None = None) -> SweepSpec:
    """The spec that trains the trial at ``point`` and nothing else, with the numbers that it had in the sweep.

    Args:
        spec: The sweep's.
        point: A trial's ``params``; a field that had no effect there gets any one value.
        name: Of the new spec.
        last_epoch: At which the trial was ended, along the sweep's schedule; None: it had all epochs.
    """
    search = spec.search
    settled = {
        field: point.get(field, _any_value(getattr(search, field)))
        for field in SearchSpec.model_fields
        if field not in _NOT_VALUES
    }
    if settled["head_init"] == "auto" or settled["head"] != "linear":
        settled["head_init"] = "random"
    if "bn_mode" not in point:
        settled["bn_mode"] = "update"
    return SweepSpec.model_validate(
        spec.model_dump()
        | {
            "name": name,
            "model": _model_of(spec, point),
            # What the sweep might spend would cut this trial off on a slower machine, or where nothing is stored.
            "budget": spec.budget.model_copy(
                update={"time_s": None, "flops": None, "last_epoch": last_epoch}
            ).model_dump(),
            "search": {**settled, "num_trials": 1, "repeats": search.repeats, "probe": "off"},
            "early_stopping": EarlyStoppingSpec(scheduler="none", patience=spec.early_stopping.patience).model_dump(),
            "baselines": (),
        }
    )


def _model_of(spec: SweepSpec, point: Mapping[str, Any]) -> dict[str, Any]:
    """The network of a point; of a list its entry, since pictures are kept for the sweep's size and not for its own."""
    if spec.model.backbone is not None:
        return spec.model.model_dump()
    named = spec.model.named
    choice = named[str(point.get(BACKBONE, next(iter(named))))]
    return {"backbones": [choice.model_copy(update={"freeze_depth": None}).model_dump()]}


def searched_fields(spec: SweepSpec) -> list[str]:
    """Fields that leave something to choose, by path."""
    names = [f"search.{field}" for field in _searched_in_search(spec)]
    if spec.model.backbones == "auto" or len(spec.model.named) > 1:
        return ["model.backbones", *names]
    own = [choice.freeze_depth for choice in spec.model.named.values() if choice.freeze_depth is not None]
    if not own:
        return names
    names = [name for name in names if name != "search.freeze_depth"]
    return ["model.backbones[0].freeze_depth", *names] if _is_open(own[0]) else names


def _searched_in_search(spec: SweepSpec) -> list[str]:
    search = spec.search
    values = {field: getattr(search, field) for field in SearchSpec.model_fields if field not in _NOT_VALUES}
    open_fields = [field for field, value in values.items() if _is_open(value)]
    if search.head_init == "auto" and spec.can_probe and "linear" in listed(search.head):
        open_fields.append("head_init")
    if "magnitude" in open_fields and not set(listed(search.augmentation)) & set(POLICIES_WITH_MAGNITUDE):
        open_fields.remove("magnitude")
    idle: set[str] = set()
    if spec.is_head_only:
        idle |= {"backbone_lr_ratio", "layer_decay", "bn_mode"}
    if listed(search.schedule) == ("one_cycle",):
        idle.add("warmup_epochs")
    if "linear" not in listed(search.head):
        idle.add("head_init")
    return [field for field in open_fields if field not in idle]


def _is_open(value: Any) -> bool:
    if isinstance(value, Range | DepthRange):
        return bool(value.low != value.high)
    return len(listed(value)) > 1


def _any_value(value: Any) -> Any:
    if isinstance(value, Range | DepthRange):
        return value.low
    return listed(value)[0]
