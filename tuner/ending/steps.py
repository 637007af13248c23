"""The single steps of a sweep's end: the champion is tested once, compared, written whole, and registered.

In: the journal's trials and the pool of lanes. Out: a ``Champion`` and the baselines' ``Standing``s. Validation has
chosen before anything here reads the test side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from search_spaces.spec import BaselineName, SweepSpec
from trainables.config import TrialConfig
from trainables.files.storage import write_bytes
from trainables.jobs import ScoreJob, TrainJob
from tuner.cluster.lanes import LaneError, LanePool
from tuner.ending.describing import lineage_tags
from tuner.ending.refitting import FIRST_REFIT, Model, is_refit, kept_model, refit
from tuner.metric_names import bare
from tuner.models.model_file import ModelCard, save_model
from tuner.models.whole_network import whole_network
from tuner.paths import HomePaths
from tuner.pictures.dealing import stored_side_px
from tuner.pictures.dealt import PreparedData
from tuner.records.champion import baseline_config, best_epoch, seconds_of, totals_of
from tuner.records.journal import Record, TrialRecord, read_records
from tuner.report.clusters import NUM_CLUSTERS, Answers
from tuner.report.confusion import Confusion, write_confusion
from tuner.report.intervals import metric_intervals
from tuner.report.label_table import LabelTable, write_labels
from tuner.report.probe_picture import compose_probe, draw_probe
from tuner.report.result import Champion, Standing
from tuner.report.spread import with_errors
from tuner.report.sweep_picture import compose, draw

if TYPE_CHECKING:
    import torch

    from tuner.models.registry import Moment

Mistakes: TypeAlias = Confusion | LabelTable
"""Of a side: one class taken for another, or labels given and not given."""

FIRST_BASELINE = 10_000
"""Runs beside the search are numbered from here, far from any trial."""
_MOST_BESIDE = 10
"""Numbers for the runs beside one champion."""


@dataclass(frozen=True)
class Closing:
    """What the end of a sweep works with.

    Attributes:
        spec: The sweep's.
        home: Where its files are.
        data: Its pictures.
        pool: Its lanes.
        record: Writes the journal.
        phase: Tells a person what is being done.
        counted: Tells how much of it, of how much.
        champion: The trial that has won.
        shift: Added to the numbers of the runs beside the search; see `shift_of`.
        places: Of its baselines among these runs; see `places_of`.
    """

    spec: SweepSpec
    home: HomePaths
    data: PreparedData
    pool: LanePool
    record: Callable[..., object]
    phase: Callable[[str], None]
    counted: Callable[[str, int, int], None] = lambda *_: None
    champion: int = 0
    shift: int = 0
    places: Mapping[BaselineName, int] = field(default_factory=dict)

    def directory(self, number: int) -> str:
        """Where a trial's checkpoints are."""
        return self.home.uri_of(self.home.sweep(self.spec.name).trial(number).root)


def test_champion(closing: Closing, trial: TrialRecord, config: TrialConfig) -> tuple[Champion, Model, Mistakes | None]:
    """Reads the champion's result: validation from the journal, the test side now, once.

    Returns:
        The champion, its model and its mistakes on the test side; None where there is no test side.

    Raises:
        LaneError: Its model cannot be trained or tested.
    """
    epoch = best_epoch(trial, closing.spec.metric, closing.spec.mode) or {}
    val = with_errors(_without_group(epoch, "val/"), config)
    standing = Standing(f"trial {trial.number}", val, seconds=seconds_of(trial.epochs))
    best = int(epoch.get("epoch", 0))
    champion = Champion(trial.number, trial.params, config, standing, lineage=trial.lineage, epoch=best)
    model = _model_of(closing, trial.number, f"trial {trial.number}", config, epoch, FIRST_REFIT + closing.shift)
    if not closing.data.size("test"):
        return champion, model, None
    closing.phase("testing the champion")
    test, confusion = _score(closing, model)
    return replace(champion, standing=replace(standing, test=test)), model, confusion


def _model_of(
    closing: Closing, number: int, name: str, config: TrialConfig, best: Mapping[str, float], refit_number: int
) -> Model:
    """The model of a run whose best epoch is known, trained now where `refitting` says so."""
    if not is_refit(config):
        return kept_model(config, closing.directory(number))
    closing.phase(f"refitting {name} on all {closing.data.size('train')} pictures that are not tested")
    return refit(
        config,
        closing.directory(refit_number),
        int(best["epoch"]),
        name=name,
        pool=closing.pool,
        record=closing.record,
        number=refit_number,
        champion=closing.champion,
    )


