"""What trials are expected to do, cost and store, before any of them has run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from search_spaces.expecting import distinct_views, expected_trials, policy_name, shares_by_epoch, views_of
from search_spaces.loading import parse_spec
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from search_spaces.storing import worth_storing_now
from tuner.networks.material import Material
from tuner.networks.pricing import Looked, Pricing

# Four stages of 10 MFLOP: a first cut that is large for what it saves, and smaller ones behind it.
MATERIAL = Material((10**7,) * 4, 10**3, (10**6, 10**4, 10**4, 10**3), num_train=100, num_val=20)


def pricing(material: Material = MATERIAL, device: Any = "cpu", **parts: Any) -> Pricing:
    raw = {"name": "bees", "data": {"source": "folder:bees"}, "model": {"backbone": "resnet18"}, **parts}
    spec = parse_spec(raw, SweepSpec, "test")
    return Pricing(spec, SearchSpace(spec.search, len(material.stage_flops)), material, device)


def point(depth: int, policy: str = "flip", **more: Any) -> dict[str, Any]:
    views = {} if policy == "none" else {"num_views": 4}
    return {"freeze_depth": depth, "augmentation": policy, **views, **more}


def test_an_mlp_head_costs_what_it_computes() -> None:
    material = replace(MATERIAL, other_heads={"mlp": 10**6, "cosine": 10**3})
    reckoned = pricing(material)
    linear, mlp, cosine = (reckoned.cost(point(4, head=head)).tail_flops for head in ("linear", "mlp", "cosine"))
    assert mlp == pytest.approx(1000 * linear)
    assert cosine == linear == reckoned.cost(point(4)).tail_flops


# --- what is expected ----------------------------------------------------------------------------------------


def test_each_magnitude_of_randaugment_is_a_family_of_views() -> None:
    assert policy_name(point(1, "randaugment", magnitude=7)) != policy_name(point(1, "randaugment", magnitude=8))
    assert policy_name(point(1, magnitude=7)) == policy_name(point(2)) == "flip"
    assert (views_of(point(1, "none")), views_of(point(1)), views_of(point(1, num_views="unlimited"))) == (
        1,
        4,
        "unlimited",
    )


def test_expected_trials_are_spread_evenly_and_add_up() -> None:
    raw = {"freeze_depth": [0, 2, "all"], "augmentation": ["flip", "randaugment"], "magnitude": {"low": 3, "high": 6}}
    spec = parse_spec(
        {"name": "a", "data": {"source": "x"}, "model": {"backbone": "b"}, "search": raw}, SweepSpec, "test"
    )
    expected = expected_trials(SearchSpace(spec.search, 4), 24)
    assert expected["flip"] == {0: 4, 2: 4, 4: 4}
    assert expected["randaugment 5"] == {0: 1, 2: 1, 4: 1}
    assert sum(number for by_depth in expected.values() for number in by_depth.values()) == 24


def test_successive_halving_shortens_trials() -> None:
    assert shares_by_epoch(4, 2, None) == (1, 1, 1, 1)
    assert shares_by_epoch(8, 2, 3.0) == pytest.approx((1, 1, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 9, 1 / 9))
    shares = shares_by_epoch(8, 2, 3.0)
    # Of four views, one trial surely looks at two; many look at all.
    assert distinct_views(shares, 4, 1) == distinct_views(shares, 4, 0.1) == pytest.approx(2 + 2 / 3)
    assert distinct_views(shares, 4, 50) == pytest.approx(4)
    assert distinct_views(shares, "unlimited", 1) == pytest.approx(sum(shares))


def test_a_cut_is_stored_ahead_where_another_trial_is_likely_to_need_it() -> None:
    stages, sizes = (100, 100, 100), (10, 10, 10)
    likely = {1: 3.0, 2: 0.0, 3: 3.0}
    assert worth_storing_now((1, 2, 3), 3, stages, sizes, likely, flops_per_byte=10) == (1, 3)
    assert worth_storing_now((1, 2, 3), 3, stages, sizes, {}, flops_per_byte=10) == (3,)
    assert worth_storing_now((1, 2), 3, stages, sizes, {2: 3.0}, flops_per_byte=10) == (2,)
    # Between a cut and the next one, trials of every depth would compute from it.
    assert worth_storing_now((1, 3), 3, stages, sizes, {2: 3.0}, flops_per_byte=10) == (1, 3)
    assert worth_storing_now((), 3, stages, sizes, likely, flops_per_byte=10) == ()


# --- what is stored ------------------------------------------------------------------------------------------


def test_a_trial_keeps_its_own_cut_and_not_a_large_early_one() -> None:
    rates = pricing()
    assert rates.cuts_to_keep(point(0)) == {"train": (), "val": ()}
    assert rates.cuts_to_keep(point(1))["train"] == (), "10 FLOPs per byte"
    for depth in (2, 3, 4):
        kept = rates.cuts_to_keep(point(depth))
        assert depth in kept["train"]
        assert 1 not in kept["train"]
        assert max(kept["train"]) == max(kept["val"]) == depth
    for depth in (1, 2, 3, 4):
        assert depth in rates.cuts_to_keep(point(depth))["val"], "which every trial reads"


def test_a_dear_byte_and_a_small_budget_store_less() -> None:
    own = point(4)
    assert pricing(device="cuda").cuts_to_keep(own)["train"] == (4,)
    assert set(pricing(device="cuda").cuts_to_keep(own)["train"]) < set(pricing().cuts_to_keep(own)["train"])
    # 20 validation pictures of 1 kB fit, and then one view of 100 training pictures, but not four.
    small = pricing(cache={"budget_gb": 1.2e-4})
    assert small.cuts_to_keep(own) == {"train": (), "val": (4,)}
    assert small.cuts_to_keep(point(4, "none")) == {"train": (4,), "val": (4,)}


def test_nothing_is_stored_without_a_store_and_no_view_that_never_comes_again() -> None:
    assert pricing(features="off").cuts_to_keep(point(3)) == {"train": (), "val": ()}
    endless = pricing(search={"num_views": "unlimited"}).cuts_to_keep(point(3, num_views="unlimited"))
    assert (endless["train"], 3 in endless["val"]) == ((), True)
    assert 3 in pricing(features="required", cache={"budget_gb": 1e-9}).cuts_to_keep(point(3))["train"]
    once = pricing(search={"num_trials": 1}, budget={"epochs": 1}).cuts_to_keep(point(3))
    assert once == {"train": (), "val": ()}, "what one epoch looks at once is worth nothing"


def test_searched_numbers_of_views_share_the_views_that_they_have_in_common() -> None:
    searched = pricing(search={"num_views": [2, 4, "unlimited"]})
    assert searched.cuts_to_keep(point(3, num_views=2))["train"]
    assert not searched.cuts_to_keep(point(3, num_views="unlimited"))["train"]
    after_two = searched.cost(point(3), [Looked(point(3, num_views=2), 8)])
    assert searched.cost(point(3)).fill_flops > after_two.fill_flops > 0, "two views of four are there"
    endless, before = point(3, num_views="unlimited"), [Looked(point(3, num_views=2), 8)]
    assert searched.cost(endless, before).fill_flops == searched.cost(endless, [Looked(endless, 8)]).fill_flops
    undrawn = {name: value for name, value in point(3).items() if name != "num_views"}
    assert searched.price(undrawn) == searched.price(point(3))
    assert pricing(search={"num_views": {"low": 1, "high": 6}}).usual_policy


def test_trials_are_told_apart_by_what_they_read() -> None:
    rates = pricing()
    assert rates.affinity(point(0)) is None
    assert rates.affinity(point(3)) == rates.affinity(point(3, lr=0.1))
    assert rates.affinity(point(3)) != rates.affinity(point(4))
    assert rates.affinity(point(3)) != rates.affinity(point(3, "none"))


# --- what is predicted ---------------------------------------------------------------------------------------


def test_a_trial_is_cheaper_when_its_features_are_there() -> None:
    rates = pricing()
    first = rates.cost(point(3))
    assert first.fill_flops == 3e7 * (4 * 100 + 20)
    assert first.tail_flops == 8 * (1e7 + 1e3) * (3 * 100 + 20)
    again = rates.cost(point(3), [Looked(point(3), 8)])
    assert (again.fill_flops, again.tail_flops) == (0, first.tail_flops)
    # Two epochs of another trial have looked at two of the four views.
    assert rates.cost(point(3), [Looked(point(3), 2)]).fill_flops == 3e7 * 2 * 100
    assert rates.cost(point(3), [Looked(point(3), 0)]) == first
    # Under another policy only the validation pictures are the same.
    assert rates.cost(point(3), [Looked(point(3, "none"), 8)]).fill_flops == 3e7 * 4 * 100
    # A deeper trial computes on from what a shallower one stored.
    assert rates.cost(point(4), [Looked(point(3), 8)]).fill_flops == 1e7 * (4 * 100 + 20)


def test_a_pass_that_begins_at_what_is_held_stores_nothing_in_front_of_it() -> None:
    rates = pricing(search={"num_trials": 60})
    assert rates.cuts_to_keep(point(4))["train"] == (2, 3, 4)
    assert rates.cuts_to_keep(point(3))["train"] == (2, 3)
    kept = {"train": (3,), "val": ()}
    rates._kept["flip", 4, 3, "the backbone"] = kept  # type: ignore[assignment]
    before = [Looked(point(3), 8), Looked(point(4), 8)]
    assert rates.cost(point(4), before).fill_flops == 0
    assert rates.cost(point(2), before).fill_flops == 2e7 * 4 * 100


def test_without_a_store_every_epoch_fills_anew() -> None:
    alone = pricing(features="off").cost(point(3), [Looked(point(3), 8)])
    assert alone.fill_flops == 8 * 3e7 * 120


def test_figures_are_metrics_in_gflop_and_what_is_spent_adds_up() -> None:
    rates = pricing()
    first = rates.cost(point(3)).total
    assert rates.figures(point(3), []) == {
        "compute/predicted_gflops": first / 1e9,
        "compute/predicted_fill_gflops": 3e7 * 420 / 1e9,
    }
    trials = [Looked(point(3), 8), Looked(point(3), 2)]
    assert rates.spent(trials) == pytest.approx(first + rates.cost(point(3), trials[:1]).total / 4)


def test_a_budget_of_flops_says_how_many_trials_to_expect() -> None:
    assert pricing().num_trials == 16
    assert pricing(budget={"time_s": 10.0}).num_trials == 16
    small, large = (pricing(budget={"flops": flops}).num_trials for flops in (1e12, 1e13))
    assert large == pytest.approx(10 * small)
    assert pricing(budget={"flops": 1.0}).num_trials == 1


def test_the_outlook_has_a_row_for_each_depth() -> None:
    rows = pricing(search={"freeze_depth": [0, 3, "all"]}).outlook()
    assert [row.depth for row in rows] == [0, 3, 4]
    assert rows[0].gflops == rows[0].gflops_alone == rows[0].gflops_again
    for row in rows[1:]:
        assert row.gflops_again < row.gflops < row.gflops_alone
        assert (row.train_bytes, row.val_bytes) == (100 * row.bytes_per_picture, 20 * row.bytes_per_picture)
    assert rows[-1].stores["train"][-1] == 4
    assert pricing(search={"augmentation": ["none", "randaugment", "flip"]}).usual_policy == "randaugment"


def test_pictures_that_grow_are_cheaper_and_not_stored() -> None:
    rates = pricing(search={"num_trials": 60, "start_size": [0.5, 1.0]})
    grown, whole = {**point(4), "start_size": 0.5}, {**point(4), "start_size": 1.0}
    assert rates.cuts_to_keep(whole)["train"]
    assert rates.cuts_to_keep(grown)["train"] == ()
    assert rates.cuts_to_keep(grown)["val"] == rates.cuts_to_keep(whole)["val"]
    # Of eight epochs two at a quarter of the pixels, three at nine sixteenths, three at all of them.
    share = (2 * 0.25 + 3 * 0.5625 + 3) / 8
    assert rates.cost(grown).tail_flops / rates.cost(whole).tail_flops == pytest.approx((300 * share + 20) / 320)
