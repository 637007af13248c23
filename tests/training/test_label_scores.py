"""Pictures with several labels: metrics against scikit-learn's, the loss, and whole trials."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch.nn import functional as F
from training_support import (
    DEVICE,
    DoubleRun,
    RankGroup,
    assert_same_bits,
    build_config,
    finish,
    in_fresh_process,
    train,
)

from trainables.config import SplitConfig, TrialConfig
from trainables.data.label_sets import members_of, names_in, set_name
from trainables.data.packing import pack
from trainables.data.picture import Picture
from trainables.data.sources import Source, open_source
from trainables.ranks import Ranks
from trainables.training.label_scores import average_precisions, judge_labels, label_losses
from trainables.training.loop import TrialRun, Workbench
from trainables.training.replicas import ReplicatedRun

NAMES = ("big", "even", "round")


class LabelledDigits:
    """The digits, each with what is true of it; 1 and 3 have no label at all."""

    uri = "digits of several labels"

    def __init__(self) -> None:
        self._digits: Source = open_source("digits")

    def pictures(self) -> Sequence[Picture]:
        def labels(digit: int) -> list[str]:
            facts = {"big": digit >= 5, "even": digit % 2 == 0, "round": digit in (0, 6, 8, 9)}
            return [name for name, is_true in facts.items() if is_true]

        return [
            replace(picture, class_name=set_name(labels(int(picture.class_name)), "|"))
            for picture in self._digits.pictures()
        ]

    def signature(self) -> str:
        return self.uri


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    report = pack(LabelledDigits(), tmp_path_factory.mktemp("labels"), side_px=16)
    assert report.class_names == ("", "big", "big|even|round", "big|round", "even", "even|round")
    config = build_config(report, epochs=4, split=SplitConfig(train=0.2, val=0.1, test=0.7), optimizer={"lr": 5e-3})
    data = config.data.model_copy(update={"class_names": NAMES, "label_separator": "|"})
    return config.model_copy(update={"data": data, "label_smoothing": 0.1})


def labels_of(run: TrialRun, name: str) -> np.ndarray:
    """Which labels the pictures of a side have, from their digits: [N, K]."""
    members = members_of(run.side("val").table.class_names, NAMES, "|")
    return members[run.side(name).labels]


@settings(deadline=None)  # the first call imports
@given(
    st.lists(
        st.tuples(*[st.booleans()] * 3, *[st.integers(-2, 2)] * 3),
        min_size=1,
        max_size=25,
    )
)
def test_figures_are_those_of_scikit_learn_with_ties_and_for_absent_labels(rows: list[tuple[int, ...]]) -> None:
    table = np.array(rows, float)
    has, logits = table[:, :3].astype(bool), torch.from_numpy(table[:, 3:]).float() + 0.5
    evaluation = judge_labels(logits, torch.from_numpy(has))
    given_labels, scores = logits.numpy() >= 0, logits.sigmoid().double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f1 = sk.f1_score(has, given_labels, average="macro", zero_division=0)
    precisions = [sk.average_precision_score(has[:, k], scores[:, k]) if has[:, k].any() else None for k in range(3)]
    assert evaluation.average_precisions == pytest.approx(precisions, abs=1e-12)
    expected = {
        "loss": F.binary_cross_entropy_with_logits(logits.double(), torch.from_numpy(has).double()).item(),
        "accuracy": sk.accuracy_score(has, given_labels),
        "macro_f1": f1,
    }
    if defined := [value for value in precisions if value is not None]:
        expected["map"] = np.mean(defined)
    if areas := [sk.roc_auc_score(has[:, k], scores[:, k]) for k in range(3) if 0 < has[:, k].sum() < len(has)]:
        expected["auroc"] = np.mean(areas)
    assert evaluation.metrics == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(evaluation.confusion, sk.multilabel_confusion_matrix(has, given_labels))


def test_smoothing_moves_each_label_to_the_middle() -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    has = torch.rand(20, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    found = label_losses(logits, has, 0.2)
    expected = F.binary_cross_entropy_with_logits(logits, torch.where(has, 0.9, 0.1), reduction="none").mean(1)
    torch.testing.assert_close(found, expected)
    assert judge_labels(logits[:0], has[:0]).metrics == {"loss": 0.0, "accuracy": 0.0, "macro_f1": 0.0}
    assert average_precisions(logits[:0], has[:0]) == [None] * 4


def test_a_trial_learns_every_label(trial: TrialConfig) -> None:
    run = TrialRun(trial, Workbench(), Ranks(DEVICE))
    reported = [run.run_epoch() for _ in range(trial.epochs)]
    assert reported[-1]["train/loss"] < reported[0]["train/loss"]
    logits: list[torch.Tensor] = []
    handle = run._tail.register_forward_hook(lambda _, __, output: logits.append(output.detach()))
    evaluation = run.evaluate("val")
    handle.remove()
    has, scores = labels_of(run, "val"), torch.cat(logits).double().sigmoid().cpu().numpy()
    assert evaluation.metrics["map"] == pytest.approx(sk.average_precision_score(has, scores), abs=1e-12)
    assert evaluation.metrics["map"] > has.mean() + 0.2
    assert reported[-1]["val/map"] == evaluation.metrics["map"]
    assert names_in(run.side("val").table.class_names, "|") == NAMES


def test_over_folds_a_trial_is_the_mean_of_its_trainings(trial: TrialConfig) -> None:
    folded = trial.model_copy(update={"data": trial.data.model_copy(update={"folds": 3}), "epochs": 2})
    epochs, _ = finish(ReplicatedRun(folded, Workbench(), Ranks(DEVICE)))
    alone = [TrialRun(each, Workbench(), Ranks(DEVICE)) for each in folded.replicas()]
    own = [[run.run_epoch() for run in alone] for _ in range(2)]
    for name in ("train/loss", "val/loss", "val/map", "val/auroc", "val/macro_f1"):
        assert [each[name] for each in epochs] == pytest.approx([fmean(run[name] for run in each) for each in own])
    has = [labels_of(run, "val") for run in alone]
    assert np.ptp([len(each) for each in has]) <= len(NAMES)
    assert (np.ptp([each.sum(0) for each in has], axis=0) <= 2).all()


def evaluated(ranks: Ranks, config: TrialConfig) -> tuple[dict[str, float], list[dict[str, float]]]:
    run = DoubleRun(config, Workbench(), ranks)
    epochs = [run.run_epoch() for _ in range(2)]
    kept = [{k: v for k, v in epoch.items() if k.startswith(("train/", "val/"))} for epoch in epochs]
    return run.evaluate("test").metrics, kept


def test_two_ranks_are_one(two_ranks: RankGroup, trial: TrialConfig) -> None:
    metrics, epochs = evaluated(Ranks(DEVICE), trial)
    for found, of_epochs in two_ranks.call(evaluated, trial):
        assert found == pytest.approx(metrics, rel=1e-10)
        for epoch, expected in zip(of_epochs, epochs, strict=True):
            assert epoch == pytest.approx(expected, rel=1e-10)


def test_a_warm_process_is_as_good_as_a_fresh_one(trial: TrialConfig, config: Callable[..., TrialConfig]) -> None:
    """Another trial, of single labels, before it."""
    bench = Workbench()
    train(config(), bench)
    numbers, tensors = train(trial, bench)
    fresh_numbers, fresh_tensors = in_fresh_process(train, trial)
    assert numbers == fresh_numbers
    assert_same_bits(tensors, fresh_tensors)