def shift_of(records: Iterable[Record], champion: int) -> int:
    """What keeps the runs beside one champion apart from those beside another, where a sweep was made longer.

    Args:
        records: The journal's.
        champion: The number of the trial that has won now.
    """
    # Who was killed on the way has left runs beside the search, and no champion.
    whose = (record["number"] if record["event"] == "champion" else record.get("champion") for record in records)
    before = list(dict.fromkeys(number for number in whose if number is not None))
    return _MOST_BESIDE * (before.index(champion) if champion in before else len(before))


def places_of(records: Iterable[Record], champion: int, names: Sequence[BaselineName]) -> dict[BaselineName, int]:
    """Where each of a champion's baselines stands among the runs beside the search, from 1.

    A sweep that goes on may have another list of them, and a number is one run in MLflow: each keeps the place that it
    had, and a new one takes the first that none has.
    """
    taken: dict[BaselineName, int] = {}
    for record in records:
        if record["event"] == "baseline" and record.get("champion") == champion:
            taken[record["name"]] = (record["number"] - FIRST_BASELINE) % _MOST_BESIDE
    for name in names:
        if name not in taken:
            taken[name] = next(place for place in count(1) if place not in taken.values())
    return taken


def run_baselines(closing: Closing, champion: Champion, num_stages: int) -> list[Standing]:
    """Trains what the spec wants the champion compared with; one that fails is left out and journaled."""
    standings = []
    for name in closing.spec.baselines:
        closing.phase(f"training baseline {name}")
        config = baseline_config(name, champion.config, num_stages)
        standing = _run_baseline(closing, name, config, champion.params)
        if standing is not None:
            standings.append(standing)
    return standings


def _run_baseline(closing: Closing, name: BaselineName, config: TrialConfig, params: dict[str, Any]) -> Standing | None:
    place = closing.places[name]
    spec, started, number = closing.spec, time.monotonic(), FIRST_BASELINE + closing.shift + place
    shown = {**params, "freeze_depth": config.freeze_depth, "backbone_lr_ratio": config.optimizer.backbone_lr_ratio}
    closing.record("baseline", number=number, name=name, params=shown, champion=closing.champion)
    job = TrainJob(
        config=config,
        directory=closing.directory(number),
        metric=spec.metric,
        mode=spec.mode,
        last_epoch=spec.budget.last_epoch,
    )
    epochs: list[dict[str, float]] = []
    outcome, reason = "completed", None
    best: Mapping[str, float] | None = None
    model: Model | None = None
    try:
        for message in closing.pool.run(job):
            outcome, reason = message.get("outcome") or outcome, message.get("reason")
            if message["metrics"]:
                closing.record("epoch", number=number, epoch=message["epoch"], metrics=message["metrics"])
                closing.counted(f"training baseline {name}", message["epoch"], job.num_epochs)
                epochs.append({**message["metrics"], "epoch": message["epoch"]})
        best = best_epoch(TrialRecord(number, {}, tuple(epochs)), spec.metric, spec.mode)
        if outcome == "completed" and best is not None:
            refit_number = FIRST_REFIT + closing.shift + place
            model = _model_of(closing, number, f"baseline {name}", config, best, refit_number)
    except LaneError as error:
        outcome, reason = "failed", str(error)
    totals = {"time/trial_s": time.monotonic() - started, **totals_of(epochs, spec.metric, spec.mode)}
    if best is None or model is None:
        closing.record("end", number=number, outcome=outcome, reason=reason, metrics=totals)
        return None
    test: dict[str, float] = {}
    if closing.data.size("test"):
        test, _ = _score(closing, model)
        totals |= {f"test/{key}": value for key, value in test.items()}
    closing.record("end", number=number, outcome=outcome, reason=reason, metrics=totals)
    return Standing(name, with_errors(_without_group(best, "val/"), config), test, seconds_of(epochs))


