"""Schedulers filled from the journal decide as one that was never interrupted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from pydantic import ValidationError
from ray.tune.search import Searcher
from scheduling_support import METRIC, FakeTune
from searching_support import Loop

from search_spaces.search_spec import SearchSpec
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from trainables.lanes.trial import EPOCH, OUTCOME
from tuner.search.hyperband import HYPERBAND_STOPPED, ResumableHyperBand
from tuner.search.median import ResumableMedian
from tuner.search.scheduling import STOP_REASONS, build_scheduler
from tuner.search.searching import NUMBER

HEAD_ONLY = 6


def value(number: int, epoch: int) -> float:
    """Better with the epochs, and by number in no order."""
    return round(0.5 + 0.4 * ((number * 7) % 20) / 20 + 0.01 * epoch, 6)


def is_head(params: Any) -> bool:
    return bool(params["freeze_depth"] == HEAD_ONLY)


def hyperband(records: Any, lanes: int = 1) -> ResumableHyperBand:
    return ResumableHyperBand(
        metric=METRIC,
        mode="max",
        max_epochs=8,
        reduction_factor=3,
        records=records,
        is_exempt=is_head,
        num_lanes=lanes,
    )


def median(records: Any, mode: Literal["max", "min"] = "max") -> ResumableMedian:
    return ResumableMedian(metric=METRIC, mode=mode, grace_period=2, records=records, is_exempt=is_head)


def search(build: Any, lanes: int = 1) -> FakeTune:
    reason = HYPERBAND_STOPPED if build is hyperband else "stopped"
    build = partial(build, lanes=lanes) if build is hyperband else build
    return FakeTune(build, value, lanes=lanes, reason=reason, failing=(3, 12), heads=(5, 6, 14))


@pytest.mark.parametrize("build", [hyperband, median])
@pytest.mark.parametrize("lanes", [1, 3])
def test_rebuilt_from_the_journal_at_any_moment_it_decides_the_same_about_the_same_results(
    build: Any, lanes: int
) -> None:
    whole = search(build, lanes).start().run()
    fates = whole.fates()
    assert Counter(outcome for outcome, _ in fates.values())["stopped_early"] >= 3
    num_epochs = sum(record["event"] == "epoch" for record in whole.records)
    for steps in range(1, num_epochs, 3):
        broken = search(build, lanes).start().run(steps)
        broken.start().run(5)
        broken.start().run()
        if lanes == 1:
            assert broken.fates() == fates, steps
        else:  # which trials run side by side differs, and so what is known when one is judged; all come to an end
            assert set(broken.fates()) == set(fates)
            assert all(outcome for outcome, _ in broken.fates().values())


def test_hyperband_fills_brackets_lets_their_trials_wait_and_takes_the_best_to_the_end() -> None:
    tune = replace(search(hyperband), failing=(), heads=(), num_trials=8).start()
    tune.run(8)
    # Of 8 epochs with a factor of 3: a bracket of five trials with a rung at 2, and one of three whole trials.
    assert [trial.status for trial in tune.trials] == ["PAUSED"] * 4
    assert tune.scheduler.brackets() == [(2, {0: 2, 1: 2, 2: 2, 3: 2})]
    tune.run()
    best = sorted(range(5), key=lambda number: value(number, 2))[-2:]
    assert tune.fates() == {
        **dict.fromkeys(range(5), ("stopped_early", 2)),
        **dict.fromkeys([*best, 5, 6, 7], ("completed", 8)),
    }


def test_a_trial_that_fails_does_not_let_its_bracket_wait() -> None:
    tune = replace(search(hyperband), failing=(4,), heads=(), num_trials=30).start()
    tune.run(10)
    # The last of the bracket fails in its second epoch, and of the four others the better two go on at once.
    best = sorted(range(4), key=lambda number: value(number, 2))[-2:]
    fates = tune.fates()
    assert fates.pop(4) == ("failed", 2)
    assert fates == {number: (None if number in best else "stopped_early", 2) for number in range(4)}


def test_hyperband_lets_waiting_trials_end_when_the_search_does() -> None:
    is_ending = False
    tune = search(lambda records: ResumableHyperBand(
        metric=METRIC, mode="max", max_epochs=8, reduction_factor=3, records=records, is_ending=lambda: is_ending
    ))  # fmt: skip
    tune.start().run(6)
    is_ending = True
    tune.waiting.clear()
    tune.turn.clear()
    tune.trials = [trial for trial in tune.trials if trial.status == "PAUSED"]
    assert tune.trials
    assert tune.scheduler.choose_trial_to_run(tune) is None
    assert not tune.live()


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_median_of_the_others_means_decides(mode: Literal["max", "min"]) -> None:
    scheduler, sign = median((), mode), 1 if mode == "max" else -1

    def tell(number: int, depth: int, *values: float) -> list[str]:
        trial = SimpleNamespace(config={NUMBER: number, "params": {"freeze_depth": depth}})
        results = [{METRIC: sign * each, EPOCH: epoch} for epoch, each in enumerate(values, start=1)]
        return [scheduler.on_trial_result(None, trial, result) for result in results]

    for number, level in enumerate((0.5, 0.6, 0.7)):
        assert tell(number, 1, level, level, level) == ["CONTINUE"] * 3
    assert tell(3, HEAD_ONLY, 0.1, 0.1, 0.1) == ["CONTINUE"] * 3, "heads neither stop"
    assert tell(4, HEAD_ONLY, 0.99, 0.99) == ["CONTINUE"] * 2, "nor do they count"
    assert tell(5, 1, 0.1, 0.65, 0.1) == ["CONTINUE"] * 3, "the best epoch counts, after the grace period"
    assert tell(6, 1, 0.1, 0.55) == ["CONTINUE", "STOP"]
    assert tell(6, 1, 0.1, 0.55) == ["CONTINUE"] * 2, "an epoch that is told again decides nothing"


def test_the_spec_names_the_scheduler_and_contradicts_what_it_does_not_use() -> None:
    def spec(**early: Any) -> SweepSpec:
        settings = {"name": "a", "data": {"source": "x"}, "model": {"backbone": "b"}, "early_stopping": early}
        return SweepSpec.model_validate(settings)

    space = SearchSpace(SearchSpec(), num_stages=HEAD_ONLY)
    names = {name: type(build_scheduler(spec(scheduler=name), space, [])).__name__ for name in STOP_REASONS}
    assert names == {
        "asha": "ResumableASHA",
        "median": "ResumableMedian",
        "hyperband": "ResumableHyperBand",
        "pbt": "ResumablePBT",
        "none": "FIFOScheduler",
    }
    for scheduler, field in (("hyperband", "grace_period"), ("median", "reduction_factor")):
        with pytest.raises(ValidationError, match=f"early_stopping.{field}: {scheduler} does not use it"):
            spec(scheduler=scheduler, **{field: 4})


def test_a_trial_that_waits_gives_its_place_away_and_keeps_the_search_open() -> None:
    searcher = Loop(num_trials=2).start().searcher
    assert searcher.suggest("a")[NUMBER] == 0
    assert searcher.suggest("b") is None
    searcher.on_pause("a")
    assert searcher.suggest("b")[NUMBER] == 1
    assert searcher.suggest("c") is None, "or Tune would keep no actor for the one that waits"
    searcher.on_trial_complete("b", {OUTCOME: "completed", EPOCH: 8, METRIC: 0.5})
    searcher.on_unpause("a")
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("a", {OUTCOME: "completed", EPOCH: 8, METRIC: 0.6})
    assert searcher.suggest("c") == Searcher.FINISHED
