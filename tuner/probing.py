"""Before the search: one pass over the pictures says how good frozen features are at each depth.

In: the spec, the space, lanes. Out: a record in the journal, a table among the report's files, and the points that the
search begins with. A sweep that goes on takes both from its journal; a probe is never run twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search_spaces.seeding import ProbedDepth, best_depth, first_points, should_probe
from search_spaces.space import Point, SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import TrialConfig
from trainables.jobs import CutsToKeep, DepthProbe, ProbeJob
from trainables.storage import write_bytes
from tuner.journal import Record, read_records
from tuner.lanes import LaneError, LanePool
from tuner.paths import SweepPaths
from tuner.progress import Progress

TABLE_NAME = "probe.json"


def probe_record(records: Sequence[Record]) -> Record | None:
    """What the journal says of the probe; None where there was none."""
    return next((record for record in records if record["event"] == "probe"), None)


def run_probe_phase(
    spec: SweepSpec,
    space: SearchSpace,
    base: TrialConfig,
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
        base: What every trial has in common.
        pool: Lanes; the first that is free does it.
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
    if is_under_way or not should_probe(spec.search, space, is_pretrained=spec.is_pretrained):
        return None
    progress.phase("probing the frozen network")
    job = ProbeJob.of(base, space.num_stages, cuts_worth_keeping(spec, space))
    try:
        (message,) = pool.run(job)
    except LaneError as error:
        progress.note(f"probe: {error}; the search begins with rules of thumb", style="yellow")
        points = space.rules_of_thumb()
        record("probe", probes=[], metrics={}, points=points, reason=str(error))
        return points
    probes, metrics = message["probes"], message["metrics"]
    points = first_points(space, as_depths(probes), spec.most_trials)
    record("probe", probes=probes, metrics=metrics, points=points, reason=None)
    progress.note(describe(probes, metrics))
    content = {"backbone": spec.model.backbone, "probes": probes, "seconds": metrics, "first_trials": points}
    write_bytes(str(paths.report / TABLE_NAME), json.dumps(without_nan(content), indent=1).encode())
    record("files", paths=[str(paths.report / TABLE_NAME)], folder="report")
    return points


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
    """What seeding needs of a lane's answer."""
    return [ProbedDepth(probe["depth"], probe["accuracy"], probe["num_judged"]) for probe in probes]


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
