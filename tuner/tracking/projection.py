"""What MLflow is to be told about journal records: a function of values, without MLflow in it.

In: records in order, and what is known about each run. Out: one `RunUpdate` per run, the sweep's (the parent) first.
`tuner.tracking.runs` sends them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tuner.records.journal import Record

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
SWEEP_KEY = "sweep"

_STATUS_OF_OUTCOME: dict[str, RunStatus] = {
    "completed": "FINISHED",
    "stopped_early": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


@dataclass(frozen=True)
class RunState:
    """What has been planned for one run so far.

    Attributes:
        epoch: The last epoch told; a resumed trial runs some again, and the first report stays.
        is_open: Whether it has not ended.
        is_champion: Whether it is the trial that won, as far as is known.
    """

    epoch: int = 0
    is_open: bool = True
    is_champion: bool = False


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric; ``time_ms`` is the journal's, so a value that is sent twice is the same row."""

    name: str
    value: float
    time_ms: int
    step: int


@dataclass
class RunUpdate:
    """Everything that one run gains from some records.

    Attributes:
        key: `SWEEP_KEY`, or the trial's number as text.
        name: What people see.
        start_ms: Start time, should the run have to be created.
        files: Paths and the artifact folder that each goes to.
        status: The state that it ends up in; None leaves it.
        end_ms: When it ended.
    """

    key: str
    name: str
    start_ms: int
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[MetricPoint] = field(default_factory=list)
    files: list[tuple[str, str | None]] = field(default_factory=list)
    status: RunStatus | None = None
    end_ms: int | None = None


def plan(
    records: Iterable[Record], states: Mapping[str, RunState], sweep_name: str
) -> tuple[list[RunUpdate], dict[str, RunState]]:
    """The updates that ``records`` amount to, and the states after them."""
    planner = _Planner(sweep_name, dict(states))
    for record in records:
        planner.take(record)
    updates = sorted(planner.updates.values(), key=lambda update: update.key != SWEEP_KEY)
    return updates, planner.states


