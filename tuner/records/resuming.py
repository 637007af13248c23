"""Going on with a sweep: what earlier runs of it left, and what a changed spec may change.

In: a sweep's folder and overrides. Out: what there is to do, in words too, or an `InputError` that shows the
difference. Only what adds trials or says where and when they run may change: trials of one name stay comparable.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search_spaces.loading import load_kept_spec
from search_spaces.search_spec import LISTING_SAMPLERS
from search_spaces.spec import SweepSpec
from trainables.errors import InputError
from trainables.files.storage import file_exists, join
from trainables.jobs import LAST_CHECKPOINT
from tuner.paths import HomePaths, SweepPaths
from tuner.records.journal import Record, TrialRecord, read_records, trials_of
from tuner.records.kept_places import first_weights, is_weights_file, pretrained_weights, settle_places

_MAY_CHANGE = (
    "data.source",
    "tracking.uri",
    "search.num_trials",
    "budget.time_s",
    "budget.flops",
    "budget.concurrency",
    "budget.cpus_per_worker",
    "features",
    "cache",
    "keep_checkpoints",
    "baselines",
)
_MOST_NAMED = 6


@dataclass(frozen=True)
class Left:
    """What is left of a sweep.

    Attributes:
        spec: What it is to be now.
        records: Its journal.
        changes: What is new in the spec: ``{field: (before, now)}``.
    """

    spec: SweepSpec
    records: Sequence[Record]
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether the sweep came to its end and nothing new is asked of it."""
        return is_finished(self.records) and not self.changes


def find_left(home: HomePaths, name: str, overrides: Sequence[str] = ()) -> Left:
    """Reads what is left of a sweep.

    Args:
        home: Where it lies.
        name: The sweep's.
        overrides: ``field.path=VALUE`` each.

    Raises:
        InputError: There is no such sweep, its journal is damaged, or an override changes what may not change.
    """
    paths = home.known_sweep(name, "resume")
    records = read_records(paths.journal)
    # The file has them too, unless the sweep was killed between the journal and the file.
    known_changes = [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in _extensions(records).items()]
    before = settle_places(load_kept_spec(paths.spec, known_changes))
    spec = settle_places(load_kept_spec(paths.spec, [*known_changes, *overrides]))
    changes = differences(before, spec)
    refused = {path: change for path, change in changes.items() if not _may_change(path, change, paths)}
    if refused:
        shown = "\n".join(f"  {path}: {old} -> {new}" for path, (old, new) in refused.items())
        raise InputError(
            f"resume: sweep {name!r} goes on with the spec it began with, or its trials could not be compared; this "
            f"would change\n{shown}\nTo search so, start a sweep under another name. What may change: "
            f"{', '.join(_MAY_CHANGE)}"
        )
    if spec.is_population and "search.num_trials" in changes:
        raise InputError(
            "resume: search.num_trials: a population keeps the size it was drawn with; start a sweep under another name"
        )
    num_known = len(trials_of(records))
    if spec.most_trials is not None and changes and spec.most_trials < num_known:
        raise InputError(f"resume: search.num_trials: {spec.most_trials}, but {name!r} has {num_known} trials already")
    return Left(spec, records, changes)


def is_finished(records: Sequence[Record]) -> bool:
    """Whether the last run of a sweep came to its end."""
    last = next((record["event"] for record in reversed(records) if record["event"] in ("sweep", "finished")), None)
    return last == "finished"


def differences(before: SweepSpec, after: SweepSpec) -> dict[str, tuple[Any, Any]]:
    """The fields in which two specs differ, by path, with both values."""
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    return {path: (old.get(path), new.get(path)) for path in {**old, **new} if old.get(path) != new.get(path)}


def describe_left(left: Left, home: HomePaths) -> list[str]:
    """What was found, what goes on and what starts again, a line each."""
    trials = trials_of(list(left.records))
    ended = Counter(str(trial.outcome).replace("_", " ") for trial in trials if trial.outcome)
    outcomes = f" ({', '.join(f'{number} {outcome}' for outcome, number in ended.items())})" if ended else ""
    most = left.spec.most_trials
    at_most = "at most " if left.spec.search.sampler in LISTING_SAMPLERS else ""  # the space may have fewer points
    of_all = "" if most is None else f" of {at_most}{most}"
    lines = [f"found: {ended.total()}{of_all} trials ended{outcomes}"]
    lines += [f"changed: {path}: {old} -> {new}" for path, (old, new) in left.changes.items()]
    going_on: list[TrialRecord] = []
    again: list[TrialRecord] = []
    for trial in trials:
        if trial.outcome is None:
            (going_on if trial.epochs and _has_state(trial, left.spec, home) else again).append(trial)
    if going_on:
        lines.append("goes on: " + _named([f"trial {t.number} after epoch {len(t.epochs)}" for t in going_on]))
    if again:
        lines.append("starts again: " + _named([f"trial {trial.number}" for trial in again]))
    if most is not None:
        lines.append(f"still to begin: {at_most}{max(0, most - len(trials))} trials")
    return lines


def _has_state(trial: TrialRecord, spec: SweepSpec, home: HomePaths) -> bool:
    directory = home.uri_of(home.sweep(spec.name).trial(trial.number).root)
    return file_exists(join(directory, LAST_CHECKPOINT))


def _extensions(records: Sequence[Record]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for record in records:
        if record["event"] == "extended":
            changes |= record["changes"]
    # Of an imported sweep it is the other machine's; the file has what holds here.
    return {path: value for path, value in changes.items() if path != "tracking.uri"}


def _may_change(path: str, change: tuple[Any, Any], paths: SweepPaths) -> bool:
    if path == "model.weights" and all(map(is_weights_file, change)):
        return bool(first_weights(paths))  # the same ones at another place: they are compared
    if path.endswith(".pretrain.data.source"):
        return bool(pretrained_weights(paths))
    if path == "model.backbones" and _differ_in_places(*change):
        return bool(first_weights(paths) or pretrained_weights(paths))
    return any(path == allowed or path.startswith(allowed + ".") for allowed in _MAY_CHANGE)


def _differ_in_places(before: Any, after: Any, name: str = "") -> bool:
    """Whether networks are the same but for where their weights, or the pictures of their pretraining, lie."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return before.keys() == after.keys() and all(_differ_in_places(before[key], after[key], key) for key in before)
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_differ_in_places, before, after))
    return before == after or name == "source" or (name == "weights" and all(map(is_weights_file, (before, after))))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _named(items: Sequence[str]) -> str:
    more = len(items) - _MOST_NAMED
    return ", ".join(items[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
