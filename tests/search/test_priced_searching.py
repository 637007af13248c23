"""A searcher that knows what trials cost, and one that no number of trials ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ray.tune.search import Searcher
from searching_support import EPOCHS, NUM_TRIALS, PRICING, Loop, told

from tuner.search.cost_aware import Cooling
from tuner.search.searching import COST

OPTIONS = {
    "first_points": [{"freeze_depth": 0, "lr": 0.001}, {"freeze_depth": 5}],
    "pricing": PRICING,
    "cooling": Cooling(num_trials=NUM_TRIALS, flops=1e13),
}


@pytest.fixture(scope="module")
def priced():
    return Loop(diverging=(1,), failing=(7,), options=OPTIONS).start().run()


def test_startup_trials_run_cheapest_first(priced):
    points = [priced.records[number].params for number in range(8)]
    costs = [PRICING.cost(point).total for point in points]
    assert costs == sorted(costs)
    assert any(point["freeze_depth"] == 0 and point["lr"] == 0.001 for point in points)
    assert any(point["freeze_depth"] == 5 for point in points)
    # The same trials in another order: the price proposes nothing before TPE does.
    plain = Loop(options={"first_points": OPTIONS["first_points"]}).start()
    plain.run()
    unsorted = [plain.records[number].params for number in range(8)]
    assert sorted(map(str, unsorted)) == sorted(map(str, points))
    assert unsorted != points


@pytest.mark.parametrize("steps", range(3, 90, 9))
def test_a_priced_sweep_that_is_broken_off_ends_like_one_that_is_not(priced, steps):
    loop = Loop(diverging=(1,), failing=(7,), options=OPTIONS).start().run(steps)
    loop.start().run(7)
    loop.start().run()
    assert loop.records == priced.records
    assert told(loop.searcher) == told(priced.searcher)


def test_the_price_changes_what_is_proposed(priced):
    plain = Loop(diverging=(1,), failing=(7,), options={**OPTIONS, "cooling": None}).start().run()
    first_of_both = [[loop.records[number].params for number in range(8)] for loop in (plain, priced)]
    assert first_of_both[0] == first_of_both[1]
    assert plain.records != priced.records


def test_a_trial_carries_its_price_given_the_trials_before():
    loop = Loop(options=OPTIONS).start()
    loop.fill()
    first = loop.running[0].config
    assert first[COST] == PRICING.figures(first["point"], [])
    loop.run(EPOCHS)
    loop.fill()
    second = loop.running[0].config
    assert [looked.epochs for looked in loop.searcher.looked()] == [len(loop.records[0].epochs), 0]
    assert second[COST] == PRICING.figures(second["point"], loop.searcher.looked()[:1])
    assert COST not in Loop().start().searcher.suggest("without prices")


def test_without_a_number_trials_come_until_they_are_stopped():
    loop = Loop(num_trials=None).start().run(300)
    assert len(loop.records) > NUM_TRIALS
    loop.searcher.stop()
    loop.run()
    assert loop.searcher.suggest("one more") == Searcher.FINISHED


def test_without_a_number_a_sweep_of_failures_alone_ends():
    failing = Loop(num_trials=None, scheduled=False, failing=tuple(range(2, 100))).start().run(200)
    assert sorted(failing.records) == list(range(12))
    again = replace(failing).start()
    assert again.searcher.suggest("one more") == Searcher.FINISHED


@pytest.mark.parametrize("few", [1, 3, 4, 7])
def test_a_short_sweep_that_is_made_longer_tries_nothing_twice(few):
    whole = Loop(num_trials=8, scheduled=False, options=OPTIONS).start().run()
    short = Loop(num_trials=few, scheduled=False, options=OPTIONS).start().run()
    longer = replace(short, num_trials=8).start().run(12)
    longer.start().run()  # broken off on the way
    points = [str(longer.records[number].params) for number in range(8)]
    assert points[:few] == [str(short.records[number].params) for number in range(few)]
    assert sorted(points) == sorted(str(whole.records[number].params) for number in range(8))
    costs = [PRICING.cost(longer.records[number].params).total for number in range(few, 8)]
    assert costs == sorted(costs)
