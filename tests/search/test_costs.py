"""What a trial costs, counted epoch by epoch; what to store, against every choice there is; price in the search."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.costs import (
    Cost,
    Kept,
    best_for_its_price,
    cheapest_first,
    cooled_price_weight,
    trial_flops,
)
from search_spaces.storing import Demand, StoragePlan, sweep_demands, what_to_store
from trainables.errors import InputError

STAGES = (100, 30, 20, 50)
HEAD = 5
NOTHING: Kept = {"train": (), "val": ()}


def flops_of(depth: int, **changes: object) -> Cost:
    point = {"epochs": 6, "num_train": 10, "num_val": 3, "num_views": 4, "stage_flops": STAGES, "head_flops": HEAD}
    return trial_flops(freeze_depth=depth, **{**point, **changes})  # type: ignore[arg-type]


def test_training_everything_costs_three_passes_and_validation_one() -> None:
    assert flops_of(0) == Cost(tail_flops=6 * 205 * (3 * 10 + 3), fill_flops=0)


def test_a_frozen_trial_fills_each_view_once() -> None:
    cost = flops_of(2)
    assert cost == Cost(tail_flops=6 * 75 * 33, fill_flops=130 * (4 * 10 + 3))
    assert cost.total == cost.tail_flops + cost.fill_flops
    assert flops_of(2, epochs=2).fill_flops == 130 * (2 * 10 + 3)
    assert flops_of(2, num_views="unlimited").fill_flops == 130 * (6 * 10 + 3)
    assert flops_of(2, num_views=1).fill_flops == 130 * (10 + 3)
    assert flops_of(2, epochs=0).total == 0


def test_folds_and_seeds_train_often_and_fill_once() -> None:
    """3 folds of 10 pictures with 2 seeds: each picture is learnt from 4 times an epoch and judged twice."""
    folds = {"num_val": 10, "train_passes": 4.0, "val_passes": 2.0}
    assert flops_of(0, **folds) == Cost(tail_flops=6 * 205 * (3 * 40 + 20), fill_flops=0)
    assert flops_of(2, **folds).fill_flops == 130 * (4 * 10 + 10)
    assert flops_of(2, kept=NOTHING, **folds).fill_flops == 6 * 130 * (40 + 20)
    # A view without end is computed for each replica, as no fold can read it from another.
    assert flops_of(2, num_views="unlimited", kept={"train": (), "val": (2,)}, **folds).fill_flops == 130 * (240 + 10)


def test_a_trial_that_keeps_nothing_fills_in_every_epoch() -> None:
    assert flops_of(2, kept=NOTHING).fill_flops == 6 * 130 * 13


def test_a_trial_that_keeps_a_shallower_cut_computes_from_it() -> None:
    first, later = 150 * 43, 20 * (2 * 10 + 5 * 3)
    assert flops_of(3, kept={"train": (2,), "val": (2,)}).fill_flops == first + later
    assert flops_of(3, kept={"train": (2,), "val": (3, 4)}).fill_flops == first + 20 * 2 * 10


def test_held_cuts_save_the_stages_in_front_of_them() -> None:
    whole = {(2, view) for view in (0, 1, 2, 3, "val")}
    assert flops_of(2, held=whole).fill_flops == 0
    assert flops_of(4, held=whole).fill_flops == 70 * 43
    assert flops_of(1, held=whole).fill_flops == 100 * 43
    partly = {(1, 0), (2, 0), (3, 0), (1, 3), (2, "val")}
    assert flops_of(2, held=partly).fill_flops == 10 * (0 + 130 + 130 + 30)
    # Of six epochs, views 0 and 1 are seen by two each.
    assert flops_of(2, held=partly, kept=NOTHING).fill_flops == 10 * (0 + 2 * 130 + 130 + 30)


@given(
    depth=st.integers(0, 4),
    epochs=st.integers(0, 7),
    num_views=st.one_of(st.integers(1, 9), st.just("unlimited")),
    held=st.frozensets(st.tuples(st.integers(1, 4), st.one_of(st.integers(0, 7), st.just("val")))),
    kept=st.frozensets(st.integers(1, 4)),
)
def test_the_formula_is_what_the_epochs_add_up_to(
    depth: int, epochs: int, num_views: object, held: frozenset[tuple[int, object]], kept: frozenset[int]
) -> None:
    store, filled, trained = set(held), 0, 0
    for epoch in range(epochs):
        view = epoch if num_views == "unlimited" else epoch % num_views  # type: ignore[operator]
        for name, pictures in ((view, 10), ("val", 3)):
            start = max((cut for cut, held_name in store if held_name == name and cut <= depth), default=0)
            filled += pictures * sum(STAGES[start:depth])
            trained += pictures * (sum(STAGES[depth:]) + HEAD) * (1 if name == "val" else 3)
            store |= {(cut, name) for cut in kept if start < cut <= depth}
    cost = flops_of(depth, epochs=epochs, num_views=num_views, held=held, kept={"train": kept, "val": kept})
    assert cost == Cost(trained, filled)


def test_impossible_trials_are_refused() -> None:
    with pytest.raises(InputError, match="freeze_depth: 5 is outside 0 to 4"):
        flops_of(5)
    with pytest.raises(InputError, match="num_views=0"):
        flops_of(1, num_views=0)


def test_the_cheapest_goes_first_and_one_whose_features_are_held_before_its_like() -> None:
    costs = [flops_of(0), flops_of(4), flops_of(2), flops_of(2, held={(2, 0), (2, "val")}), flops_of(4)]
    assert cheapest_first(costs) == (1, 4, 3, 2, 0)
    assert cheapest_first([]) == ()


# What to store. `reckon` follows each trial through its reads, knowing nothing of how the plan is found.
FLOPS = (50, 7, 20, 3)
BYTES = (64, 16, 16, 2)


def reckon(demand: Demand, stored: Sequence[int]) -> float:
    """FLOPs of a demand's frozen parts, filling included."""
    present = demand.held | set(stored)

    def missing(depth: int, have: frozenset[int] | set[int]) -> float:
        return sum(FLOPS[max((cut for cut in have if cut <= depth), default=0) : depth])

    fill = 0.0
    if stored:
        assert demand.num_views != "unlimited"
        done = set(demand.held)
        for cut in sorted(stored):
            needed = sum(number for depth, number in demand.trials_by_depth.items() if depth >= cut)
            fill += min(needed, 1.0) * demand.num_pictures * demand.num_views * missing(cut, done)
            done.add(cut)
    reads = demand.num_pictures * demand.epochs
    return fill + sum(reads * number * missing(depth, present) for depth, number in demand.trials_by_depth.items())


