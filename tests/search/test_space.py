"""The declared space: what is asked, what is fixed, what common advice becomes in it, and the trial of a point."""

from __future__ import annotations

import subprocess
import sys
import warnings

import optuna
import pytest

from search_spaces.advice import rules_of_thumb
from search_spaces.loading import load_spec
from search_spaces.search_spec import SearchSpec
from search_spaces.space import _DEFAULTS, _PLACES, BackboneShape, SearchSpace, apply_params, check_depths
from trainables.config import BackboneConfig, DataConfig, TrialConfig
from trainables.errors import InputError

STAGES = 6
BASE = TrialConfig(
    data=DataConfig(table="table.arrow", fingerprint="f", class_names=("a", "b"), image_size_px=32),
    backbone=BackboneConfig(name="lenet"),
    freeze_depth=0,
)


def space_of(**search):
    return SearchSpace(SearchSpec.model_validate(search), STAGES, "resnet18")


def draw(space, number=40):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(number)]
    return [(space.suggest(trial), trial.params) for trial in trials]


def test_points_lie_in_the_declared_space_and_reach_its_corners():
    space = space_of(augmentation=["none", "flip"], lr=0.01, freeze_depth={"low": 1, "high": "all"})
    points = [point for point, _ in draw(space)]
    assert all(space.contains(point) for point in points)
    assert {point["freeze_depth"] for point in points} == set(range(1, STAGES + 1))
    assert {point["batch_size"] for point in points} == {16, 32, 64}
    assert {point["grad_clip_norm"] for point in points} == {None, 1.0}


def test_fixed_fields_are_in_the_point_and_never_asked_for():
    space = space_of(lr=0.01, optimizer=["sgd"], freeze_depth="all", grad_clip_norm=None)
    for point, asked in draw(space):
        assert (point["lr"], point["optimizer"], point["freeze_depth"]) == (0.01, "sgd", STAGES)
        assert point["grad_clip_norm"] is None
        assert not {"lr", "optimizer", "freeze_depth", "grad_clip_norm"} & asked.keys()
        assert asked == {name: point[name] for name in space.searched(point)}


def test_a_field_is_there_only_where_it_has_an_effect():
    for point, asked in draw(space_of()):
        assert ("magnitude" in asked) == ("magnitude" in point) == (point["augmentation"] == "randaugment")
        assert ("backbone_lr_ratio" in asked) == (point["freeze_depth"] < STAGES)
        assert ("num_views" in point) == (point["augmentation"] != "none")


def test_a_point_that_the_space_cannot_give_is_not_in_it():
    space = space_of()
    point = next(point for point, _ in draw(space) if point["augmentation"] == "randaugment")
    assert space.contains(point)
    assert not space.contains({**point, "augmentation": "flip"})  # a magnitude without effect
    assert not space.contains({**point, "lr": 1.0})
    assert not space.contains({**point, "freeze_depth": STAGES + 1})
    assert not space.contains({**point, "zebra": 1})
    assert not space.contains({name: value for name, value in point.items() if name != "lr"})


def test_what_optuna_is_told_of_a_point_is_what_it_would_have_been_asked():
    space = space_of()
    for point, _ in draw(space, 10):
        trial = optuna.create_study().ask(space.searched(point))
        fresh = optuna.create_study().ask()
        fresh_point = space.suggest(fresh)
        shared = trial.distributions.keys() & fresh.distributions.keys()
        assert len(shared) > 5
        assert all(trial.distributions[name] == fresh.distributions[name] for name in shared)
        assert space.contains(fresh_point)


