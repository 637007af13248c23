"""Who wins, and what it is compared with."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainables.config import BackboneConfig, DataConfig, OptimizerConfig, TrialConfig, WeightsFile
from tuner.ending.refitting import diverged_refits, is_refit, kept_model
from tuner.ending.steps import places_of, shift_of
from tuner.records.champion import baseline_config, best_epoch, choose_champion, seconds_of, why_none
from tuner.records.journal import TrialRecord
from tuner.report.spread import explanation, standard_error, with_errors


def record(number: int, accuracies: list[float], outcome: str | None = "completed", loss: float = 1.0) -> TrialRecord:
    epochs = tuple(
        {"epoch": epoch, "val/accuracy": accuracy, "val/loss": loss} for epoch, accuracy in enumerate(accuracies, 1)
    )
    return TrialRecord(number, {"lr": 0.1}, epochs, outcome)


def test_best_epoch_is_the_first_of_equal_ones() -> None:
    assert best_epoch(record(0, [0.5, 0.9, 0.9]), "val/accuracy", "max")["epoch"] == 2
    assert best_epoch(record(0, [0.5, 0.9, 0.4]), "val/accuracy", "min")["epoch"] == 3
    assert best_epoch(record(0, [math.nan]), "val/accuracy", "max") is None


def test_champion_counts_stopped_trials_but_no_failed_ones() -> None:
    trials = [record(0, [0.5]), record(1, [0.8], "stopped_early"), record(2, [0.9], "failed"), record(3, [0.95], None)]
    assert choose_champion(trials, "val/accuracy", "max").number == 1


def test_a_refit_that_diverged_is_its_trials_and_no_baselines() -> None:
    def refit(number: int, name: str, champion: int, outcome: str) -> list[dict[str, Any]]:
        begun = {"event": "refit", "number": number, "name": name, "champion": champion}
        return [begun, {"event": "end", "number": number, "outcome": outcome}]

    records = [
        *refit(20_000, "trial 3", 3, "diverged"),
        *refit(20_010, "trial 5", 5, "completed"),
        *refit(20_011, "baseline head_only", 5, "diverged"),
        {"event": "end", "number": 5, "outcome": "diverged"},
    ]
    assert diverged_refits(records) == {3}


def test_a_baseline_keeps_its_place_whatever_the_list_is() -> None:
    def begun(number: int, name: str, champion: int) -> dict[str, Any]:
        return {"event": "baseline", "number": number, "name": name, "champion": champion}

    assert places_of([], 3, ["head_only", "from_scratch"]) == {"head_only": 1, "from_scratch": 2}
    records = [begun(10_001, "from_scratch", 3), begun(10_011, "head_only", 5), begun(10_012, "full_finetune", 5)]
    assert places_of(records, 3, ["head_only", "from_scratch"]) == {"from_scratch": 1, "head_only": 2}
    expected = {"head_only": 1, "full_finetune": 2, "from_scratch": 3}
    assert places_of(records, 5, ["from_scratch"]) == expected


def test_equal_champions_are_told_apart_by_loss_then_by_number() -> None:
    trials = [record(0, [0.8], loss=0.5), record(1, [0.8], loss=0.4), record(2, [0.8], loss=0.4)]
    assert choose_champion(trials, "val/accuracy", "max").number == 1


def test_no_champion_says_why() -> None:
    failed = [TrialRecord(n, {}, (), "failed", "out of memory") for n in range(2)]
    trials = [*failed, TrialRecord(2, {}, (), "diverged", "NaN")]
    assert choose_champion(trials, "val/accuracy", "max") is None
    assert why_none(trials) == "2 x failed: out of memory; 1 x diverged: NaN"
    assert why_none([]) == "no trial was run"


@pytest.fixture
def champion() -> TrialConfig:
    return TrialConfig(
        data=DataConfig(table="t", fingerprint="f", class_names=("a", "b"), image_size_px=16),
        backbone=BackboneConfig(name="lenet", weights=WeightsFile(uri="w", sha256="s")),
        freeze_depth=2,
        optimizer=OptimizerConfig(lr=0.02, backbone_lr_ratio=0.5, layer_decay=0.7),
        mixup_alpha=0.2,
        class_balance="balanced",
        ema_decay=0.99,
        grad_accumulation=2,
    )


def test_baselines_change_only_what_they_say(champion: TrialConfig) -> None:
    head_only = baseline_config("head_only", champion, num_stages=4)
    assert head_only == champion.model_copy(update={"freeze_depth": 4})
    kept = {"mixup_alpha": 0.2, "class_balance": "balanced", "ema_decay": 0.99, "grad_accumulation": 2}
    for name in ("full_finetune", "from_scratch"):
        baseline = baseline_config(name, champion, num_stages=4)
        assert {field: getattr(baseline, field) for field in kept} == kept
    full = baseline_config("full_finetune", champion, num_stages=4)
    assert (full.freeze_depth, full.optimizer.backbone_lr_ratio, full.backbone) == (0, 0.1, champion.backbone)
    assert full.optimizer.layer_decay == 1.0, "at a tenth of the head's rate, all of it"
    scratch = baseline_config("from_scratch", champion, num_stages=4)
    assert (scratch.freeze_depth, scratch.backbone.weights, scratch.optimizer.lr) == (0, None, 0.02)
    assert (scratch.optimizer.backbone_lr_ratio, scratch.optimizer.layer_decay) == (1.0, 1.0)


def test_over_folds_the_standard_error_counts_what_they_share() -> None:
    assert standard_error(0.03, 5, 1) == pytest.approx(0.03 * math.sqrt(1 / 5 + 1 / 4))
    assert standard_error(0.03, 5, 3) == standard_error(0.03, 5, 1), "the deviation is of means over seeds already"
    assert standard_error(0.03, 0, 9) == pytest.approx(0.01)


def test_folds_are_fitted_again_and_seeds_keep_the_first(champion: TrialConfig) -> None:
    seeds = champion.model_copy(update={"repeats": 3})
    folds = seeds.model_copy(update={"data": champion.data.model_copy(update={"folds": 4})})
    assert [is_refit(each) for each in (champion, seeds, folds)] == [False, False, True]
    assert kept_model(champion, "here").config == kept_model(seeds, "here").config == champion
    assert (len(folds.replicas()), len(seeds.replicas()), champion.replicas()) == (12, 3, (champion,))
    assert folds.refit().data == folds.data.model_copy(update={"fold": "all"})
    assert folds.refit().replicas() == (folds.refit(),)
    assert baseline_config("head_only", folds, num_stages=4).replicas()[11].data.fold == 3
    scores = {"accuracy": 0.9, "accuracy_std": 0.04}
    assert with_errors(scores, folds) == {**scores, "accuracy_se": standard_error(0.04, 4, 3)}
    assert with_errors({"accuracy": 0.9}, champion) == {"accuracy": 0.9}
    assert explanation(champion, has_test=True) is None
    assert "4 folds, 3 seeds each" in str(explanation(folds, has_test=True))
    assert "over 3 seeds" in str(explanation(seeds, has_test=True))
    assert all("tested" in str(explanation(each, has_test=True)) for each in (folds, seeds))
    assert not any("tested" in str(explanation(each, has_test=False)) for each in (folds, seeds))


def test_the_seconds_of_a_run_are_those_of_its_epochs() -> None:
    assert seconds_of([{"time/train_s": 1.5, "time/val_s": 0.5}, {"time/train_s": 2.0}, {"val/loss": 1.0}]) == 4.0


def test_runs_beside_another_champion_have_other_numbers() -> None:
    records: list[dict[str, Any]] = [{"event": "champion", "number": number} for number in (3, 3, 7)]
    assert [shift_of(records[:1], 3), shift_of(records[:1], 7)] == [0, 10]
    assert [shift_of(records, number) for number in (3, 7, 9)] == [0, 10, 20]
    assert shift_of([], 9) == 0
    # Killed while the second one's baselines were trained, and then made longer: a third one wins.
    killed = [records[0], {"event": "baseline", "number": 10011, "champion": 7}, {"event": "totals"}]
    assert [shift_of(killed, number) for number in (3, 7, 9)] == [0, 10, 20]