def size(demand: Demand, stored: Sequence[int]) -> int:
    views = 0 if demand.num_views == "unlimited" else demand.num_views
    return sum(BYTES[cut - 1] * demand.num_pictures * views for cut in stored)


def choices(demand: Demand) -> list[tuple[int, ...]]:
    new = [cut for cut in range(1, 5) if cut not in demand.held and demand.num_views != "unlimited"]
    return [some for number in range(len(new) + 1) for some in itertools.combinations(new, number)]


def worth(demands: Sequence[Demand], stored: Mapping[str, Sequence[int]], price: float) -> float:
    return sum(
        reckon(demand, ()) - reckon(demand, stored[demand.name]) - price * size(demand, stored[demand.name])
        for demand in demands
    )


def best_worth(demands: Sequence[Demand], budget: float, price: float) -> float:
    """By trying everything."""
    names = [demand.name for demand in demands]
    best = 0.0
    for stored in itertools.product(*(choices(demand) for demand in demands)):
        if sum(size(demand, some) for demand, some in zip(demands, stored, strict=True)) <= budget:
            best = max(best, worth(demands, dict(zip(names, stored, strict=True)), price))
    return best


demand_values = st.builds(
    Demand,
    name=st.just(""),
    num_pictures=st.integers(1, 5),
    num_views=st.one_of(st.integers(1, 4), st.just("unlimited")),
    epochs=st.sampled_from([1.0, 2.5, 8.0]),
    trials_by_depth=st.dictionaries(st.integers(0, 4), st.sampled_from([0.5, 1.0, 3.0])),
    held=st.frozensets(st.integers(1, 4), max_size=2),
)


def named(demands: Sequence[Demand]) -> list[Demand]:
    return [
        Demand(f"policy {number}", d.num_pictures, d.num_views, d.epochs, d.trials_by_depth, d.held)
        for number, d in enumerate(demands)
    ]


@settings(deadline=None)
@given(
    demand=demand_values, share=st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]), price=st.sampled_from([0.0, 0.2, 1.0, 9.0])
)
def test_for_one_policy_no_choice_is_better(demand: Demand, share: float, price: float) -> None:
    (demand,) = named([demand])
    budget = share * size(demand, choices(demand)[-1])
    plan = what_to_store(FLOPS, BYTES, [demand], budget, least_flops_per_byte=price)
    assert worth([demand], plan.depths, price) == pytest.approx(best_worth([demand], budget, price))


@settings(deadline=None, max_examples=60)
@given(
    demands=st.lists(demand_values, min_size=2, max_size=2).map(named),
    share=st.sampled_from([0.02, 0.1, 0.3, 0.6, 1.0]),
    price=st.sampled_from([0.0, 0.5]),
)
def test_for_several_policies_at_least_half_of_the_best_is_saved(
    demands: list[Demand], share: float, price: float
) -> None:
    most = sum(size(demand, choices(demand)[-1]) for demand in demands)
    plan = what_to_store(FLOPS, BYTES, demands, share * most, least_flops_per_byte=price)
    best, found = best_worth(demands, share * most, price), worth(demands, plan.depths, price)
    assert best / 2 - 1e-9 <= found <= best + 1e-9
    if share == 1.0:
        assert found == pytest.approx(best)
    assert_is_summed_up(plan, demands, share * most)


