"""A stopped trial is worth its best epoch to the sampler, and what the study says of it stays."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from tuner.search.cma_es import BestEpochCmaEs
from tuner.search.sampling import BestEpochGP, BestEpochTPE, num_good

X = {"x": FloatDistribution(0.0, 1.0)}
XY = {**X, "y": FloatDistribution(1e-3, 1.0, log=True)}


def study_of(direction: str, stopped_at: float, stopped_values: dict[int, float]) -> optuna.Study:
    """Nine whole trials at x from 0 to 0.4, all mediocre, and one stopped."""
    study = optuna.create_study(direction=direction)
    for number in range(9):
        study.add_trial(create_trial(params={"x": number / 20}, distributions=X, value=0.5))
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED, params={"x": stopped_at}, distributions=X, intermediate_values=stopped_values
        )
    )
    return study


def proposals(study: optuna.Study, kind: type[optuna.samplers.BaseSampler], number: int = 20) -> list[float]:
    options = {} if issubclass(kind, optuna.samplers.GPSampler) else {"multivariate": True, "group": True}
    points = []
    for seed in range(number):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = kind(n_startup_trials=5, seed=seed, **options)
        trial = study.ask()
        points.append(trial.suggest_float("x", 0.0, 1.0))
        study.tell(trial, state=TrialState.FAIL)
    return points


@pytest.mark.parametrize(("direction", "best", "later"), [("maximize", 0.9, 0.4), ("minimize", 0.1, 0.6)])
def test_proposals_go_to_a_stopped_trial_that_was_the_best(direction: str, best: float, later: float) -> None:
    study = study_of(direction, 0.9, {1: 0.5, 2: best, 3: later})
    near = sum(abs(x - 0.9) < 0.25 for x in proposals(study, BestEpochTPE))
    assert near >= 15
    assert near > sum(abs(x - 0.9) < 0.25 for x in proposals(study, optuna.samplers.TPESampler))


def test_a_gaussian_process_goes_there_too() -> None:
    study = study_of("maximize", 0.9, {1: 0.5, 2: 0.9, 3: 0.4})
    near = sum(abs(x - 0.9) < 0.25 for x in proposals(study, BestEpochGP, 4))
    assert near >= 3
    assert near > sum(abs(x - 0.9) < 0.25 for x in proposals(study_of("maximize", 0.9, {1: 0.1}), BestEpochGP, 4))
    assert study.trials[9].state == TrialState.PRUNED


def test_proposals_keep_away_from_a_stopped_trial_that_was_the_worst() -> None:
    assert sum(abs(x - 0.9) < 0.1 for x in proposals(study_of("maximize", 0.9, {1: 0.1}), BestEpochTPE)) <= 4


def test_of_a_few_trials_several_are_good_and_of_many_few() -> None:
    assert [num_good(number) for number in (1, 9, 16, 100, 10_000)] == [1, 3, 3, 8, 25]


def test_the_study_keeps_what_it_was_told() -> None:
    study = study_of("maximize", 0.9, {1: 0.9})
    proposals(study, BestEpochTPE, 1)
    stopped = study.trials[9]
    assert (stopped.state, stopped.value, stopped.intermediate_values) == (TrialState.PRUNED, None, {1: 0.9})
    assert study.best_value == 0.5
    empty = study_of("maximize", 0.9, {})
    assert proposals(empty, BestEpochTPE, 1)


def test_an_evolution_that_is_told_anew_each_time_is_optunas() -> None:
    """Optuna keeps the state of its evolution in the study; here nothing of it is left from one trial to the next."""

    def points(make: Callable[[int], optuna.samplers.BaseSampler], *, forgets: bool) -> list[dict[str, float]]:
        study = optuna.create_study(direction="maximize")
        study.enqueue_trial({"x": 0.1, "y": 0.5})
        for number in range(40):
            study.sampler = make(number)
            trial = study.ask(XY)  # type: ignore[arg-type]
            value = -((trial.params["x"] - 0.8) ** 2) - (math.log10(trial.params["y"]) + 2.5) ** 2
            for epoch in (1, 2):
                trial.report(value - (0.1 if epoch == 1 else 0.0), epoch)
            study.tell(trial, value)
            if forgets:
                kept = study.trials
                study = optuna.create_study(direction="maximize")
                study.add_trials(
                    [create_trial(params=each.params, distributions=XY, value=each.value) for each in kept]
                )
        return [trial.params for trial in study.trials]

    ours = points(lambda number: BestEpochCmaEs(XY, 1, number), forgets=True)
    theirs = points(lambda number: optuna.samplers.CmaEsSampler(seed=number, popsize=6), forgets=False)
    assert ours == theirs
    late = [abs(point["x"] - 0.8) for point in ours[30:]]
    assert sum(late) / 10 < 0.15
