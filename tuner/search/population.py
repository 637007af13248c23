"""Ray Tune's population-based training over warm lanes, filled from the journal.

In: what Tune reports, and the journal's records. Out: decisions to let members wait and to go on, and who takes over
whose weights and settings.

Of Tune's two kinds it is the synchronous one: all members train so many epochs, in turns where there are fewer lanes,
and then the poor ones take over from the good ones. So what happens depends on the results and the seed alone, not on
who was faster: a sweep that was interrupted, or has other lanes, decides the same. Tune's class holds stand-ins of the
members, by their numbers, because Tune's trials do not outlive the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from search_spaces.dimension import Dimension
from trainables.lanes.trial import EPOCH
from tuner.records.journal import Record
from tuner.search.members import Member, Move, Seen, drawn, seeded
from tuner.search.searching import NUMBER, Mode
from tuner.search.startup import seed_of


class ResumablePBT(PopulationBasedTraining):
    """Population-based training (Jaderberg et al. 2017) that an interruption does not make forget.

    Args:
        metric: The result's key to go by.
        mode: Whether a good trial has a small or a large metric.
        population: How many trials there are; those that are spared, and those that have ended, count.
        interval: Epochs from one exchange to the next.
        quantile_fraction: The worst of this share take over from the best of it.
        resample_probability: How often a setting is drawn anew instead of being moved a little.
        mutations: The values of the settings that change.
        seed: Of who takes over from whom, and of the changes.
        exchange: Moves the weights; called with the epoch and the moves, returns those that it has made.
        make_config: Tune's configuration of a trial that took over, of its number, its point and the epoch.
        records: The journal.
        is_exempt: See `tuner.search.asha.ResumableASHA`.
        is_ending: Whether the search is to end: then waiting members end too.
        num_lanes: How many members train side by side; the others wait. None: any number.
    """

    _trial_state: dict[Any, Any]

    def __init__(
        self,
        *,
        metric: str,
        mode: Mode,
        population: int,
        interval: int,
        quantile_fraction: float,
        resample_probability: float,
        mutations: Mapping[str, Dimension],
        seed: int,
        exchange: Callable[[int, Sequence[Move]], Sequence[Move]],
        make_config: Callable[[int, dict[str, Any], int], dict[str, Any]],
        records: Sequence[Record] = (),
        is_exempt: Callable[[Mapping[str, Any]], bool] | None = None,
        is_ending: Callable[[], bool] = lambda: False,
        num_lanes: int | None = None,
    ) -> None:
        super().__init__(
            time_attr=EPOCH,
            metric=metric,
            mode=mode,
            perturbation_interval=interval,
            hyperparam_mutations={name: drawn(dimension) for name, dimension in mutations.items()},
            quantile_fraction=quantile_fraction,
            resample_probability=resample_probability,
            custom_explore_fn=self._within_ranges,
            log_config=False,
            synch=True,
        )
        self._mutations, self._seed = dict(mutations), seed
        self._move, self._make_config = exchange, make_config
        self._is_exempt, self._is_ending = is_exempt or (lambda _: False), is_ending
        self._num_lanes, self._population = num_lanes, population
        self._known: set[int] = set()
        self._members: dict[int, Member] = {}
        self._replay(records)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given, and this one is rebuilt from the journal."""
        return {}

    def settle(self) -> None:
        """Makes the exchange that was due when the sweep was interrupted; to be called before anything runs."""
        if self._is_due():
            self._exchange()

    def members(self) -> dict[int, tuple[int, dict[str, Any]]]:
        """The living members by number: their epochs and their settings."""
        return {number: (member.epoch, member.params) for number, member in sorted(self._members.items())}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Takes a trial in; one that goes on has its place already."""
        number, params = trial.config[NUMBER], trial.config.get("params", {})
        self._add(number, params)
        if number in self._members:
            self._members[number].trial = trial

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Lets a member wait that has come to the next exchange."""
        member = self._members.get(trial.config[NUMBER])
        if member is None or EPOCH not in result:
            return str(TrialScheduler.CONTINUE)
        member.see(int(result[EPOCH]), result.get(self._metric))
        if result[EPOCH] < self._next_perturbation_sync:
            return str(TrialScheduler.CONTINUE)
        tune_controller.search_alg.searcher.on_pause(trial.trial_id)
        return str(TrialScheduler.PAUSE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """A trial that has ended is no member any more."""
        self._drop(trial.config[NUMBER])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """So is one that failed; one that Tune tries again has this status, and stays."""
        if trial.status != Trial.ERROR:
            self._drop(trial.config[NUMBER])

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """So is one that was ended while it waited."""
        self._drop(trial.config[NUMBER])

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """A trial that is new, or a waiting member whose turn it is, if there is one and a lane for it."""
        trials = tune_controller.get_trials()
        if self._is_ending():
            for waiting in [trial for trial in trials if trial.status == Trial.PAUSED]:
                tune_controller.stop_trial(waiting)
        elif all(member.trial is not None for member in self._members.values()) and self._is_due():
            self._exchange()
        pending = next((trial for trial in trials if trial.status == Trial.PENDING), None)
        num_running = sum(trial.status == Trial.RUNNING for trial in trials)
        if pending is not None or self._is_ending() or num_running >= (self._num_lanes or math.inf):
            return pending
        behind = [each for each in self._in_order() if each.trial and each.epoch < self._next_perturbation_sync]
        chosen = super().choose_trial_to_run(Seen(behind))
        if chosen is None:
            return None
        tune_controller.search_alg.searcher.on_unpause(chosen.trial.trial_id)
        return chosen.trial

    def _is_due(self) -> bool:
        """Whether every member has come to the next exchange, and waits."""
        is_whole = len(self._known) >= self._population
        return is_whole and bool(self._members) and all(self._waits(member) for member in self._members.values())

    def _waits(self, member: Member) -> bool:
        return member.epoch >= self._next_perturbation_sync and member.status == Trial.PAUSED

    def _exchange(self) -> None:
        """Has Tune decide who takes over what, and does it."""
        epoch, members = int(self._next_perturbation_sync), self._in_order()
        self._trial_state = {member: self._trial_state[member] for member in members}
        with seeded(seed_of(self._seed, epoch)):
            for member in members:
                value = math.nan if member.value is None else member.value
                super().on_trial_result(Seen(members), member, {EPOCH: epoch, self._metric: value})
        moves = []
        for member in members:
            donor = member.taken()
            if donor is not None:
                params = {name: member.config[name] for name in self._members[donor].params}
                moves.append(Move(member.number, donor, params, member.params))
            self._configure(member, member.params)
        for move in self._move(epoch, moves):
            member = self._members[move.number]
            self._configure(member, move.params)
            if member.trial is not None:
                config = self._make_config(move.number, move.params, epoch)
                member.trial.set_config({**member.trial.config, **config})

    def _in_order(self) -> list[Member]:
        return [member for _, member in sorted(self._members.items())]

    def _add(self, number: int, params: Mapping[str, Any]) -> None:
        if number in self._known:
            return
        self._known.add(number)
        if not self._is_exempt(params):
            member = self._members[number] = Member(number, params)
            self._configure(member, params)

    def _configure(self, member: Member, params: Mapping[str, Any]) -> None:
        """Gives a member its settings; those without an effect get a value that nobody will see."""
        member.take(params)
        state = self._trial_state.get(member)
        with seeded(0):
            super().on_trial_add(Seen([]), member)
        if state is not None:
            self._trial_state[member] = state

    def _drop(self, number: int) -> None:
        member = self._members.pop(number, None)
        if member is not None:
            del self._trial_state[member]

    def _within_ranges(self, config: dict[str, Any]) -> dict[str, Any]:
        """Called by Tune with settings that it moved: a range of the spec holds for them too."""
        for name, dimension in self._mutations.items():
            if dimension.choices is None:
                value = min(max(config[name], dimension.low), dimension.high)
                config[name] = int(value) if dimension.is_integer else value
        return config

    def _replay(self, records: Sequence[Record]) -> None:
        """Brings the members to where the journal left them; what was exchanged is not decided again."""
        last = 0
        for record in records:
            event, member = record["event"], self._members.get(record.get("number", -1))
            if event == "trial":
                self._add(record["number"], record["params"])
            elif event == "exchange":
                last = record["epoch"]
                self._take_over(record["moves"])
            elif event == "epoch" and member is not None:
                member.see(record["epoch"], record["metrics"].get(self._metric))
            elif event == "end" and record["outcome"] != "interrupted":
                self._drop(record["number"])
        if last:
            self._next_perturbation_sync = last + self._perturbation_interval
        for state in self._trial_state.values():
            state.last_train_time = state.last_perturbation_time = last

    def _take_over(self, moves: Sequence[Mapping[str, Any]]) -> None:
        for move in moves:
            if move["number"] in self._members:
                self._configure(self._members[move["number"]], move["params"])
