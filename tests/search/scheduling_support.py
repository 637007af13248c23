"""A loop that calls a scheduler which lets trials wait as Ray Tune's controller does, and writes a journal.

It follows `TuneController` of Ray 2.60: a scheduler is asked which waiting trial goes on, and a waiting trial that is
stopped is removed. Trials train one epoch each in turn. Breaking off at any moment loses all but the journal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from trainables.lanes.trial import EPOCH
from tuner.records.journal import Record, trials_of
from tuner.search.searching import NUMBER

METRIC = "val/accuracy"


class FakeTrial(SimpleNamespace):
    """What a scheduler sees of Tune's trial."""

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


@dataclass
class FakeTune:
    """A search under a scheduler.

    Attributes:
        build: The scheduler, of the journal.
        value: The metric, of a trial's number and epoch.
        num_trials: In all.
        lanes: How many trials run side by side.
        epochs: Of a whole trial.
        reason: Why the scheduler stops trials.
        failing: Trials that end in their second epoch.
        heads: Trials that the scheduler spares.
    """

    build: Callable[[list[Record]], Any]
    value: Callable[[int, int], float]
    num_trials: int = 20
    lanes: int = 1
    epochs: int = 8
    reason: str = "stopped"
    failing: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    records: list[Record] = field(default_factory=list)

    def start(self) -> FakeTune:
        self.records.append({"event": "search"})
        self.scheduler = self.build(self.records)
        for number in getattr(self.scheduler, "overdue", ()):
            self.end(number, "stopped_early", "decided before the interruption")
        self.scheduler = self.build(self.records)
        if hasattr(self.scheduler, "settle"):
            self.scheduler.settle()
            self.scheduler = self.build(self.records)
        known = trials_of(self.records)
        self.known_params = {trial.number: trial.params for trial in known}
        # What was open goes on first; a searcher hands it out so.
        self.waiting = [trial.number for trial in known if trial.outcome is None]
        self.waiting += range(len(known), self.num_trials)
        self.done = {trial.number: len(trial.epochs) for trial in known}
        self.reported = {number: max(0, num - 1) for number, num in self.done.items()}
        self.trials: list[Any] = []
        self.paused: set[Any] = set()
        self.search_alg = SimpleNamespace(
            searcher=SimpleNamespace(on_pause=self.paused.add, on_unpause=self.paused.discard)
        )
        self.turn: list[Any] = []
        return self

    def get_trials(self) -> list[Any]:
        return self.trials

    def params(self, number: int) -> dict[str, Any]:
        return self.known_params.get(number) or self.first_params(number)

    def first_params(self, number: int) -> dict[str, Any]:
        return {"freeze_depth": 6 if number in self.heads else 1}

    def live(self) -> list[Any]:
        return [trial for trial in self.trials if trial.status not in (Trial.TERMINATED, Trial.ERROR)]

    def step(self) -> bool:
        """One epoch of one trial; False when all is done."""
        while self.waiting and len(self.live()) - len(self.paused) < self.lanes:
            number = self.waiting.pop(0)
            trial = FakeTrial(
                trial_id=f"id{number}", status=Trial.PENDING, is_saving=False,
                config={NUMBER: number, "params": self.params(number)},
            )  # fmt: skip
            self.trials.append(trial)
            self.scheduler.on_trial_add(self, trial)
        while (chosen := self.scheduler.choose_trial_to_run(self)) is not None:
            assert len(self.turn) < self.lanes, "Tune would start an actor that waits for a lane"
            assert chosen.status in (Trial.PENDING, Trial.PAUSED)
            chosen.status = Trial.RUNNING
            self.records.append({"event": "trial", "number": chosen.config[NUMBER], "params": chosen.config["params"]})
            self.turn.append(chosen)
        if not self.turn:
            assert not self.live(), "nothing runs, and trials wait for ever"
            return False
        self.train(self.turn.pop(0))
        return True

    def train(self, trial: Any) -> None:
        number = trial.config[NUMBER]
        epoch = self.reported[number] = self.reported.get(number, 0) + 1
        result = {METRIC: self.value(number, epoch), EPOCH: epoch}
        outcome = "completed" if epoch == self.epochs else "failed" if number in self.failing and epoch == 2 else None
        decision = TrialScheduler.STOP if outcome else self.scheduler.on_trial_result(self, trial, dict(result))
        if epoch > self.done.get(number, 0):
            self.done[number] = epoch
            self.records.append(
                {"event": "epoch", "number": number, "epoch": epoch, "metrics": {METRIC: result[METRIC]}}
            )
        if decision == TrialScheduler.CONTINUE:
            self.turn.append(trial)
        elif decision == TrialScheduler.PAUSE:
            trial.status = Trial.PAUSED
        else:
            self.scheduler.on_trial_complete(self, trial, result)
            self.finish(trial, outcome)

    def stop_trial(self, trial: Any) -> None:
        assert trial.status == Trial.PAUSED
        self.scheduler.on_trial_remove(self, trial)
        self.finish(trial, None)

    def finish(self, trial: Any, outcome: str | None) -> None:
        trial.status = Trial.TERMINATED
        self.paused.discard(trial.trial_id)
        self.end(trial.config[NUMBER], outcome or "stopped_early", None if outcome else self.reason)

    def end(self, number: int, outcome: str, reason: str | None) -> None:
        self.records.append({"event": "end", "number": number, "outcome": outcome, "reason": reason})

    def run(self, steps: int = 10_000) -> FakeTune:
        for _ in range(steps):
            if not self.step():
                break
        return self

    def fates(self) -> dict[int, tuple[str | None, int]]:
        """How each trial ended, and after how many epochs."""
        return {trial.number: (trial.outcome, len(trial.epochs)) for trial in trials_of(self.records)}