def _score(closing: Closing, model: Model) -> tuple[dict[str, float], Mistakes]:
    """Tests a model in fp32, as its file will run, whatever it was trained in."""
    config = model.config
    whole = config.compute.model_copy(update={"precision": "fp32", "prefix_precision": "fp32"})
    job = ScoreJob(config=config.model_copy(update={"compute": whole}), checkpoint=model.checkpoint, side="test")
    (message,) = closing.pool.run(job)
    answers = Answers.of(message["true"], message["decided"], message["clusters"])
    metrics = message["metrics"] | metric_intervals(message["metrics"], answers, message["areas"], config.costs)
    if answers.are_clustered:
        metrics[NUM_CLUSTERS] = float(answers.num_clusters)
    if config.data.label_separator is not None:
        return metrics, LabelTable.of(config.data.class_names, message["confusion"], message["average_precisions"])
    confusion = Confusion.of(config.data.class_names, message["confusion"])
    return {**metrics, "majority_rate": confusion.majority_rate}, confusion


def _without_group(metrics: Mapping[str, float], group: str) -> dict[str, float]:
    return {name.removeprefix(group): value for name, value in metrics.items() if name.startswith(group)}


def write_champion(closing: Closing, champion: Champion, model: Model) -> None:
    """Writes the champion's whole model into the sweep's folder."""
    from trainables.data.sharing import open_table
    from trainables.data.splits import is_dealt_by_source

    config = model.config
    network, mean, std = whole_network(config, model.checkpoint)
    card = ModelCard(
        class_names=config.data.class_names,
        image_size_px=config.data.image_size_px,
        fit=config.data.fit,
        stored_side_px=stored_side_px(closing.spec.data),
        mean=mean,
        std=std,
        backbone=config.backbone.name,
        data_fingerprint=config.data.fingerprint,
        labels="single" if config.data.label_separator is None else "multi",
        costs=config.costs,
        split=config.data.split,
        group_pattern=config.data.group_pattern,
        is_dealt_by_source=is_dealt_by_source(open_table(config.data), config.data),
        test_digest=closing.data.test_digest if closing.data.size("test") else None,
        sweep=closing.spec.name,
        trial=champion.number,
    )
    save_model(network, card, closing.home.sweep(closing.spec.name).champion)


def write_report(
    closing: Closing,
    trials: Sequence[TrialRecord],
    champion: Champion,
    baselines: Sequence[Standing],
    mistakes: Mistakes | None,
) -> list[str]:
    """Writes the sweep in one picture, and the champion's mistakes as tables and picture; returns the paths."""
    spec, folder = closing.spec, closing.home.sweep(closing.spec.name).report
    in_folds = f" in {spec.data.folds} folds" if spec.data.folds else ""
    title = f"{spec.name}: {spec.model.label}, {closing.data.size('train')} pictures to learn from{in_folds}"
    picture = compose(title, trials, spec.metric, spec.mode, champion, baselines)
    paths = [folder / "sweep.png"]
    write_bytes(str(paths[0]), draw(picture))
    if isinstance(mistakes, Confusion):
        paths += write_confusion(mistakes, folder, f"{spec.name}: trial {champion.number} on the test side")
    elif mistakes is not None:
        paths += write_labels(mistakes, folder)
    return [str(path) for path in paths]


def write_probe_pictures(
    closing: Closing, trials: Sequence[TrialRecord], probes: Sequence[dict[str, Any]]
) -> list[str]:
    """Draws what the probe said of each depth beside what trials reached there, per backbone; returns the paths."""
    spec, folder = closing.spec, closing.home.sweep(closing.spec.name).report
    paths = []
    for name in dict.fromkeys(probe.get("backbone") for probe in probes):
        path = folder / ("probe.png" if name is None else f"probe-{name}.png")
        title = f"{spec.name}: {name or spec.model.label}"
        own = [trial for trial in trials if trial.params.get("backbone") == name]
        picture = compose_probe(title, [probe for probe in probes if probe.get("backbone") == name], own)
        write_bytes(str(path), draw_probe(picture))
        paths.append(str(path))
    return paths