def assert_is_summed_up(plan: StoragePlan, demands: Sequence[Demand], budget: float) -> None:
    assert plan.num_bytes == sum(size(demand, plan.depths[demand.name]) for demand in demands) <= budget
    assert plan.prefix_flops == pytest.approx(sum(reckon(demand, ()) for demand in demands))
    assert plan.flops_saved == pytest.approx(worth(demands, plan.depths, 0.0))
    assert 0 <= plan.saved_share <= 1
    for demand in demands:
        assert not set(plan.depths[demand.name]) & demand.held


def test_a_greedy_choice_that_blocks_a_large_one_is_mended() -> None:
    small = Demand("small", 1, 1, 8.0, {4: 10.0})
    large = Demand("large", 30, 1, 8.0, {4: 1.0})
    # The small one saves more per byte, the large one more; either fits, not both.
    assert what_to_store(FLOPS, BYTES, [small, large], 59).depths == {"small": (4,), "large": ()}
    plan = what_to_store(FLOPS, BYTES, [small, large], 60)
    assert plan.depths == {"small": (), "large": (4,)}


def test_room_that_the_best_steps_leave_is_used() -> None:
    few = Demand("few", 1, 1, 4.0, {2: 1.0, 3: 2.0, 4: 1.0})
    many = Demand("many", 3, 2, 4.0, {1: 1.0, 2: 2.0, 4: 1.0})
    for budget in range(0, 200):
        plan = what_to_store(FLOPS, BYTES, [few, many], budget)
        room = budget - plan.num_bytes
        for demand in (few, many):
            now = plan.depths[demand.name]
            for other in choices(demand):
                if size(demand, other) - size(demand, now) <= room:
                    assert reckon(demand, other) >= reckon(demand, now)


def test_a_trial_that_may_not_come_is_no_reason_not_to_store() -> None:
    unlikely = Demand("unlikely", 9, 4, 8.0, {3: 0.1})
    plan = what_to_store(FLOPS, BYTES, [unlikely], math.inf)
    assert plan.depths == {"unlikely": (3,)}
    assert plan.fill_flops == pytest.approx(0.1 * 9 * 4 * 77)


def test_what_nobody_reads_twice_is_not_stored() -> None:
    once = Demand("once", 9, 4, 4.0, {3: 1.0})
    assert what_to_store(FLOPS, BYTES, [once], math.inf).depths == {"once": ()}
    twice = Demand("twice", 9, 4, 4.0, {3: 2.0})
    plan = what_to_store(FLOPS, BYTES, [twice], math.inf)
    assert plan.depths == {"twice": (3,)}
    assert plan.flops_saved == plan.fill_flops == 9 * 4 * 77


def test_every_depth_in_use_is_stored_by_one_pass_where_there_is_room_and_a_small_budget_takes_the_smallest() -> None:
    demand = Demand("flip", 10, 2, 8.0, dict.fromkeys(range(5), 2.0))
    plan = what_to_store(FLOPS, BYTES, [demand], math.inf)
    assert plan.depths["flip"] == (1, 2, 3, 4)
    assert plan.fill_flops == 10 * 2 * sum(FLOPS)
    assert what_to_store(FLOPS, BYTES, [demand], 2 * 20).depths["flip"] == (4,)
    assert what_to_store(FLOPS, BYTES, [demand], 0).depths["flip"] == ()
    assert what_to_store(FLOPS, BYTES, [demand], -1).depths["flip"] == ()
    assert what_to_store(FLOPS, BYTES, [demand], math.inf, least_flops_per_byte=1e9).depths["flip"] == ()


def test_validation_pictures_are_read_by_the_trials_of_all_policies() -> None:
    demands = sweep_demands(
        {"none": {2: 1.0, 4: 2.0}, "flip": {4: 1.0}, "randaugment": {3: 1.0}},
        num_views={"none": 1, "flip": 12, "randaugment": "unlimited"},
        epochs=5.5,
        most_epochs=8,
        num_train=20,
        num_val=6,
        held={"val": frozenset({4}), "flip": frozenset({2})},
    )
    by_name = {demand.name: demand for demand in demands}
    assert by_name["val"] == Demand("val", 6, 1, 5.5, {2: 1.0, 4: 3.0, 3: 1.0}, frozenset({4}))
    assert by_name["flip"] == Demand("flip", 20, 8, 5.5, {4: 1.0}, frozenset({2}))
    plan = what_to_store(FLOPS, BYTES, demands, math.inf)
    assert plan.depths == {"none": (2, 4), "flip": (), "randaugment": (), "val": (2, 3)}
    assert_is_summed_up(plan, demands, math.inf)


