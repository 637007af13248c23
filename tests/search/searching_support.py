"""A loop that calls the searcher and the scheduler as Ray Tune's controller does, broken off at any moment.

It follows `TuneController._process_trial_result` and `stop_trial` of Ray 2.60: a result that ends a trial goes to
`on_trial_complete` only, after the scheduler.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from search_spaces.search_spec import SearchSpec
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from trainables.lanes.trial import EPOCH, OUTCOME
from tuner.networks.material import Material
from tuner.networks.pricing import Pricing
from tuner.records.journal import TrialRecord
from tuner.search.asha import ResumableASHA
from tuner.search.searching import NUMBER, StudySearcher

METRIC = "val/accuracy"
EPOCHS = 8
NUM_TRIALS = 20
SPACE = SearchSpace(SearchSpec(), num_stages=6)
PRICING = Pricing(
    SweepSpec.model_validate({"name": "a", "data": {"source": "x"}, "model": {"backbone": "b"}}),
    SPACE,
    Material((10**7,) * 6, 10**3, (10**4,) * 6, num_train=100, num_val=20),
)


def curve(point, epoch):
    """A made-up accuracy: best near depth 4 and a rate of 3e-3, rising with the epochs."""
    distance = abs(point["freeze_depth"] - 4) / 6 + abs(math.log10(point["lr"] / 3e-3)) / 2
    policy = {"none": 0.1, "flip": 0.0, "flip_crop": 0.02, "randaugment": 0.2}[point["augmentation"]]
    return round(0.95 - 0.3 * distance - policy - 0.5 * math.exp(-epoch * point["lr"] * 300), 6)


@dataclass
class Loop:
    """A sweep: the searcher, the scheduler, the trials that run, and what a journal would hold."""

    concurrency: int = 1
    mode: str = "max"
    scheduled: bool = True
    diverging: tuple[int, ...] = ()
    failing: tuple[int, ...] = ()
    num_trials: int | None = NUM_TRIALS
    space: SearchSpace = SPACE
    options: dict = field(default_factory=dict)
    records: dict[int, TrialRecord] = field(default_factory=dict)
    order: list = field(default_factory=list)
    ids: itertools.count = field(default_factory=itertools.count)
    space: SearchSpace = SPACE

    def journal(self):
        """As a driver writes it: which trial, each epoch in its turn, and how a trial ended."""
        begun = [{"event": "trial", "number": n, "params": record.params} for n, record in self.records.items()]
        epochs = [
            {
                "event": "epoch",
                "number": n,
                "epoch": epoch,
                "metrics": {METRIC: self.records[n].epochs[epoch - 1][METRIC]},
            }
            for n, epoch in self.order
            if n in self.records and epoch <= len(self.records[n].epochs)
        ]
        ends = [
            {"event": "end", "number": n, "outcome": record.outcome}
            for n, record in self.records.items()
            if record.outcome
        ]
        return begun + epochs + ends

    def start(self):
        self.order = self.order if self.records else []
        history = [self.records[number] for number in sorted(self.records)]
        self.searcher = StudySearcher(
            self.space,
            metric=METRIC,
            mode=self.mode,
            num_trials=self.num_trials,
            max_concurrent=self.concurrency,
            seed=0,
            history=history,
            make_config=lambda number, point: {"point": point},
            **self.options,
        )
        self.asha = ResumableASHA(
            metric=METRIC, mode=self.mode, max_epochs=EPOCHS, grace_period=1, reduction_factor=3, records=self.journal()
        )
        self.running = []
        return self

    def fill(self):
        """Asks for trials until the searcher has none."""
        while True:
            trial_id = f"id{next(self.ids)}"
            config = self.searcher.suggest(trial_id)
            if config is None or config == Searcher.FINISHED:
                return
            trial = SimpleNamespace(trial_id=trial_id, config=config, last_result={})
            number = config[NUMBER]
            self.records.setdefault(number, TrialRecord(number, config["point"]))
            self.asha.on_trial_add(None, trial)
            self.running.append(trial)

    def step(self):
        """One epoch of the trial that has waited longest; False when all is done."""
        self.fill()
        if not self.running:
            return False
        trial = self.running.pop(0)
        number = trial.config[NUMBER]
        record = self.records[number]
        epoch = len(record.epochs) + 1
        if number in self.failing and epoch == 2:
            self.asha.on_trial_error(None, trial)
            self.searcher.on_trial_complete(trial.trial_id, error=True)
            self.records[number] = replace(record, outcome="failed")
            return True
        outcome = "completed" if epoch == EPOCHS else None
        value = (1 if self.mode == "max" else -1) * curve(record.params, epoch)
        if number in self.diverging and epoch == 3:
            outcome, value = "diverged", math.nan
        result = {METRIC: value, EPOCH: epoch, OUTCOME: outcome, "done": bool(outcome)}
        decision = TrialScheduler.STOP if outcome else TrialScheduler.CONTINUE
        if self.scheduled and not outcome:
            decision = self.asha.on_trial_result(None, trial, result)
        record = replace(record, epochs=(*record.epochs, {"epoch": epoch, METRIC: value}))
        self.order.append((number, epoch))
        if decision == TrialScheduler.CONTINUE:
            self.searcher.on_trial_result(trial.trial_id, result)
            self.running.append(trial)
        else:
            if self.scheduled:
                self.asha.on_trial_complete(None, trial, result)
            self.searcher.on_trial_complete(trial.trial_id, result=result)
            record = replace(record, outcome=outcome or "stopped_early")
        self.records[number] = record
        return True

    def run(self, steps=10_000):
        for _ in range(steps):
            if not self.step():
                break
        return self


def told(searcher, states=tuple(TrialState)):
    """What the study holds, but for clocks."""
    return [
        (trial.number, trial.state, trial.value, trial.params, trial.distributions, trial.intermediate_values)
        for trial in searcher.study.get_trials()
        if trial.state in states
    ]


ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
