"""The points of a space one by one, and the samplers that try all of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from pydantic import ValidationError
from searching_support import Loop

from search_spaces.advice import rules_of_thumb
from search_spaces.listing import MOST_POINTS, check_sampler, common_numbers, num_points, points_of, trials_in_all
from search_spaces.search_spec import SearchSpec
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from trainables.errors import InputError
from tuner.search.searching import NUMBER

LISTED = {
    "freeze_depth": [0, 3, "all"],
    "lr": [1e-3, 1e-2],
    "backbone_lr_ratio": [0.1, 1.0],
    "optimizer": "adamw",
    "weight_decay": 1e-4,
    "warmup_epochs": 0.0,
    "grad_clip_norm": 1.0,
    "augmentation": ["none", "randaugment"],
    "magnitude": {"low": 3, "high": 5},
    "batch_size": 32,
    "label_smoothing": 0.0,
    "head_init": "random",
}
SPACE = SearchSpace(SearchSpec.model_validate(LISTED), num_stages=6)


def spec(**search):
    return SweepSpec.model_validate(
        {"name": "a", "data": {"source": "x"}, "model": {"backbone": "b"}, "search": {**LISTED, **search}}
    )


def key(point):
    return tuple(sorted((name, str(value)) for name, value in point.items()))


def test_every_point_is_listed_once_and_only_with_the_fields_that_have_an_effect():
    points = list(points_of(SPACE))
    depths_and_ratios = [(0, 0.1), (0, 1.0), (3, 0.1), (3, 1.0), (6, None)]
    expected = product(depths_and_ratios, (1e-3, 1e-2), (None, 3, 4, 5))
    found = [
        ((point["freeze_depth"], point.get("backbone_lr_ratio")), point["lr"], point.get("magnitude"))
        for point in points
    ]
    assert sorted(map(str, found)) == sorted(map(str, expected))
    assert all(SPACE.contains(point) for point in points)
    assert num_points(SPACE) == len(points) == 40


@pytest.mark.parametrize("sampler", ["grid", "brute_force"])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_listing_sampler_tries_every_point_once_whatever_interrupts_it(sampler, concurrency):
    loop = Loop(space=SPACE, concurrency=concurrency, num_trials=40, options={"sampler": sampler}, scheduled=False)
    undisturbed = replace(loop, records={}).start().run()
    for steps in (7, 90, 33):
        loop.start().run(steps)
    loop.start().run()
    tried = [key(record.params) for record in loop.records.values()]
    assert sorted(tried) == sorted(map(key, points_of(SPACE)))
    assert loop.records == undisturbed.records
    assert tried != [key(point) for point in points_of(SPACE)], "in no order of the fields"


def test_a_grid_goes_by_numbers_and_brute_force_begins_with_common_advice():
    grid = Loop(space=SPACE, num_trials=40, options={"sampler": "grid"}).start()
    first = grid.searcher.suggest("a")
    again = Loop(space=SPACE, num_trials=40, options={"sampler": "grid", "first_points": [{"lr": 1e-2}]}).start()
    assert again.searcher.suggest("a") == first
    assert first[NUMBER] == 0
    brute = Loop(space=SPACE, num_trials=40, options={"sampler": "brute_force"}).start().run()
    rules = rules_of_thumb(SPACE)
    assert len(rules) == 3
    assert [{name: brute.records[number].params[name] for name in rule} for number, rule in enumerate(rules)] == rules


def test_a_grid_that_is_not_combined_has_the_same_points(monkeypatch):
    def tried(most):
        monkeypatch.setattr("tuner.search.exhaustive._MOST_COMBINED", most)
        loop = Loop(space=SPACE, num_trials=40, options={"sampler": "grid"}, scheduled=False).start().run()
        return [key(record.params) for record in loop.records.values()]

    assert len(set(tried(0))) == 40
    assert sorted(tried(0)) == sorted(tried(1_000_000))
    assert tried(0) == tried(0) != sorted(tried(0))


def test_a_search_that_lists_has_as_many_trials_as_points_at_most():
    assert trials_in_all(spec(sampler="grid"), SPACE) == 40
    assert trials_in_all(spec(sampler="brute_force", num_trials=100), SPACE) == 40
    assert trials_in_all(spec(sampler="grid", num_trials=5), SPACE) == 5
    assert trials_in_all(spec(), SPACE) == 16


@pytest.mark.parametrize("sampler", ["grid", "brute_force"])
def test_ranges_of_real_numbers_cannot_be_listed(sampler):
    with pytest.raises(ValidationError) as caught:
        spec(sampler=sampler, lr={"low": 1e-3, "high": 1e-1, "log": True}, weight_decay={"low": 0.0, "high": 0.1})
    assert (
        f"search.sampler: {sampler} tries every point, and lr, weight_decay have ranges, not values; list those to "
        "try, as in lr: [0.001, 0.01, 0.1], or use another sampler" in str(caught.value)
    )


def test_a_space_that_would_take_for_ever_is_refused():
    large = SearchSpec.model_validate({**LISTED, "batch_size": {"low": 1, "high": 1000}, "sampler": "grid"})
    with pytest.raises(InputError, match=f"grid would try more than {MOST_POINTS} points; list fewer values"):
        check_sampler(spec(sampler="grid"), SearchSpace(large, num_stages=6))


def test_cmaes_moves_the_numbers_that_every_point_has():
    default = SearchSpace(SearchSpec(), num_stages=6)
    assert list(common_numbers(default)) == ["freeze_depth", "lr", "weight_decay"]
    shallow = SearchSpec.model_validate({"freeze_depth": [0, 3], "augmentation": "randaugment"})
    assert list(common_numbers(SearchSpace(shallow, num_stages=6))) == [
        "backbone_lr_ratio",
        "lr",
        "magnitude",
        "weight_decay",
    ]
    check_sampler(spec(sampler="cmaes"), default)
    with pytest.raises(InputError, match=r"cmaes moves numbers .* here there is none; give ranges, to lr and"):
        check_sampler(spec(sampler="cmaes"), SPACE)