def test_the_rules_of_thumb_are_only_the_head_the_middle_and_everything_at_a_tenth_of_the_rate():
    head, middle, everything = rules_of_thumb(space_of())
    assert [rule["freeze_depth"] for rule in (head, middle, everything)] == [STAGES, STAGES // 2, 0]
    assert head["lr"] == pytest.approx(10 * rules_of_thumb(space_of(lr={"low": 1e-6, "high": 1.0}))[2]["lr"])
    assert "backbone_lr_ratio" not in head
    assert everything["backbone_lr_ratio"] == 1.0
    assert {rule["augmentation"] for rule in (head, middle, everything)} == {"flip_crop"}


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"lr": {"low": 0.1, "high": 1.0}, "batch_size": [128, 256], "weight_decay": [0.0, 0.5]},
        {"optimizer": "sgd", "augmentation": ["randaugment"], "magnitude": {"low": 20, "high": 30}},
        {"augmentation": ["none", "flip"], "grad_clip_norm": {"low": 2.0, "high": 3.0}, "warmup_epochs": 0.5},
        {"freeze_depth": {"low": 1, "high": 4}, "batch_size": {"low": 4, "high": 9, "log": True}},
        {"freeze_depth": [0, "all"], "label_smoothing": {"low": 0.2, "high": 0.5}},
        {"ema_decay": {"low": 0.9, "high": 0.95}, "mixup_alpha": [0.1, 0.4], "class_balance": ["balanced"]},
        {"head": ["mlp", "cosine"], "dropout": {"low": 0.1, "high": 0.5}, "precision": ["fp32", "bf16"]},
        {"head": ["cosine", "linear"], "bn_mode": ["keep", "update"], "head_init": "random"},
        {"ema_decay": [0.9, 0.999], "cutmix_alpha": {"low": 0.5, "high": 2.0}, "grad_accumulation": [2, 4]},
    ],
)
def test_rules_of_thumb_keep_to_the_declared_space(search):
    space = space_of(**search)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for rule in rules_of_thumb(space):
        study.enqueue_trial(rule)
        trial = study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna warns where a fixed parameter lies outside
            point = space.suggest(trial)
        assert space.contains(point)
        assert trial.params == rule, "nothing is left to chance"


