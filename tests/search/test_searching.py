"""The searcher and the scheduler under a loop as Tune's, broken off and begun anew at any moment."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from searching_support import ENDED, EPOCHS, METRIC, NUM_TRIALS, SPACE, Loop, told

from search_spaces.advice import rules_of_thumb
from trainables.errors import InputError
from trainables.lanes.trial import EPOCH, OUTCOME
from tuner.records.journal import TrialRecord
from tuner.search.searching import NUMBER


@pytest.fixture(scope="module")
def undisturbed():
    return Loop(diverging=(1,), failing=(7,)).start().run()


def test_a_sweep_hands_out_its_trials_once_each_and_then_finishes(undisturbed):
    assert [trial.number for trial in undisturbed.searcher.study.trials] == list(range(NUM_TRIALS))
    assert undisturbed.searcher.suggest("one more") == Searcher.FINISHED
    assert all(SPACE.contains(record.params) for record in undisturbed.records.values())


def test_the_first_trials_are_the_rules_of_thumb(undisturbed):
    rules = rules_of_thumb(SPACE)
    assert [trial.params for trial in undisturbed.searcher.study.trials[: len(rules)]] == rules


def test_optuna_is_told_how_each_trial_ended(undisturbed):
    trials = undisturbed.searcher.study.trials
    by_outcome = {record.outcome for record in undisturbed.records.values()}
    assert by_outcome == {"completed", "stopped_early", "diverged", "failed"}
    for number, record in undisturbed.records.items():
        trial = trials[number]
        values = {epoch["epoch"]: epoch[METRIC] for epoch in record.epochs if math.isfinite(epoch[METRIC])}
        assert trial.intermediate_values == values, "every epoch is told, the last one too, and NaN never"
        expected = {
            "completed": (TrialState.COMPLETE, max(values.values())),
            "stopped_early": (TrialState.PRUNED, values[max(values)]),
            "diverged": (TrialState.FAIL, None),
            "failed": (TrialState.FAIL, None),
        }[record.outcome]
        assert (trial.state, trial.value) == expected


@pytest.mark.parametrize("steps", range(0, 90, 6))
def test_a_sweep_that_is_broken_off_ends_like_one_that_is_not(undisturbed, steps):
    loop = Loop(diverging=(1,), failing=(7,)).start().run(steps)
    loop.start().run(9)
    loop.start().run()
    assert loop.records == undisturbed.records
    assert told(loop.searcher) == told(undisturbed.searcher)
    assert loop.asha.rungs() == undisturbed.asha.rungs()


@pytest.mark.parametrize("sampler", ["random", "gp", "cmaes"])
def test_other_samplers_propose_in_the_space_and_survive_interruptions_too(sampler, undisturbed):
    options = {"num_trials": 13, "options": {"sampler": sampler}}
    whole = Loop(**options).start().run()
    loop = Loop(**options).start().run(50)
    loop.start().run()
    assert loop.records == whole.records
    assert all(SPACE.contains(record.params) for record in whole.records.values())
    numbers = range(8, 13)
    assert [whole.records[number].params for number in range(8)] == [
        undisturbed.records[number].params for number in range(8)
    ], "the first trials are drawn before anybody proposes"
    assert [whole.records[number].params for number in numbers] != [
        undisturbed.records[number].params for number in numbers
    ]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_rebuilding_from_the_journal_gives_back_history_and_rungs_at_any_moment(mode):
    loop = Loop(concurrency=3, mode=mode, diverging=(4,), failing=(6,)).start()
    moments = 0
    while loop.step():
        again = replace(loop).start()
        assert told(again.searcher, ENDED) == told(loop.searcher, ENDED)
        assert again.asha.rungs() == loop.asha.rungs()
        moments += 1
    assert moments > 40
    assert min(len(recorded) for recorded in loop.asha.rungs().values()) >= 3


def test_a_stop_that_was_decided_but_not_recorded_is_made_good(undisturbed):
    stopped = [number for number, record in undisturbed.records.items() if record.outcome == "stopped_early"]
    for number in stopped[:3]:
        loop = Loop(diverging=(1,), failing=(7,)).start()
        while loop.records.get(number, TrialRecord(number, {})).outcome is None:
            loop.step()
        loop.records[number] = replace(loop.records[number], outcome=None)  # the driver died before writing it
        assert loop.start().asha.overdue == (number,)
        loop.records[number] = replace(loop.records[number], outcome="stopped_early")
        loop.start().run()
        assert loop.asha.overdue == ()
        assert told(loop.searcher) == told(undisturbed.searcher)
        assert loop.asha.rungs() == undisturbed.asha.rungs()


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_trial_that_passed_its_rung_is_not_overdue(concurrency):
    """Nor is one that others, which came to the rung after it, have left behind."""
    loop = Loop(concurrency=concurrency).start()
    for _ in range(60):
        loop.step()
        assert loop.running == [] or replace(loop).start().asha.overdue == ()


def test_interrupted_trials_go_on_first_under_their_numbers_and_points():
    loop = Loop(concurrency=3).start().run(8)
    interrupted = {number: record for number, record in loop.records.items() if record.outcome is None}
    assert len(interrupted) >= 2
    epochs_before = {number: len(record.epochs) for number, record in interrupted.items()}
    loop.start().fill()
    resumed = {trial.config[NUMBER]: trial.config["point"] for trial in loop.running[: len(interrupted)]}
    assert resumed == {number: record.params for number, record in interrupted.items()}
    running = {trial.number: trial for trial in loop.searcher.study.get_trials(states=(TrialState.RUNNING,))}
    assert {number: len(running[number].intermediate_values) for number in interrupted} == epochs_before


def test_a_number_whose_start_was_never_recorded_is_asked_anew():
    loop = Loop().start().run(60)
    lost = [max(loop.records) - 2, 1]
    for number in lost:
        del loop.records[number]
    loop.start().run()
    assert sorted(loop.records) == list(range(NUM_TRIALS))
    assert loop.searcher.study.trials[1].params == rules_of_thumb(SPACE)[1]


def test_more_trials_can_be_asked_of_a_finished_sweep():
    small, large = Loop(num_trials=12).start().run(), Loop(num_trials=NUM_TRIALS).start().run()
    extended = replace(small, num_trials=NUM_TRIALS).start().run()
    assert told(extended.searcher) == told(large.searcher)


def test_proposals_learn_from_the_trials_and_repeat_with_the_seed(undisturbed):
    again = Loop(diverging=(1,), failing=(7,)).start().run()
    assert told(again.searcher) == told(undisturbed.searcher)
    long = Loop(num_trials=60, scheduled=False).start().run()
    scores = [max(epoch[METRIC] for epoch in long.records[number].epochs) for number in range(60)]
    assert sum(scores[40:]) / 20 > sum(scores[3:13]) / 10 + 0.03
    assert len({str(record.params) for record in long.records.values()}) == 60


def test_no_more_trials_run_at_once_than_allowed():
    loop = Loop(concurrency=2).start()
    loop.fill()
    assert len(loop.running) == 2
    assert loop.searcher.suggest("third") is None
    limited = ConcurrencyLimiter(loop.searcher, max_concurrent=3)
    assert limited.suggest("third")[NUMBER] == 2
    assert limited.suggest("fourth") is None


def test_stop_ends_the_proposals_and_lets_running_trials_finish():
    loop = Loop(concurrency=2).start().run(5)
    loop.searcher.stop()
    before = set(loop.records)
    loop.run()
    assert set(loop.records) == before
    assert all(record.outcome for record in loop.records.values())


def test_an_epoch_that_a_restarted_trial_reports_again_changes_nothing():
    loop = Loop().start()
    loop.fill()
    trial = loop.running[0]
    results = [{METRIC: value, EPOCH: epoch} for epoch, value in ((1, 0.5), (2, 0.6), (1, 0.1), (2, 0.1), (3, 0.7))]
    for result in results:
        loop.asha.on_trial_result(None, trial, result)
        loop.searcher.on_trial_result(trial.trial_id, result)
    assert loop.searcher.study.trials[0].intermediate_values == {1: 0.5, 2: 0.6, 3: 0.7}
    assert loop.asha.rungs() == {3.0: {0: 0.7}, 1.0: {0: 0.5}}


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_value_that_is_not_finite_is_told_to_nobody(value):
    loop = Loop().start()
    loop.fill()
    trial = loop.running[0]
    result = {METRIC: value, EPOCH: 1}
    assert loop.asha.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
    loop.searcher.on_trial_result(trial.trial_id, result)
    assert loop.asha.rungs() == {3.0: {}, 1.0: {}}
    loop.asha.on_trial_complete(None, trial, result)
    loop.searcher.on_trial_complete(trial.trial_id, {**result, OUTCOME: "completed"})
    assert (loop.searcher.study.trials[0].state, loop.searcher.study.trials[0].intermediate_values) == (
        TrialState.FAIL,
        {},
    )


def test_a_trial_that_ends_before_its_first_epoch_is_pruned_without_a_value():
    loop = Loop().start()
    loop.fill()
    trial = loop.running[0]
    loop.asha.on_trial_remove(None, trial)
    loop.searcher.on_trial_complete(trial.trial_id)
    loop.searcher.on_trial_complete(trial.trial_id, error=True)  # Tune may say it twice
    assert told(loop.searcher, ENDED)[0][1:3] == (TrialState.PRUNED, None)


def test_asha_stops_what_is_below_the_best_third_of_a_rung():
    asha = Loop().start().asha
    trials = [SimpleNamespace(config={NUMBER: number}) for number in range(5)]
    decisions = []
    for trial, value in zip(trials, (0.5, 0.6, 0.4, 0.3, 0.7), strict=True):
        asha.on_trial_add(None, trial)
        decisions.append(asha.on_trial_result(None, trial, {METRIC: value, EPOCH: 1}))
    assert decisions == ["CONTINUE", "CONTINUE", "CONTINUE", "STOP", "CONTINUE"]
    assert asha.on_trial_result(None, trials[4], {METRIC: 0.1, EPOCH: 2}) == "CONTINUE", "between rungs nobody stops"
    assert asha.on_trial_result(None, trials[4], {METRIC: 0.1, EPOCH: EPOCHS}) == "STOP"


def test_a_history_of_another_space_is_refused():
    loop = Loop().start().run(10)
    loop.records[0] = replace(loop.records[0], params={**loop.records[0].params, "lr": 1.0})
    with pytest.raises(
        InputError, match=r"search: trial 0 .* is no point of this space; a sweep goes on with the spec"
    ):
        loop.start()


def test_tune_can_save_the_searcher_but_only_the_journal_restores_it(tmp_path):
    searcher = Loop().start().searcher
    searcher.save_to_dir(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="goes on from its journal"):
        searcher.restore(str(tmp_path / "searcher.pkl"))


def test_the_searcher_refuses_a_second_metric_or_space():
    searcher = Loop().start().searcher
    assert searcher.set_search_properties(None, None, {})
    assert not searcher.set_search_properties("loss", "min", {})
    assert not searcher.set_search_properties(None, None, {"lr": 1})


def test_constant_liar_counts_running_trials_only_where_trials_run_side_by_side():
    liars = {}
    for concurrency in (1, 2):
        loop = Loop(concurrency=concurrency).start()
        loop.fill()
        sampler = loop.searcher.study.sampler
        assert isinstance(sampler, optuna.samplers.TPESampler)
        liars[concurrency] = sampler._constant_liar
    assert liars == {1: False, 2: True}


def test_an_evolution_strategy_counts_stopped_and_failed_trials_and_survives_interruptions():
    loop = Loop(num_trials=40, diverging=(1, 30), failing=(7, 20), options={"sampler": "cmaes"}).start().run()
    broken = replace(loop, records={}).start().run(111)
    broken.start().run()
    assert broken.records == loop.records
