"""A population decides by its results alone: not by lanes, nor by when it was interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError
from scheduling_support import METRIC, FakeTune

from search_spaces.dimension import Dimension
from search_spaces.perturbing import perturbed_dimensions, trains_heads_alone
from search_spaces.search_spec import SearchSpec
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from trainables.lanes.trial import EPOCH
from tuner.records.journal import Ancestor, trials_of
from tuner.search.members import Move
from tuner.search.population import ResumablePBT
from tuner.search.scheduling import build_scheduler
from tuner.tracking.projection import plan

HEAD_ONLY = 6
LRS = Dimension(low=1e-4, high=1e-1, log=True)
DECAYS = Dimension(choices=(0.0, 0.01, 0.1))
MAGNITUDES = Dimension(low=3, high=15, is_integer=True)


@dataclass
class Population(FakeTune):
    """A search whose trials have weights: the rates that these were trained with, epoch by epoch.

    Weights outlive an interruption, as checkpoints do.
    """

    weights: dict[int, list[float]] = field(default_factory=dict)
    build: Any = None
    value: Any = None
    num_trials: int = 8

    def __post_init__(self) -> None:
        self.build = self.scheduler_of
        self.value = self.score

    def scheduler_of(self, records: Any) -> ResumablePBT:
        return ResumablePBT(
            metric=METRIC,
            mode="max",
            population=self.num_trials,
            interval=2,
            quantile_fraction=0.25,
            resample_probability=0.25,
            mutations={"lr": LRS, "weight_decay": DECAYS, "magnitude": MAGNITUDES},
            seed=3,
            exchange=self.exchange,
            make_config=lambda number, params, epoch: {"params": params},
            records=records,
            is_exempt=lambda params: params["freeze_depth"] == HEAD_ONLY,
            num_lanes=self.lanes,
        )

    def exchange(self, epoch: int, moves: Sequence[Move]) -> Sequence[Move]:
        for move in moves:
            assert len(self.weights[move.donor]) >= epoch, "the donor waits for the exchange"
            self.weights[move.number] = self.weights[move.donor][:epoch]
        self.records.append({"event": "exchange", "epoch": epoch, "moves": [asdict(move) for move in moves]})
        return moves

    def first_params(self, number: int) -> dict[str, Any]:
        params = {"freeze_depth": 1 + number % 2, "lr": 1e-4 * 2**number, "weight_decay": 0.01}
        if number in self.heads:
            params["freeze_depth"] = HEAD_ONLY
        return {**params, "magnitude": 9} if number % 3 == 0 else params

    def score(self, number: int, epoch: int) -> float:
        weights = self.weights.setdefault(number, [])
        if len(weights) < epoch:
            trial = next(trial for trial in self.trials if trial.config["number"] == number)
            weights.append(trial.config["params"]["lr"])
        return round(sum(1 - abs(rate - 3e-3) * 10 for rate in weights[:epoch]) / 10, 9)

    def story(self) -> list[Any]:
        """All that must not depend on lanes and interruptions."""
        exchanges = [record for record in self.records if record["event"] == "exchange"]
        return [self.fates(), self.weights, exchanges, [(t.params, t.lineage) for t in trials_of(self.records)]]


def test_it_decides_the_same_on_any_number_of_lanes_and_broken_off_at_any_moment() -> None:
    whole = Population(failing=(6,), heads=(2,)).start().run()
    assert whole.fates() == {**dict.fromkeys(range(8), ("completed", 8)), 6: ("failed", 2)}
    exchanges = [record for record in whole.records if record["event"] == "exchange"]
    assert [record["epoch"] for record in exchanges] == [2, 4, 6], "there is none after the last epoch"
    assert all(len(record["moves"]) == 2 for record in exchanges), "a quarter of six, rounded up"
    assert 2 not in {n for record in exchanges for move in record["moves"] for n in (move["number"], move["donor"])}
    assert Population(failing=(6,), heads=(2,), lanes=3).start().run().story() == whole.story()
    assert Population(failing=(6,), heads=(2,), lanes=8).start().run().story() == whole.story()
    num_steps = sum(record["event"] == "epoch" for record in whole.records)
    for lanes in (1, 3):
        for steps in range(1, num_steps):
            broken = Population(failing=(6,), heads=(2,), lanes=lanes).start().run(steps)
            broken.start().run(3)
            assert broken.start().run().story() == whole.story(), (lanes, steps)


def test_an_exchange_that_was_cut_off_before_the_journal_had_it_is_made_before_anything_runs() -> None:
    whole = Population().start().run()
    place = next(index for index, record in enumerate(whole.records) if record["event"] == "exchange")
    rates = {r["number"]: r["params"]["lr"] for r in whole.records[:place] if r["event"] == "trial"}
    cut = Population(records=whole.records[:place], weights={number: [rate] * 2 for number, rate in rates.items()})
    cut.start()
    assert cut.records[-1] == whole.records[place]
    assert cut.run().story() == whole.story()


def test_settings_stay_in_their_ranges_and_the_rest_is_the_donors() -> None:
    whole = Population(num_trials=12, epochs=20).start().run()
    moves = [move for record in whole.records if record["event"] == "exchange" for move in record["moves"]]
    trials = {number: [Population().first_params(number)] for number in range(12)}
    for move in moves:
        given, taken = trials[move["donor"]][-1], move["params"]
        assert set(taken) == set(given)
        assert taken["freeze_depth"] == given["freeze_depth"]
        assert taken["lr"] in LRS
        assert taken["weight_decay"] in DECAYS
        assert taken.get("magnitude", 9) in MAGNITUDES
        assert move["before"] == trials[move["number"]][-1]
        trials[move["number"]].append(taken)
    rates = [move["params"]["lr"] / trials[move["donor"]][0]["lr"] for move in moves]
    assert any(rate == pytest.approx(1.2) or rate == pytest.approx(0.8) for rate in rates), "Tune's factors"
    assert len({move["params"]["lr"] for move in moves}) > len(moves) / 2


def test_the_search_ends_while_members_wait() -> None:
    tune = Population().start().run(3)
    tune.scheduler._is_ending = lambda: True
    tune.waiting.clear()
    tune.turn.clear()
    tune.trials = [trial for trial in tune.trials if trial.status == "PAUSED"]
    assert tune.trials
    assert tune.scheduler.choose_trial_to_run(tune) is None
    assert not tune.live()


def test_a_trial_that_took_over_has_the_scores_of_its_weights_and_its_own_costs() -> None:
    def epoch(number: int, value: float, seconds: float) -> dict[str, Any]:
        return {"event": "epoch", "number": number, "epoch": 1, "metrics": {METRIC: value, "time/train_s": seconds}}

    moves = [{"number": 1, "donor": 0, "params": {"lr": 0.12}, "before": {"lr": 0.9}}]
    records = [
        {"event": "trial", "number": 0, "params": {"lr": 0.1}},
        {"event": "trial", "number": 1, "params": {"lr": 0.9}},
        epoch(0, 0.8, 3.0),
        epoch(1, 0.95, 5.0),
        {"event": "exchange", "epoch": 1, "moves": moves},
        {"event": "epoch", "number": 1, "epoch": 2, "metrics": {METRIC: 0.9}},
    ]
    _, taker = trials_of(records)
    assert taker.params == {"lr": 0.12}
    assert taker.lineage == (Ancestor(0, 1, {"lr": 0.1}),)
    assert taker.epochs == ({METRIC: 0.8, "time/train_s": 5.0, "epoch": 1}, {METRIC: 0.9, "epoch": 2})
    (update,) = [each for each in plan([{**r, "time": 1.0} for r in records], {}, "s")[0] if each.key == "1"]
    schedule = [(point.step, point.value) for point in update.metrics if point.name == "schedule/lr"]
    assert schedule == [(1, 0.9), (2, 0.12)]
    assert update.params == {"lr": "0.9"}
    assert update.tags["thaw.taken_over.0001"] == "trial 0; lr 0.9 -> 0.12"


def spec_of(search: dict[str, Any] | None = None, epochs: int = 8, **early: Any) -> SweepSpec:
    settings = {"scheduler": "pbt", **early}
    return SweepSpec.model_validate(
        {
            "name": "a",
            "data": {"source": "x"},
            "model": {"backbone": "b"},
            "search": search or {},
            "budget": {"epochs": epochs},
            "early_stopping": settings,
        }
    )


def test_the_spec_names_a_population() -> None:
    space = SearchSpace(SearchSpec(), num_stages=HEAD_ONLY)
    spec = spec_of(population={"perturbation_interval": 3})
    scheduler = build_scheduler(spec, space, [{"event": "trial", "number": 0, "params": {"freeze_depth": HEAD_ONLY}}])
    assert isinstance(scheduler, ResumablePBT)
    assert scheduler._perturbation_interval == 3
    assert not scheduler.members(), "one that trains the head alone is none"
    assert spec.most_trials == 16
    assert spec_of({"num_trials": 5}).most_trials == 5
    assert set(perturbed_dimensions(space)) >= {"lr", "weight_decay", "magnitude"}
    assert "layer_decay" not in perturbed_dimensions(space), "it has one value by default"
    assert not trains_heads_alone(space)
    assert trains_heads_alone(SearchSpace(SearchSpec(freeze_depth="all"), num_stages=HEAD_ONLY))


FIXED = {
    "lr": 0.1, "backbone_lr_ratio": 0.1, "weight_decay": 0.0, "grad_clip_norm": None, "label_smoothing": 0.0,
    "augmentation": "flip",
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"search": {"sampler": "gp"}}, "search.sampler: gp has no say"),
        ({"search": {"sampler": "brute_force", **FIXED}}, "search.sampler: brute_force has no say"),
        ({"search": {"cost_aware": True}}, "search.cost_aware: nothing is proposed"),
        ({"search": {"num_trials": 1}}, "search.num_trials: one trial has nobody"),
        ({"search": FIXED}, "early_stopping.scheduler: pbt changes lr, .* give one a range"),
        ({"epochs": 2}, "population.perturbation_interval: 2 is not less than the 2 of budget.epochs"),
        ({"patience": 3}, "early_stopping.patience: pbt does not use it"),
        ({"grace_period": 3}, "early_stopping.grace_period: pbt does not use it"),
        (
            {"scheduler": "asha", "population": {"quantile_fraction": 0.5}},
            "early_stopping.population: only the scheduler pbt has one",
        ),
    ],
)
def test_what_a_population_cannot_be_combined_with_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec_of(**settings)


def test_epochs_that_are_said_again_are_not_new() -> None:
    tune = Population().start().run(2)
    member = tune.scheduler.members()[0]
    trial = next(trial for trial in tune.trials if trial.config["number"] == 0)
    tune.scheduler.on_trial_result(tune, trial, {METRIC: 0.0, EPOCH: 1})
    assert tune.scheduler.members()[0] == member
