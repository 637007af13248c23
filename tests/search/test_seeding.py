"""The first trials from a probe: cheap ones first, common advice always among them, and never outside the space."""

from __future__ import annotations

import warnings

import optuna
import pytest

from search_spaces.advice import rules_of_thumb
from search_spaces.search_spec import SearchSpec
from search_spaces.seeding import ProbedDepth, best_depth, first_points, should_probe
from search_spaces.space import SearchSpace

STAGES = 6
RISING = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
PEAKED = (0.5, 0.6, 0.7, 0.9, 0.85, 0.8)


def space_of(*, is_pretrained=True, **search):
    return SearchSpace(SearchSpec.model_validate(search), STAGES, "resnet18", is_pretrained=is_pretrained)


def probes_of(accuracies, num_judged=1000):
    return [ProbedDepth(depth, accuracy, num_judged) for depth, accuracy in enumerate(accuracies, start=1)]


def depths(points):
    return [point["freeze_depth"] for point in points]


def test_the_best_depth_is_the_deepest_that_cannot_be_told_from_the_best():
    assert best_depth(probes_of(PEAKED)) == 4
    assert best_depth(probes_of(RISING)) == 6
    assert best_depth(probes_of((0.9, 0.9, 0.9))) == 3
    # With 1000 pictures the standard error at 0.9 is 0.0095, with 100 it is 0.03.
    assert best_depth(probes_of((0.5, 0.9, 0.88))) == 2
    assert best_depth(probes_of((0.5, 0.9, 0.88), num_judged=100)) == 3


@pytest.mark.parametrize(
    ("accuracies", "num_trials", "expected"),
    [
        (PEAKED, 16, [6, 4, 3, 3, 2, 2, 0]),
        (RISING, 16, [6, 5, 4, 3, 3, 2, 0]),
        (PEAKED[::-1], 16, [6, 3, 3, 2, 2, 1, 0]),
        (PEAKED, 5, [6, 4, 3, 3, 0]),
        (PEAKED, 4, [6, 4, 3, 0]),  # few trials: common advice and the best depth stay, neighbours go
        (PEAKED, 3, [6, 3, 0]),
        (PEAKED, 1, [6]),
    ],
)
def test_seeds_run_from_the_cheapest_to_the_dearest(accuracies, num_trials, expected):
    points = first_points(space_of(), probes_of(accuracies), num_trials)
    assert depths(points) == expected
    assert {point["head_init"] for point in points} == {"probe"}
    assert first_points(space_of(), probes_of(accuracies)[::-1], num_trials) == points


def test_common_advice_is_among_the_seeds_and_the_lone_head_reads_what_the_probe_has_stored():
    space = space_of()
    seeds = first_points(space, probes_of(PEAKED), 16)
    head, middle, everything = rules_of_thumb(space)
    as_is = {name: value for name, value in head.items() if name != "num_views"} | {"augmentation": "none"}
    assert all(rule in seeds for rule in (as_is, middle, everything))
    assert first_points(space, probes_of(PEAKED), None) == seeds


def test_stairs_learn_faster_than_common_advice_from_what_the_probe_has_stored():
    head, *stairs, everything = first_points(space_of(), probes_of(PEAKED), 16)
    middle = stairs.pop(2)
    assert middle in rules_of_thumb(space_of())
    assert [stair["freeze_depth"] for stair in stairs] == [4, 3, 2, 2]
    assert {stair["augmentation"] for stair in stairs} == {"none"}
    for stair in stairs[:3]:
        assert stair["lr"] > max(head["lr"], middle["lr"], everything["lr"])
        assert stair["backbone_lr_ratio"] > middle["backbone_lr_ratio"]


@pytest.mark.parametrize(
    "search",
    [
        {"lr": {"low": 0.1, "high": 1.0}, "batch_size": [128, 256]},
        {"optimizer": "sgd", "augmentation": ["randaugment"], "head_init": "random"},
        {"freeze_depth": {"low": 1, "high": 4}},
        {"freeze_depth": [0, 5], "head_init": ["random", "probe"]},
        {"freeze_depth": 3},
        {"freeze_depth": 0},
    ],
)
def test_seeds_keep_to_the_declared_space(search):
    space = space_of(**search)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = first_points(space, probes_of(PEAKED), 16)
    assert points
    for seed in points:
        study.enqueue_trial(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna warns where a fixed parameter lies outside
            trial = study.ask()
            point = space.suggest(trial)
        assert space.contains(point)
        assert trial.params == seed, "nothing is left to chance"


def test_only_depths_that_may_be_tried_are_candidates():
    points = first_points(space_of(freeze_depth={"low": 0, "high": 3}), probes_of(PEAKED), 16)
    assert depths(points) == [3, 3, 2, 2, 1, 0]


def test_auto_probes_where_it_can_decide_something():
    assert should_probe(SearchSpec(), space_of(), is_pretrained=True)
    assert not should_probe(SearchSpec(), space_of(), is_pretrained=False)
    assert not should_probe(SearchSpec(), space_of(freeze_depth=2), is_pretrained=True)
    assert should_probe(SearchSpec(probe="on"), space_of(freeze_depth=2), is_pretrained=False)
    assert not should_probe(SearchSpec(probe="off"), space_of(), is_pretrained=True)


def test_auto_heads_start_from_a_probe_only_on_pretrained_weights():
    def choices(space):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        return {space.suggest(study.ask())["head_init"] for _ in range(20)}

    assert choices(space_of()) == {"probe", "random"}
    assert choices(space_of(is_pretrained=False)) == {"random"}
    assert choices(space_of(is_pretrained=False, head_init="probe")) == {"probe"}
    assert space_of().digest() != space_of(is_pretrained=False).digest()


def test_auto_in_a_list_is_refused():
    with pytest.raises(ValueError, match="write auto alone"):
        SearchSpec(head_init=("auto", "probe"))
