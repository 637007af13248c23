"""A trial of a sweep as a spec of its own."""

from __future__ import annotations

from typing import Any

import pytest

from search_spaces.loading import dump_spec, load_spec
from search_spaces.single import searched_fields, single_spec
from search_spaces.space import _DEFAULTS, SearchSpace
from search_spaces.spec import SweepSpec

POINT = {
    "freeze_depth": 2, "backbone_lr_ratio": 0.3, "lr": 0.002, "optimizer": "adamw", "weight_decay": 1e-3,
    "warmup_epochs": 1.0, "grad_clip_norm": None, "augmentation": "flip", "num_views": 4, "batch_size": 16,
    "label_smoothing": 0.1, "head_init": "probe",
}  # fmt: skip


def spec_with(**search: Any) -> SweepSpec:
    return SweepSpec.model_validate(
        {"name": "parts", "data": {"source": "digits"}, "model": {"backbone": "lenet"}, "search": search}
    )


def test_the_space_of_one_trial_is_its_point() -> None:
    single = single_spec(spec_with(), POINT, "parts-best")
    assert searched_fields(single) == []
    assert single.name == "parts-best"
    assert single.most_trials == 1
    space = SearchSpace(single.search, 4)
    added = {"magnitude", *_DEFAULTS}
    assert {name: value for name, value in space.fixed.items() if name not in added} == POINT
    assert SweepSpec.model_validate(single.model_dump()) == single
    assert dump_spec(single)


def test_what_the_sweep_might_spend_does_not_cut_its_champion_off() -> None:
    budget = {"time_s": 240, "flops": 1e15, "epochs": 6}
    searched = SweepSpec.model_validate(spec_with().model_dump() | {"budget": budget})
    single = single_spec(searched, POINT, "parts-best")
    assert (single.budget.time_s, single.budget.flops, single.budget.epochs) == (None, None, 6)


def test_a_trial_that_was_ended_early_ends_there_again() -> None:
    searched = SweepSpec.model_validate(spec_with().model_dump() | {"budget": {"epochs": 6}})
    budget = single_spec(searched, POINT, "parts-best", last_epoch=4).budget
    assert (budget.epochs, budget.last_epoch, budget.trial_epochs) == (6, 4, 4)
    assert single_spec(searched, POINT, "parts-best").budget.trial_epochs == 6
    with pytest.raises(ValueError, match="last_epoch is 7 of 6 epochs; set it to at most 6"):
        SweepSpec.model_validate(spec_with().model_dump() | {"budget": {"epochs": 6, "last_epoch": 7}})


def test_folds_and_seeds_are_kept() -> None:
    searched = spec_with(repeats=3)
    searched = searched.model_copy(update={"data": searched.data.model_copy(update={"folds": 4})})
    single = single_spec(searched, POINT, "parts-best")
    assert (single.data.folds, single.search.repeats) == (4, 3)
    assert searched_fields(single) == []


def test_a_trial_that_mixes_balances_averages_and_accumulates_keeps_that() -> None:
    chosen = {
        "mixup_alpha": 0.3, "cutmix_alpha": 0.9, "class_balance": "balanced", "ema_decay": 0.98, "grad_accumulation": 3
    }  # fmt: skip
    searched = spec_with(
        mixup_alpha={"low": 0.0, "high": 1.0}, cutmix_alpha=[0.0, 0.9], class_balance=["none", "balanced"],
        ema_decay={"low": 0.9, "high": 0.999}, grad_accumulation={"low": 1, "high": 4},
    )  # fmt: skip
    assert {f"search.{name}" for name in chosen} <= set(searched_fields(searched))
    single = single_spec(searched, POINT | chosen, "mixed")
    assert {name: getattr(single.search, name) for name in chosen} == chosen
    assert searched_fields(single) == []


def test_a_trial_keeps_its_head_dropout_and_precision() -> None:
    searched = spec_with(
        head=["linear", "mlp", "cosine"], head_init=["probe", "random"], dropout={"low": 0.0, "high": 0.5},
        bn_mode=["keep", "update"], precision=["fp32", "bf16"],
    )  # fmt: skip
    chosen = {"head": "cosine", "dropout": 0.25, "precision": "bf16"}
    assert {f"search.{name}" for name in (*chosen, "bn_mode", "head_init")} <= set(searched_fields(searched))
    # All of the backbone is frozen and the head is no linear one: the point has neither a mode nor a start.
    point = {name: value for name, value in POINT.items() if name not in ("backbone_lr_ratio", "head_init")}
    single = single_spec(searched, point | chosen | {"freeze_depth": 4}, "cosines")
    assert {name: getattr(single.search, name) for name in chosen} == chosen
    assert (single.search.bn_mode, single.search.head_init) == ("update", "random")
    assert searched_fields(single) == []
    kept = single_spec(searched, POINT | chosen | {"head": "linear", "bn_mode": "keep", "head_init": "probe"}, "kept")
    assert (kept.search.bn_mode, kept.search.head_init) == ("keep", "probe")


def test_a_trial_of_the_head_alone_needs_no_rate_of_the_backbone() -> None:
    point = {name: value for name, value in POINT.items() if name != "backbone_lr_ratio"} | {"freeze_depth": 4}
    single = single_spec(spec_with(), point, "x")
    assert single.search.freeze_depth == 4
    assert searched_fields(single) == []


@pytest.mark.parametrize(
    ("search", "fields"),
    [
        ({}, {"freeze_depth", "lr", "optimizer", "augmentation", "magnitude", "batch_size", "head_init"}),
        ({"lr": 0.1, "augmentation": ["none", "flip"]}, {"freeze_depth", "optimizer", "augmentation", "head_init"}),
    ],
)
def test_what_is_left_to_choose_is_named(search: dict[str, Any], fields: set[str]) -> None:
    found = {path.removeprefix("search.") for path in searched_fields(spec_with(**search))}
    assert fields <= found
    assert ("magnitude" in found) == ("magnitude" in fields)
    assert ("lr" in found) == ("lr" in fields)


def test_fields_without_effect_leave_nothing_to_choose() -> None:
    fixed = {name: value for name, value in POINT.items() if name not in ("warmup_epochs", "backbone_lr_ratio")}
    assert searched_fields(spec_with(**fixed, schedule="one_cycle", backbone_lr_ratio=0.5)) == []
    assert searched_fields(spec_with(**{**fixed, "freeze_depth": "all"}, warmup_epochs=1.0)) == []
    assert searched_fields(spec_with(**fixed, backbone_lr_ratio=0.5)) == ["search.warmup_epochs"]


def test_the_digits_preset_has_something_to_choose() -> None:
    assert searched_fields(load_spec("digits"))
