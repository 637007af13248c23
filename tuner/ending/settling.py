"""What a finished sweep still owes MLflow: records, files, the champion in the registry.

In: a sweep of this home, from here or imported. Out: MLflow has all of it, once, however often this is repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from search_spaces.spec import SweepSpec
from tuner.paths import HomePaths
from tuner.progress import Progress
from tuner.records.journal import Record, champion_record, read_records
from tuner.records.resuming import is_finished
from tuner.tracking.access import without_password
from tuner.tracking.runs import PATIENCE_S, Tracking


@dataclass(frozen=True)
class Settled:
    """What came of it.

    Attributes:
        untold: Records that MLflow was not told, because it is away.
        model: The champion's version and alias, with the reason, in words; None where nothing was registered.
        failure: Why the champion could not be registered.
        is_away: Whether MLflow gave no answer at all.
    """

    untold: int = 0
    model: str | None = None
    failure: str | None = None
    is_away: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether nothing is owed any more."""
        return not self.untold and self.failure is None


def tell_the_rest(home: HomePaths, spec: SweepSpec, progress: Progress) -> None:
    """Sends MLflow what it does not have of a finished sweep, and says what came of it."""
    tracking = Tracking.for_sweep(home, spec.name, home.tracking_uri(spec.tracking.uri))

    def announce(num_records: int) -> None:
        progress.phase(f"telling MLflow what it was not told, {num_records} records")

    settled = settle(home, spec, tracking, PATIENCE_S, announce)
    if settled.is_away:
        place = without_password(tracking.tracking_uri)
        progress.note(f"MLflow at {place} does not answer: what it lacks is told by a later resume", style="yellow")
    elif settled.untold:
        text = f"MLflow is away: {settled.untold} records are not told yet; the journal keeps them"
        progress.note(text, style="yellow")
    elif settled.failure:
        progress.note(f"MLflow did not take the champion: {settled.failure}", style="yellow")
    elif settled.model:
        progress.note(f"registered: {settled.model}")


def settle(
    home: HomePaths,
    spec: SweepSpec,
    tracking: Tracking,
    timeout_s: float,
    announce: Callable[[int], object] = lambda _: None,
) -> Settled:
    """Sends MLflow what it does not have of a sweep, its champion's model last; ends the tracking.

    Args:
        home: Where the sweep lies.
        spec: The sweep's.
        tracking: On the MLflow of this machine; not started yet.
        timeout_s: How long to wait for an MLflow that is away.
        announce: Told how many records are owed, where anything is.
    """
    from tuner.tracking.mlflow_client import gist, outages

    if not tracking.ask(timeout_s):
        return Settled(untold=tracking.pending(), failure="it does not answer", is_away=True)
    record = _model_record(home, spec.name) if tracking.model is None else None
    if not tracking.pending() and record is None:
        return Settled()
    announce(tracking.pending())
    tracking.start()
    try:
        if untold := tracking.flush(timeout_s):
            return Settled(untold=untold)
        if record is None:
            return Settled()
        return Settled(model=_register(home, spec, record, tracking))
    except outages() as error:
        return Settled(failure=gist(error))
    finally:
        tracking.close(0)


def _model_record(home: HomePaths, name: str) -> Record | None:
    """The record of a finished sweep's champion whose model lies here."""
    paths = home.sweep(name)
    records = read_records(paths.journal)
    return champion_record(records) if is_finished(records) and paths.champion.is_dir() else None


def _register(home: HomePaths, spec: SweepSpec, record: Record, tracking: Tracking) -> str | None:
    """Registers the champion's model unless its run has it; champion here only where there is none."""
    from tuner.metric_names import bare
    from tuner.models.model_file import load_card
    from tuner.models.promotion import Score, promote
    from tuner.models.registry import register_once

    run_id = tracking.run_id(record["number"])
    if run_id is None:
        return None
    folder, uri = home.sweep(spec.name).champion, tracking.tracking_uri
    name, metrics = spec.tracking.model_name or spec.name, record.get("metrics") or {}
    tags = {"thaw.sweep": spec.name, "thaw.trial": str(record["number"])}
    version = register_once(folder, name, uri, run_id=run_id, time_s=time.time(), tags=tags)
    card = load_card(folder)
    metric = bare(spec.metric)
    costs = card.costs if metric == "cost" else None
    score = Score(metrics.get(f"test/{metric}"), card.test_digest, card.class_names, metric, costs)
    decision = promote(version, score, uri, _cannot_evaluate)
    tracking.note_model(version.uri)
    return f"{version.uri}, {decision.alias} ({decision.reason})"


def _cannot_evaluate(uri: str) -> float:
    raise ValueError(f"its pictures may not be here to test {uri} on")
