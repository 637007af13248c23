"""Which trial wins, what it is compared with, and what its test result is worth.

Pure functions over the journal's trials; the effects (scoring on a lane, registering) are the sweep's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from search_spaces.spec import BaselineName
from trainables.config import OptimizerConfig, TrialConfig
from tuner.metric_names import bare
from tuner.records.journal import TrialRecord


def best_epoch(trial: TrialRecord, metric: str, mode: str) -> dict[str, float] | None:
    """The metrics of a trial's best epoch; of equal epochs the first, as the lane keeps them. None without any."""
    sign = 1 if mode == "max" else -1
    scored = [epoch for epoch in trial.epochs if math.isfinite(epoch.get(metric, math.nan))]
    return max(scored, key=lambda epoch: (sign * epoch[metric], -epoch["epoch"]), default=None)


def totals_of(epochs: Sequence[Mapping[str, float]], metric: str, mode: str) -> dict[str, float]:
    """What a trial's end adds to its epochs: the best value and its epoch, and what was computed in all."""
    totals: dict[str, float] = {}
    best = best_epoch(TrialRecord(0, {}, tuple(dict(epoch) for epoch in epochs)), metric, mode)
    if best is not None:
        totals = {f"best/{bare(metric)}": best[metric], "best/epoch": best["epoch"]}
    for name in ("images", "gflops", "images_from_store", "flops_saved"):
        totals[f"compute/trial_{name}"] = sum(epoch.get(f"compute/{name}", 0.0) for epoch in epochs)
    return totals


def rank_trials(trials: Sequence[TrialRecord], metric: str, mode: str) -> list[TrialRecord]:
    """Those that could be champion, by their best epoch; of equal ones by validation loss, then by number.

    Trials that were stopped early count: their best weights are kept. Trials that failed or diverged do not.
    """
    fit = [trial for trial in trials if is_fit(trial, metric)]
    return sorted(fit, key=lambda trial: merit(trial, metric, mode), reverse=True)


def seconds_of(epochs: Iterable[Mapping[str, float]]) -> float:
    """What epochs took, training and validation, however often they were interrupted."""
    return sum(epoch.get("time/train_s", 0.0) + epoch.get("time/val_s", 0.0) for epoch in epochs)


def choose_champion(trials: Sequence[TrialRecord], metric: str, mode: str) -> TrialRecord | None:
    """The first of `rank_trials`; None without any."""
    return next(iter(rank_trials(trials, metric, mode)), None)


def is_fit(trial: TrialRecord, metric: str) -> bool:
    """Whether an ended trial could be champion: it did not fail and has an epoch with a score."""
    return trial.outcome in ("completed", "stopped_early") and best_epoch(trial, metric, "max") is not None


def merit(trial: TrialRecord, metric: str, mode: str) -> tuple[float, float, int]:
    """By which fit trials are compared: the greatest is champion."""
    sign = 1 if mode == "max" else -1
    epoch = best_epoch(trial, metric, mode) or {}
    return (sign * epoch[metric], -epoch.get("val/loss", math.inf), -trial.number)


def baseline_config(name: BaselineName, champion: TrialConfig, num_stages: int) -> TrialConfig:
    """A run to compare the champion with: its own settings, with only what the name says changed.

    ``head_only`` freezes every stage; ``full_finetune`` freezes none, all of the backbone learning at a tenth of the
    head's rate; ``from_scratch`` trains everything from random weights, the head's too, at one rate.
    """
    changes: dict[str, Any] = {"freeze_depth": num_stages if name == "head_only" else 0}
    if name == "full_finetune":
        changes["optimizer"] = _at_ratio(champion, 0.1)
    if name == "from_scratch":
        changes["optimizer"] = _at_ratio(champion, 1.0)
        changes["backbone"] = champion.backbone.model_copy(update={"weights": None})
        changes["head_init"] = "random"
        changes["bn_mode"] = "update"  # there are no statistics to keep yet
    return champion.model_copy(update=changes)


def _at_ratio(champion: TrialConfig, ratio: float) -> OptimizerConfig:
    return champion.optimizer.model_copy(update={"backbone_lr_ratio": ratio, "layer_decay": 1.0})


def why_none(trials: Sequence[TrialRecord]) -> str:
    """Why no trial can win: the reasons that there are, the most frequent first."""
    reasons: dict[str, int] = {}
    for trial in trials:
        text = f"{trial.outcome}: {trial.reason}" if trial.reason else str(trial.outcome)
        reasons[text] = reasons.get(text, 0) + 1
    if not reasons:
        return "no trial was run"
    return "; ".join(f"{count} x {text}" for text, count in sorted(reasons.items(), key=lambda item: -item[1]))