def as_param(value: Any) -> str:
    """A setting as people read it; numbers keep all their digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(as_param(item) for item in value)
    return str(value)


class _Planner:
    """Folds records into updates, one method per event."""

    def __init__(self, sweep_name: str, states: dict[str, RunState]) -> None:
        self.updates: dict[str, RunUpdate] = {}
        self.states = states
        self._sweep_name = sweep_name

    def take(self, record: Record) -> None:
        time_ms = round(record["time"] * 1000)
        match record["event"]:
            case "sweep" | "trial" | "baseline" | "refit":
                self._begin(record, time_ms)
            case "extended":
                changes = "; ".join(f"{name}: {as_param(value)}" for name, value in record["changes"].items())
                self._update(SWEEP_KEY, time_ms).tags["thaw.extended"] = changes
            case "probe":
                self._probe(record, time_ms)
            case "epoch":
                self._epoch(record, time_ms)
            case "end":
                self._end(record, time_ms)
            case "exchange":
                for move in record["moves"]:
                    self._take_over(move, record["epoch"], time_ms)
            case "files":
                update = self._update(_key(record), time_ms)
                update.files += [(path, record.get("folder")) for path in record["paths"]]
            case "champion":
                self._champion(record, time_ms)
            case "totals":
                self._update(SWEEP_KEY, time_ms).metrics += _points(record["metrics"], time_ms, 0)
            case "finished" | "interrupted":
                self._close_sweep(record, time_ms)

    def _update(self, key: str, time_ms: int) -> RunUpdate:
        name = self._sweep_name if key == SWEEP_KEY else f"trial {int(key):04d}"
        return self.updates.setdefault(key, RunUpdate(key, name, time_ms))

    def _begin(self, record: Record, time_ms: int) -> None:
        key = _key(record)
        update = self._update(key, time_ms)
        if record["event"] == "baseline":
            update.name = f"baseline {record['name']}"
            update.tags["thaw.baseline"] = record["name"]
        if record["event"] == "refit":
            update.name = f"refit of {record['name']}"
            update.tags["thaw.refit"] = record["name"]
        update.tags |= {name: str(value) for name, value in record.get("tags", {}).items()}
        if record.get("note"):
            update.tags["mlflow.note.content"] = record["note"]
        if key in self.states:
            # MLflow refuses to change a parameter; a run that goes on keeps those it began with.
            update.tags |= {"thaw.outcome": "running", "thaw.reason": ""}
            update.status, update.end_ms = "RUNNING", None
        else:
            update.params |= {name: as_param(value) for name, value in record.get("params", {}).items()}
            update.metrics += _points(record.get("metrics") or {}, time_ms, 0)
        self.states[key] = replace(self.states.get(key, RunState()), is_open=True)

    def _probe(self, record: Record, time_ms: int) -> None:
        """The curve by depth: MLflow draws it with the depth as the step."""
        update = self._update(SWEEP_KEY, time_ms)
        for probe in record["probes"]:
            group = f"probe/{probe['backbone']}" if "backbone" in probe else "probe"
            shown = {f"{group}/accuracy": probe["accuracy"], f"{group}/log_me": probe["log_me"]}
            update.metrics += _points(shown, time_ms, probe["depth"])

    def _epoch(self, record: Record, time_ms: int) -> None:
        key, epoch = _key(record), record["epoch"]
        state = self.states.get(key, RunState())
        if epoch <= state.epoch:
            return
        self._update(key, time_ms).metrics += _points(record["metrics"], time_ms, epoch)
        self.states[key] = replace(state, epoch=epoch)

    def _end(self, record: Record, time_ms: int) -> None:
        key = _key(record)
        update = self._update(key, time_ms)
        state = self.states.get(key, RunState())
        update.metrics += _points(record.get("metrics") or {}, time_ms, state.epoch)
        self._close(update, time_ms, record["outcome"], record.get("reason"))

    def _take_over(self, move: Mapping[str, Any], epoch: int, time_ms: int) -> None:
        """The settings as a curve over the epochs, which MLflow's parameters cannot show; who was taken over, a tag."""
        update = self._update(str(move["number"]), time_ms)
        before, after = move["before"], move["params"]
        changed = [name for name, value in after.items() if before.get(name) != value]
        for step, params in ((epoch, before), (epoch + 1, after)):
            numbers = {f"schedule/{name}": value for name in changed if _is_number(value := params.get(name))}
            update.metrics += _points(numbers, time_ms, step)
        shown = ", ".join(f"{name} {as_param(before.get(name))} -> {as_param(after[name])}" for name in changed)
        update.tags[f"thaw.taken_over.{epoch:04d}"] = f"trial {move['donor']}; {shown}"

    def _champion(self, record: Record, time_ms: int) -> None:
        parent = self._update(SWEEP_KEY, time_ms)
        parent.metrics += _points(record["metrics"], time_ms, 0)
        parent.tags["thaw.champion"] = f"trial {record['number']:04d}"
        if record.get("note"):
            parent.tags["mlflow.note.content"] = record["note"]
        won = _key(record)
        for key in [key for key, state in self.states.items() if state.is_champion and key != won]:
            self._update(key, time_ms).tags["thaw.champion"] = "no"  # more trials came, and another one won
            self.states[key] = replace(self.states[key], is_champion=False)
        self._update(won, time_ms).tags["thaw.champion"] = "yes"
        self.states[won] = replace(self.states.get(won, RunState()), is_champion=True)

    def _close_sweep(self, record: Record, time_ms: int) -> None:
        outcome = "interrupted" if record["event"] == "interrupted" else record.get("outcome", "completed")
        for key in [key for key, state in self.states.items() if state.is_open and key != SWEEP_KEY]:
            self._close(self._update(key, time_ms), time_ms, "interrupted", record.get("reason"))
        self._close(self._update(SWEEP_KEY, time_ms), time_ms, outcome, record.get("reason"))

    def _close(self, update: RunUpdate, time_ms: int, outcome: str, reason: str | None) -> None:
        update.status, update.end_ms = _STATUS_OF_OUTCOME[outcome], time_ms
        update.tags["thaw.outcome"] = outcome
        if reason:
            update.tags["thaw.reason"] = reason
        self.states[update.key] = replace(self.states.get(update.key, RunState()), is_open=False)


def _key(record: Record) -> str:
    number = record.get("number")
    return SWEEP_KEY if number is None else str(number)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _points(metrics: Mapping[str, float | None], time_ms: int, step: int) -> list[MetricPoint]:
    """Null in the journal stands for a value that was not finite; MLflow draws NaN as a gap."""
    return [
        MetricPoint(name, math.nan if value is None else float(value), time_ms, step) for name, value in metrics.items()
    ]
