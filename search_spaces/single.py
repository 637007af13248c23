"""One configuration as a spec: what a sweep looks like that trains a single, known trial.

In: a sweep's spec and a point of its space. Out: a spec whose every field has one value; and which fields of a spec
still have several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.ranges import DepthRange, Range, listed
from search_spaces.search_spec import SearchSpec
from search_spaces.spec import EarlyStoppingSpec, SweepSpec
from trainables.config import POLICIES_WITH_MAGNITUDE

_NOT_VALUES = ("num_trials", "sampler", "cost_aware", "probe")


def single_spec(spec: SweepSpec, point: Mapping[str, Any], name: str) -> SweepSpec:
    """The spec that trains the trial at ``point`` and nothing else, with the numbers that it had in the sweep.

    Args:
        spec: The sweep's.
        point: A trial's ``params``; a field that had no effect there gets any one value.
        name: Of the new spec.
    """
    search = spec.search
    settled = {
        field: point.get(field, _any_value(getattr(search, field)))
        for field in SearchSpec.model_fields
        if field not in _NOT_VALUES
    }
    if settled["head_init"] == "auto":
        settled["head_init"] = "random"
    return SweepSpec.model_validate(
        spec.model_dump()
        | {
            "name": name,
            "search": {**settled, "num_trials": 1, "probe": "off"},
            "early_stopping": EarlyStoppingSpec(scheduler="none", patience=spec.early_stopping.patience).model_dump(),
            "baselines": (),
        }
    )


def searched_fields(spec: SweepSpec) -> list[str]:
    """Fields of ``search`` that leave something to choose."""
    search = spec.search
    values = {field: getattr(search, field) for field in SearchSpec.model_fields if field not in _NOT_VALUES}
    open_fields = [field for field, value in values.items() if _is_open(value)]
    if search.head_init == "auto" and spec.is_pretrained:
        open_fields.append("head_init")
    if "magnitude" in open_fields and not set(listed(search.augmentation)) & set(POLICIES_WITH_MAGNITUDE):
        open_fields.remove("magnitude")
    idle: set[str] = set()
    if listed(search.freeze_depth) == ("all",):
        idle |= {"backbone_lr_ratio", "layer_decay"}
    if listed(search.schedule) == ("one_cycle",):
        idle.add("warmup_epochs")
    return [field for field in open_fields if field not in idle]


def _is_open(value: Any) -> bool:
    if isinstance(value, Range | DepthRange):
        return bool(value.low != value.high)
    return len(listed(value)) > 1


def _any_value(value: Any) -> Any:
    if isinstance(value, Range | DepthRange):
        return value.low
    return listed(value)[0]
