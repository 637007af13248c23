"""The end of a sweep, in order: champion tested, baselines trained, report written, model registered.

In: the journal's trials and the lanes. Out: records in the journal, files in the sweep's folder, a version in MLflow's
registry. The single steps are `tuner.ending.steps`'s. Whatever is repeated after an interruption comes out the same.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from search_spaces.space import SearchSpace
from trainables.config import TrialConfig
from trainables.files.storage import join
from trainables.jobs import BEST_CHECKPOINT
from trainables.training.checkpoint import is_whole
from tuner.cluster.lanes import LaneError
from tuner.ending.describing import flat, note
from tuner.ending.refitting import diverged_refits
from tuner.ending.steps import (
    Closing,
    places_of,
    register_champion,
    run_baselines,
    shift_of,
    test_champion,
    write_champion,
    write_probe_pictures,
    write_report,
)
from tuner.models.registry import MLflowAwayError
from tuner.networks.preparing import feature_settings
from tuner.networks.pretraining import Pretrained, Pretraining, register_pretrained
from tuner.networks.probing import probe_record
from tuner.outcomes import SweepFailedError
from tuner.progress import Progress
from tuner.records.champion import rank_trials, why_none
from tuner.records.journal import Record, TrialRecord, read_records, trials_of
from tuner.records.reuse import Reuse, bytes_held, reuse_of
from tuner.report.result import Champion, Standing
from tuner.tracking.mlflow_client import gist, outages
from tuner.tracking.runs import PATIENCE_S, Tracking


class Ended(NamedTuple):
    """What a sweep came to; a champion without a model's address is not registered yet."""

    champion: Champion
    baselines: list[Standing]
    reuse: Reuse


class EndPhase:
    """What happens when no trial is left to run.

    Args:
        closing: What the single steps work with.
        tracking: Tells MLflow, whose run ids the registry needs.
        pretrained: Weights that this sweep trained first, to be registered beside the champion.
        progress: Shows what happens.
    """

    def __init__(
        self,
        closing: Closing,
        tracking: Tracking,
        pretrained: Sequence[tuple[Pretraining, Pretrained]],
        progress: Progress,
    ) -> None:
        self._closing, self._tracking = closing, tracking
        self._pretrained, self._progress = pretrained, progress
        self._spec, self._record = closing.spec, closing.record

    def run(self, space: SearchSpace, bases: Mapping[str, TrialConfig]) -> Ended:
        """Everything, in order.

        Args:
            space: What was searched.
            bases: What the trials on each backbone have in common, by name.

        Raises:
            SweepFailedError: No trial can be champion; the journal says so too.
        """
        record = self._record
        while True:
            records = self._records()
            trials = trials_of(records)
            best = self._best_whole(trials, diverged_refits(records))
            closing = replace(
                self._closing,
                champion=best.number,
                shift=shift_of(records, best.number),
                places=places_of(records, best.number, self._spec.baselines),
            )
            config = space.trial_config(best.params, bases[space.backbone_of(best.params)])
            try:
                champion, model, confusion = test_champion(closing, best, config)
                break
            except LaneError:
                if best.number not in diverged_refits(self._records()):
                    raise
        baselines = run_baselines(closing, champion, space.stages_of(best.params))
        self._progress.phase("writing the champion's model")
        write_champion(closing, champion, model)
        report = write_report(closing, trials, champion, baselines, confusion)
        if probed := (probe_record(records) or {}).get("probes"):
            report += write_probe_pictures(closing, trials, probed)
        record("files", paths=report, folder="report")
        reuse = reuse_of(trials, bytes_held(feature_settings(self._spec, closing.home)))
        record("totals", metrics=reuse.metrics())
        text = note(champion, baselines, reuse, self._spec.metric)
        record("champion", number=champion.number, metrics=flat(champion.standing), note=text)
        champion = self._register(champion)
        if champion.model_uri is None:
            record("interrupted", reason="MLflow is away: the champion is not registered")
        else:
            record("finished", outcome="completed", reason=None)
        return Ended(champion, baselines, reuse)

    def _records(self) -> list[Record]:
        return read_records(self._closing.home.sweep(self._spec.name).journal)

    def _best_whole(self, trials: Sequence[TrialRecord], diverged: Collection[int]) -> TrialRecord:
        """The best trial whose weights are there and undamaged.

        With folds they are not needed: its refit makes others. One that diverged would do so again.
        """
        ranked = rank_trials(trials, self._spec.metric, self._spec.mode)
        for trial in ranked:
            if trial.number in diverged:
                text = f"trial {trial.number}: trained on all pictures it diverged; the next best counts"
                self._progress.note(text, style="yellow")
                continue
            if self._spec.data.folds:
                return trial
            uri = join(self._closing.directory(trial.number), BEST_CHECKPOINT)
            if is_whole(uri):
                return trial
            self._progress.note(f"trial {trial.number}: {uri} is lost or damaged; the next best counts", style="yellow")
        reason = "no trial has weights, or could be trained on all pictures" if ranked else why_none(trials)
        self._record("finished", outcome="failed", reason=reason)
        raise SweepFailedError(f"no trial of sweep {self._spec.name!r} succeeded: {reason}")

    def _register(self, champion: Champion) -> Champion:
        self._progress.phase("registering the champion")
        untold = self._tracking.flush(PATIENCE_S)
        run_id = self._tracking.run_id(champion.number)
        if untold or run_id is None:
            return champion
        uri = self._tracking.tracking_uri
        try:
            for pretraining, found in self._pretrained:
                register_pretrained(pretraining, found, self._closing.home, uri)
            registered = register_champion(self._closing, champion, uri, run_id, time.time())
        except MLflowAwayError as error:
            self._progress.note(str(error), style="yellow")
            return champion
        except outages() as error:
            self._progress.note(f"MLflow did not take the champion: {gist(error)}", style="yellow")
            return champion
        if registered.model_uri is not None:
            self._tracking.note_model(registered.model_uri)
        return registered