def test_a_large_sweep_is_planned_at_once() -> None:
    demands = [Demand(str(n), 2000 + n, 4, 6.0, {d: 1 / (1 + (n + d) % 5) for d in range(13)}) for n in range(16)]
    stages, sizes = [10**8 + 7**d for d in range(12)], [2**20 >> d for d in range(12)]
    plan = what_to_store(stages, sizes, demands, 2e10)
    assert plan.num_bytes <= 2e10
    assert plan.flops_saved > 0


@pytest.mark.parametrize(
    ("sizes", "demands", "mistake"),
    [
        (BYTES[:3], [], "feature_bytes: .* for 4 stages"),
        ((1, 1, 0, 1), [], "feature_bytes"),
        (BYTES, [Demand("a", 1, 1, 1.0, {}), Demand("a", 1, 1, 1.0, {})], "another name"),
        (BYTES, [Demand("a", 1, 1, 1.0, {5: 1.0})], "freeze_depth: 5"),
        (BYTES, [Demand("a", 1, 1, 1.0, {}, frozenset({0}))], "depth 0 is the pictures"),
    ],
)
def test_impossible_demands_are_refused(sizes: Sequence[int], demands: list[Demand], mistake: str) -> None:
    with pytest.raises(InputError, match=mistake):
        what_to_store(FLOPS, sizes, demands, 1)


# The price in the search.
ratios = st.floats(-700, 700)
prices = st.floats(1e-6, 1e15)
candidates = st.lists(st.tuples(ratios, prices), min_size=1, max_size=12)


@given(candidates)
def test_without_a_price_the_choice_is_tpes(points: list[tuple[float, float]]) -> None:
    scores, costs = [score for score, _ in points], [cost for _, cost in points]
    chosen = best_for_its_price(scores, costs, price_weight=0.0)
    improvement = [1 / (0.1 + 0.9 * math.exp(-score)) if score > -600 else 0.0 for score in scores]
    assert improvement[chosen] == pytest.approx(max(improvement), rel=1e-9)


@given(candidates, st.sampled_from([0.0, 0.5, 1.0]))
def test_no_candidate_is_both_better_and_cheaper_than_the_chosen(
    points: list[tuple[float, float]], weight: float
) -> None:
    scores, costs = [score for score, _ in points], [cost for _, cost in points]
    chosen = best_for_its_price(scores, costs, price_weight=weight)
    gain = [1.0 / (0.1 + 0.9 * math.exp(-score)) for score in scores]
    assert not any(
        gain[other] > gain[chosen] * (1 + 1e-9) and costs[other] < costs[chosen] for other in range(len(points))
    )


@given(unit=st.floats(1e-3, 1e3))
def test_the_unit_of_the_price_does_not_matter(unit: float) -> None:
    scores, costs = [0.0, 0.6, 1.1, 1.5, 1.6], [1.0, 1.4, 2.2, 5.0, 9.0]
    chosen = best_for_its_price(scores, [unit * cost for cost in costs], price_weight=0.7)
    assert chosen == best_for_its_price(scores, costs, price_weight=0.7) == 2


def test_a_price_outweighs_a_little_improvement_and_not_a_lot() -> None:
    assert best_for_its_price([1.0, 0.9], [10.0, 1.0], price_weight=1.0) == 1
    assert best_for_its_price([1.0, 0.9], [10.0, 1.0], price_weight=0.0) == 0
    assert best_for_its_price([2.0, -4.0], [10.0, 1.0], price_weight=1.0) == 0
    # However sure the density is, improvement is at most 1 / gamma.
    assert best_for_its_price([600.0, 3.0], [100.0, 1.0], price_weight=1.0) == 1


def test_the_price_counts_less_and_less() -> None:
    assert [cooled_price_weight(spent, 8.0) for spent in (0, 2, 8, 9)] == [1.0, 0.75, 0.0, 0.0]
    with pytest.raises(ValueError, match="budget 0 is not above 0"):
        cooled_price_weight(0, 0)


@pytest.mark.parametrize(("scores", "costs"), [([], []), ([1.0], []), ([1.0], [0.0]), ([1.0, 2.0], [1.0])])
def test_candidates_need_a_price(scores: list[float], costs: list[float]) -> None:
    with pytest.raises(ValueError, match="give each a cost above 0"):
        best_for_its_price(scores, costs, price_weight=1.0)


def test_the_arithmetic_needs_neither_torch_nor_optuna() -> None:
    code = "import sys, search_spaces.storing\nprint({'torch', 'numpy', 'optuna', 'ray'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
