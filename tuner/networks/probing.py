"""Before the search: one pass over the pictures says how good frozen features are at each depth.

In: the spec, the space, lanes. Out: a record in the journal, a table among the report's files, and the points that the
search begins with; of several backbones each is probed, and the one that promises most gets most of these points. A
sweep that goes on takes both from its journal; a probe is never run twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search_spaces.advice import rules_of_thumb
from search_spaces.seeding import (
    ProbedDepth,
    best_depth,
    first_points,
    first_points_of_all,
    rank_probed,
    should_probe,
)
from search_spaces.space import BACKBONE, Point, SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import TrialConfig
from trainables.files.storage import write_bytes
from trainables.jobs import CutsToKeep, DepthProbe, Message, ProbeJob
from tuner.cluster.lanes import LaneError, LanePool
from tuner.paths import SweepPaths
from tuner.progress import Progress
from tuner.records.journal import Record, read_records

TABLE_NAME = "probe.json"


def probe_record(records: Sequence[Record]) -> Record | None:
    """What the journal says of the probe; None where there was none."""
    return next((record for record in records if record["event"] == "probe"), None)


def run_probe_phase(
    spec: SweepSpec,
    space: SearchSpace,
    bases: Mapping[str, TrialConfig],
    pool: LanePool,
    paths: SweepPaths,
    *,
    record: Callable[..., object],
    progress: Progress,
) -> list[Point] | None:
    """Runs the probe unless the journal has it; a probe that fails costs the search its seeds and nothing else.

    Args:
        spec: What is searched.
        space: The same, as points.
        bases: What every trial on each backbone has in common, by name.
        pool: Lanes; the first that is free does it, one backbone after another.
        paths: Of the sweep.
        record: Writes the journal.
        progress: Shows what happens.

    Returns:
        The points that the search begins with; None where it has no probe to begin with.
    """
    records = read_records(paths.journal)
    known = probe_record(records)
    if known is not None:
        return list(known["points"])
    is_under_way = any(entry["event"] == "trial" for entry in records)
    wanted = [] if is_under_way else _to_be_probed(spec, space)
    if not wanted:
        return None
    found, problem = _probe_all(spec, space, bases, pool, wanted, progress)
    points = _points_after(space, found, spec.most_trials)
    probes: list[Mapping[str, Any]] = []
    for name, message in found.items():
        probes += [{**probe, BACKBONE: name} if space.is_joint else probe for probe in message["probes"]]
    metrics = _sums([each["metrics"] for each in found.values()])
    record("probe", probes=probes, metrics=metrics, points=points, reason=problem)
    if not found:
        return points
    for name in rank_probed({name: as_depths(each["probes"]) for name, each in found.items()}):
        line = describe(found[name]["probes"], found[name]["metrics"])
        progress.note(line.replace("probe:", f"probe: {name}:", 1) if space.is_joint else line)
    content = {"backbone": spec.model.label, "probes": probes, "seconds": metrics, "first_trials": points}
    write_bytes(str(paths.report / TABLE_NAME), json.dumps(without_nan(content), indent=1).encode())
    record("files", paths=[str(paths.report / TABLE_NAME)], folder="report")
    return points


def _to_be_probed(spec: SweepSpec, space: SearchSpace) -> list[str]:
    """The backbones of which a probe would tell where to begin."""
    pretrained = {name: choice.is_pretrained for name, choice in spec.model.named.items()}
    return [
        name
        for name in space.backbones
        if should_probe(
            spec.search,
            space.alone(name),
            is_pretrained=spec.can_probe and pretrained.get(name, spec.is_pretrained),
            are_backbones_compared=space.is_joint,
        )
    ]


def _probe_all(
    spec: SweepSpec,
    space: SearchSpace,
    bases: Mapping[str, TrialConfig],
    pool: LanePool,
    wanted: Sequence[str],
    progress: Progress,
) -> tuple[dict[str, Message], str | None]:
    """The answers by backbone, and why there are not more of them."""
    found: dict[str, Message] = {}
    problems: list[str] = []
    for name in wanted:
        alone = space.alone(name)
        progress.phase(f"probing the frozen {name if space.is_joint else 'network'}")
        try:
            (found[name],) = pool.run(ProbeJob.of(bases[name], alone.num_stages, cuts_worth_keeping(spec, alone)))
        except LaneError as error:
            problems.append(f"{name}: {error}" if space.is_joint else str(error))
            progress.note(f"probe: {problems[-1]}; the search begins with rules of thumb", style="yellow")
    return found, "; ".join(problems) or None


def _points_after(space: SearchSpace, found: Mapping[str, Message], num_trials: int | None) -> list[Point]:
    if not found:
        return rules_of_thumb(space)
    if not space.is_joint:
        (message,) = found.values()
        return first_points(space, as_depths(message["probes"]), num_trials)
    probes = {name: as_depths(found[name]["probes"]) if name in found else [] for name in space.backbones}
    return first_points_of_all(space, probes, num_trials)


def _sums(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, value in (item for each in metrics for item in each.items()):
        sums[name] = sums.get(name, 0.0) + value
    return sums


def cuts_worth_keeping(spec: SweepSpec, space: SearchSpace) -> CutsToKeep:
    """Cuts that a trial may read: of validation pictures all, of training pictures where they are seen as they are.

    The last one is what every head is fitted on.
    """
    cuts = tuple(depth for depth in space.depths if depth > 0)
    policies = spec.search.augmentation
    sees_them = "none" in (policies if isinstance(policies, tuple) else (policies,))
    last = (space.num_stages,)
    return {"train": tuple(sorted({*cuts, *last})) if sees_them else last, "val": cuts or last}


def as_depths(probes: Sequence[Mapping[str, Any]]) -> list[ProbedDepth]:
    """What seeding needs of a lane's answer, or of the journal's, where null stands for NaN."""

    def evidence(probe: Mapping[str, Any]) -> float:
        return math.nan if probe["log_me"] is None else float(probe["log_me"])

    return [ProbedDepth(probe["depth"], probe["accuracy"], probe["num_judged"], evidence(probe)) for probe in probes]


def describe(probes: Sequence[DepthProbe], metrics: Mapping[str, float]) -> str:
    """The probe in one line."""
    depth, last = best_depth(as_depths(probes)), probes[-1]
    best = probes[depth - 1]
    only_head = "" if depth == last["depth"] else f"; depth {last['depth']}, only the head: {_percent(last)}"
    seconds = sum(metrics.values())
    return (
        f"probe: depth {depth} of {last['depth']} is best, {_percent(best)} of {best['num_judged']} pictures"
        f"{only_head} ({seconds:.1f} s)"
    )


def without_nan(value: Any) -> Any:
    """A value as strict JSON has it: NaN is null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(probe: DepthProbe) -> str:
    return f"{100 * probe['accuracy']:.1f}%"