def test_a_rule_whose_depth_is_not_declared_is_dropped():
    depths = [rule["freeze_depth"] for rule in rules_of_thumb(space_of(freeze_depth={"low": 1, "high": 4}))]
    assert depths == [STAGES // 2]
    assert len(rules_of_thumb(space_of(freeze_depth="all"))) == 1


def test_sgd_alone_gets_ten_times_the_rate_of_adamw():
    rates = {name: rules_of_thumb(space_of(optimizer=name, lr={"low": 1e-6, "high": 1.0})) for name in ("adamw", "sgd")}
    assert [rule["lr"] for rule in rates["sgd"]] == pytest.approx([10 * rule["lr"] for rule in rates["adamw"]])


@pytest.mark.parametrize(
    "depth", [STAGES + 1, [0, STAGES + 1], {"low": 0, "high": STAGES + 1}, {"low": STAGES + 1, "high": "all"}]
)
def test_a_depth_beyond_the_stages_is_refused(depth):
    search = SearchSpec.model_validate({"freeze_depth": depth})
    line = (
        f"search.freeze_depth: {STAGES + 1} is beyond the {STAGES} stages of resnet18; give at most {STAGES}, or 'all'"
    )
    with pytest.raises(InputError) as caught:
        check_depths(search, STAGES, "resnet18")
    assert str(caught.value) == line
    with pytest.raises(InputError, match="beyond"):
        SearchSpace(search, STAGES, "resnet18")


def test_all_means_the_number_of_stages():
    assert {point["freeze_depth"] for point, _ in draw(space_of(freeze_depth=["all", STAGES]))} == {STAGES}
    assert {point["freeze_depth"] for point, _ in draw(space_of(freeze_depth={"low": STAGES, "high": "all"}))} == {
        STAGES
    }


def test_a_point_becomes_a_trial_and_leaves_the_rest_alone():
    space = space_of()
    point = next(point for point, _ in draw(space) if len(point) == len(_PLACES) - 1)  # no precision
    trial = space.trial_config(point, BASE)
    assert trial.freeze_depth == point["freeze_depth"]
    assert trial.augmentation.model_dump() == {
        "policy": "randaugment",
        "magnitude": point["magnitude"],
        "num_views": 4,
        "seed": 0,
    }
    assert trial.optimizer.model_dump() == {
        "name": point["optimizer"],
        "lr": point["lr"],
        "backbone_lr_ratio": point["backbone_lr_ratio"],
        "layer_decay": 1.0,
        "weight_decay": point["weight_decay"],
        "schedule": "cosine",
        "momentum": BASE.optimizer.momentum,
        "warmup_epochs": point["warmup_epochs"],
        "grad_clip_norm": point["grad_clip_norm"],
    }
    assert (trial.batch_size, trial.label_smoothing) == (point["batch_size"], point["label_smoothing"])
    assert trial.head_init == point["head_init"]
    assert (trial.data, trial.backbone, trial.epochs, trial.seed) == (BASE.data, BASE.backbone, BASE.epochs, BASE.seed)
    assert apply_params({}, BASE) == BASE


def test_what_concerns_batches_and_losses_reaches_the_trial():
    chosen = {
        "mixup_alpha": 0.2, "cutmix_alpha": 1.0, "class_balance": "balanced", "ema_decay": 0.99, "grad_accumulation": 4
    }  # fmt: skip
    space = space_of(**{name: [value, _DEFAULTS[name]] for name, value in chosen.items()})
    points = [point for point, _ in draw(space)]
    assert all({point[name] for point in points} == {value, _DEFAULTS[name]} for name, value in chosen.items())
    trial = space.trial_config(next(iter(points)) | chosen, BASE)
    assert {name: getattr(trial, name) for name in chosen} == chosen
    untouched = TrialConfig.model_validate(BASE.model_dump(exclude=set(chosen)))
    assert {name: getattr(untouched, name) for name in chosen} == {name: _DEFAULTS[name] for name in chosen}


def test_what_concerns_the_trained_part_is_in_a_point_where_it_has_an_effect():
    space = space_of(
        head=["linear", "mlp", "cosine"], head_init=["probe", "random"], dropout=[None, 0.3],
        bn_mode=["update", "keep"], precision=["fp32", "bf16"],
    )  # fmt: skip
    points = [point for point, _ in draw(space)]
    assert {point["head"] for point in points} == {"linear", "mlp", "cosine"}
    assert all(("head_init" in point) == (point["head"] == "linear") for point in points)
    assert all(("bn_mode" in point) == (point["freeze_depth"] < STAGES) for point in points)
    for point in points[:20]:
        trial = space.trial_config(point, BASE)
        assert trial.head_init == point.get("head_init", "random")
        assert (trial.head, trial.dropout) == (point["head"], point["dropout"])
        assert trial.bn_mode == point.get("bn_mode", "update")
        assert (trial.compute.precision, trial.compute.prefix_precision) == (point["precision"], "fp32")
    assert not any("precision" in point for point, _ in draw(space_of()))


def test_statistics_are_kept_only_where_there_are_some():
    search = SearchSpec.model_validate({"bn_mode": ["update", "keep"]})
    shapes = {
        "resnet18": BackboneShape(6), "densenet121": BackboneShape(6, batch_norm_depth=4),
        "convnext_tiny": BackboneShape(6, batch_norm_depth=0), "lenet": BackboneShape(4, is_pretrained=False),
    }  # fmt: skip
    seen = {(point["backbone"], point["freeze_depth"]) for point, _ in draw(SearchSpace.over(search, shapes), 200)
            if "bn_mode" in point}  # fmt: skip
    assert seen == {("resnet18", depth) for depth in range(6)} | {("densenet121", depth) for depth in range(4)}


def test_a_pretraining_is_a_point_too():
    pretrain = load_spec("digits").pretrain_specs()["lenet"]
    trial = apply_params(pretrain.params(), BASE)
    assert (trial.optimizer.lr, trial.batch_size, trial.augmentation.policy) == (3e-3, 32, "none")
    assert (trial.freeze_depth, trial.augmentation.num_views) == (0, "unlimited")


def test_the_digest_names_the_space_in_every_process():
    code = (
        "from search_spaces.space import SearchSpace; from search_spaces.search_spec import SearchSpec; "
        f"print(SearchSpace(SearchSpec(), {STAGES}).digest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == space_of().digest() == space_of(num_trials=99).digest()
    assert space_of(lr=0.1).digest() != space_of().digest() != SearchSpace(SearchSpec(), STAGES + 1).digest()


def test_trials_of_an_older_thaw_are_points_where_new_fields_have_their_defaults():
    (point, _), *_ = draw(space_of())
    older = {name: value for name, value in point.items() if name not in _DEFAULTS}
    assert len(point) - len(older) == len(_DEFAULTS)
    assert space_of().contains(older)
    assert not space_of(schedule="linear").contains(older)
    assert not space_of(class_balance=["none", "weighted"]).contains(older)
    assert not space_of(mixup_alpha=0.2).contains(older)
    assert not space_of(ema_decay=[None, 0.99]).contains(older)
    assert not space_of().contains({name: value for name, value in point.items() if name != "lr"})