def register_champion(closing: Closing, champion: Champion, tracking_uri: str, run_id: str, time_s: float) -> Champion:
    """Registers the champion's model and gives it the alias it has earned on the test side."""
    from tuner.models.promotion import Score, promote
    from tuner.models.registry import register_once

    spec = closing.spec
    name = spec.tracking.model_name or spec.name
    metrics = {f"val/{name}": value for name, value in champion.standing.val.items()}
    metrics |= {f"test/{name}": value for name, value in champion.standing.test.items()}
    version = register_once(
        closing.home.sweep(spec.name).champion,
        name,
        tracking_uri,
        run_id=run_id,
        time_s=time_s,
        metrics=metrics,
        epoch=_moment_of(closing, champion),
        tags={"thaw.sweep": spec.name, "thaw.trial": str(champion.number), **lineage_tags(champion)},
    )
    metric = bare(spec.metric)
    score = Score(
        value=champion.standing.test.get(metric),
        test_digest=closing.data.test_digest,
        class_names=champion.config.data.class_names,
        metric=metric,
        costs=champion.config.costs if metric == "cost" else None,
    )
    side_px = stored_side_px(spec.data)
    decision = promote(
        version, score, tracking_uri, lambda uri: _measure(uri, tracking_uri, champion.config, side_px, metric)
    )
    return replace(champion, model_uri=version.uri, alias=decision.alias, reason=decision.reason)


def _moment_of(closing: Closing, champion: Champion) -> Moment | None:
    """When the champion's best epoch was journaled; None where it is another trial's, which it went on from."""
    from tuner.models.registry import Moment

    for record in reversed(read_records(closing.home.sweep(closing.spec.name).journal)):
        if record["event"] == "epoch" and (record["number"], record["epoch"]) == (champion.number, champion.epoch):
            return Moment(champion.epoch, record["time"])
    return None


def _measure(uri: str, tracking_uri: str, config: TrialConfig, side_px: int, metric: str) -> float:
    """A metric of a registered model, which decides as its own card says, on the test side of ``config``.

    Raises:
        ValueError: The model cannot be judged by these pictures, or may have learnt from some of them.
    """
    import torch

    from trainables.data.label_sets import members_of
    from trainables.data.sharing import open_table
    from trainables.data.splits import is_dealt_by_source, labelled_rows, sides_of
    from trainables.training.label_scores import judge_labels
    from trainables.training.scores import judge
    from tuner.models.classifier import Classifier

    classifier = Classifier.load(uri, tracking_uri)
    card = classifier.card
    if (card.labels == "multi") != (config.data.label_separator is not None):
        raise ValueError("it gives another number of labels to a picture")
    table = open_table(config.data)
    data = config.data.model_copy(update={"class_names": card.class_names})
    rows, labels = labelled_rows(table, data)
    tested = sides_of(table, rows, data) == "test"
    if card.split is None:
        raise ValueError("it does not say which pictures it has learnt from")
    is_other = card.data_fingerprint != data.fingerprint
    if is_other and (card.is_dealt_by_source or is_dealt_by_source(table, data)):
        raise ValueError("it has learnt from other pictures, and the sides that the source gave them are not known")
    as_then = data.model_copy(update={"split": card.split, "group_pattern": card.group_pattern, "folds": 0})
    if (sides_of(table, rows, as_then)[tested] != "test").any():
        raise ValueError("it may have learnt from some of them, which were dealt to sides otherwise then")
    pictures = (_with_detail(table.image(int(row)), side_px, card.image_size_px) for row in rows[tested])
    probabilities = classifier.probabilities(pictures)
    if data.label_separator is not None:
        members_SK = members_of(table.class_names, data.class_names, data.label_separator)
        logits = probabilities.double().logit(eps=1e-12)  # what rounds to 0 or 1 stays finite
        return judge_labels(logits, torch.from_numpy(members_SK[labels[tested]])).metrics[metric]
    # The order of the classes may be another than the card's.
    order = [config.data.class_names.index(name) for name in card.class_names]
    costs = None if config.costs is None else np.array(config.costs)[np.ix_(order, order)]
    own = None if card.costs is None else torch.tensor(card.costs)
    return judge(probabilities, torch.from_numpy(labels[tested]), own, costs).metrics[metric]


def _with_detail(image_CHW: torch.Tensor, side_px: int, seen_px: int) -> torch.Tensor:
    """The picture, unless it was shrunk to less than a network sees: enlarged again it would be judged by a blur."""
    if min(image_CHW.shape[1:]) == side_px < seen_px:
        raise ValueError(f"it sees pictures of {seen_px} px, and this sweep keeps them at {side_px} px")
    return image_CHW
