"""Metrics against scikit-learn's, on the same predictions."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional import classification as tm
from training_support import DEVICE

from trainables.config import SplitConfig, TrialConfig
from trainables.ranks import Ranks
from trainables.training import auroc as auroc_module
from trainables.training.auroc import class_areas, mean_defined
from trainables.training.loop import TrialRun
from trainables.training.scores import count_confusion, decide, mean_cost, rates
from trainables.training.workbench import Workbench


def sklearn_rates(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class that is predicted and has no pictures
        return {
            "accuracy": sk.accuracy_score(labels, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
            "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        }


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40),
    middle=st.integers(0, 40),
)
def test_rates_are_those_of_scikit_learn_even_for_classes_without_pictures(
    pairs: list[tuple[int, int]], middle: int
) -> None:
    labels, predicted = (np.array(values) for values in zip(*pairs, strict=True))
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted), 5).float()
    parts = [
        count_confusion(decide(logits[part]), torch.from_numpy(labels[part]), 5)
        for part in (slice(middle), slice(middle, None))
    ]
    confusion = sum(parts).numpy()
    assert np.array_equal(confusion, sk.confusion_matrix(labels, predicted, labels=range(5)))
    assert rates(confusion) == pytest.approx(sklearn_rates(labels, predicted), abs=1e-12)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_rates_are_those_of_torchmetrics(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, num_classes, generator=generator)
    labels = torch.randint(num_classes, (200,), generator=generator)
    confusion = count_confusion(decide(logits), labels, num_classes)
    assert torch.equal(confusion, tm.multiclass_confusion_matrix(logits, labels, num_classes))
    assert rates(confusion.numpy()) == pytest.approx(
        {
            "accuracy": tm.multiclass_accuracy(logits, labels, num_classes, average="micro").item(),
            "balanced_accuracy": tm.multiclass_accuracy(logits, labels, num_classes, average="macro").item(),
            "macro_f1": tm.multiclass_f1_score(logits, labels, num_classes, average="macro").item(),
        },
        abs=1e-6,
    )


def test_a_side_without_pictures_scores_nothing() -> None:
    assert rates(np.zeros((3, 3), np.int64)) == {"accuracy": 0.0, "balanced_accuracy": 0.0, "macro_f1": 0.0}


def sklearn_auroc(logits: torch.Tensor, labels: np.ndarray) -> float | None:
    """The mean over the classes for which scikit-learn has a value."""
    # Not by log_softmax: where probabilities are equal, its rounding may tell them apart.
    scores, classes = (logits.double() - logits.double().logsumexp(1, keepdim=True)).numpy(), range(logits.shape[1])
    if logits.shape[1] == 2:
        scores, classes = (logits[:, 1:] - logits[:, :1]).double().numpy().repeat(2, 1), range(1, 2)
    defined = [name for name in classes if 0 < (labels == name).sum() < len(labels)]
    values = [sk.roc_auc_score(labels == name, scores[:, name]) for name in defined]
    return float(np.mean(values)) if values else None


@settings(deadline=None)  # the first call imports
@given(
    num_classes=st.integers(2, 4),
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(-2, 2), min_size=4, max_size=4)), min_size=1, max_size=30
    ),
)
def test_auroc_is_that_of_scikit_learn_with_ties_and_for_absent_classes(
    num_classes: int, rows: list[tuple[int, list[int]]]
) -> None:
    labels = np.array([label % num_classes for label, _ in rows], np.int64)
    logits = torch.tensor([values for _, values in rows], dtype=torch.float32).view(-1, 4)[:, :num_classes]
    assert mean_defined(class_areas(logits, torch.from_numpy(labels))) == pytest.approx(
        sklearn_auroc(logits, labels), abs=1e-12
    )


@pytest.mark.parametrize("num_classes", [2, 7])
def test_auroc_is_that_of_torchmetrics_and_of_any_number_of_classes_at_once(
    num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, num_classes, generator=generator)
    labels = torch.randint(num_classes, (300,), generator=generator)
    whole = mean_defined(class_areas(logits, labels))
    assert whole == pytest.approx(tm.multiclass_auroc(logits.softmax(1), labels, num_classes).item(), abs=1e-6)
    monkeypatch.setattr(auroc_module, "_SCORES_AT_ONCE", 900)
    monkeypatch.setattr(auroc_module, "_ROWS_AT_ONCE", 64)
    assert mean_defined(class_areas(logits, labels)) == whole


def test_auroc_tells_apart_what_probabilities_no_longer_do() -> None:
    """Both probabilities round to 1."""
    logits = torch.tensor([[0.0, 50.0], [0.0, 51.0]])
    assert mean_defined(class_areas(logits, torch.tensor([0, 1]))) == 1.0


def test_decisions_are_expected_to_cost_least() -> None:
    logits = torch.tensor([[0.7, 0.3], [0.95, 0.05], [0.2, 0.8]]).log()
    assert decide(logits).tolist() == [0, 0, 1]
    # A missed 1 costs nine times a false one: from a probability of 0.1 on, 1 is the cheaper decision.
    costs = torch.tensor([[0.0, 1.0], [9.0, 0.0]])
    assert decide(logits, costs).tolist() == [1, 0, 1]
    labels = torch.tensor([0, 1, 1])
    confusion = count_confusion(decide(logits, costs), labels, len(costs))
    assert confusion.tolist() == [[0, 1], [1, 1]]
    assert mean_cost(confusion.numpy(), costs.numpy()) == pytest.approx(10 / 3)
    assert mean_cost(np.zeros((2, 2), np.int64), costs.numpy()) == 0.0


def test_equal_costs_decide_as_no_costs_do() -> None:
    logits = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    equal = 1 - torch.eye(6)
    assert torch.equal(decide(logits, equal), decide(logits))
    confusion = count_confusion(decide(logits, equal), torch.arange(500) % 6, 6).numpy()
    assert mean_cost(confusion, equal.numpy()) == pytest.approx(1 - rates(confusion)["accuracy"])


@pytest.mark.parametrize("depth", [0, 2])
def test_a_trials_scores_are_those_of_its_own_predictions(config: Callable[..., TrialConfig], depth: int) -> None:
    costs = np.where(np.eye(5) == 1, 0.0, np.arange(1.0, 6.0)[:, None])
    trial = config(
        depth=depth,
        epochs=4,
        split=SplitConfig(train=0.4, val=0.3, test=0.3),
        optimizer={"lr": 3e-3},
        costs=costs.tolist(),
    )
    run = TrialRun(trial, Workbench(), Ranks(DEVICE))
    for _ in range(trial.epochs):
        reported = run.run_epoch()
    logits: list[torch.Tensor] = []
    handle = run._tail.register_forward_hook(lambda _, __, output: logits.append(output.detach()))
    evaluation = run.evaluate("val")
    handle.remove()
    probabilities = torch.cat(logits).double().softmax(1).cpu().numpy()
    labels, predicted = run.side("val").labels, (probabilities @ costs).argmin(1)
    expected = {
        "loss": sk.log_loss(labels, probabilities, labels=range(5)),
        **sklearn_rates(labels, predicted),
        "auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "cost": costs[labels, predicted].mean(),
    }
    assert expected["accuracy"] > 0.5
    # The loss is of float32 logits.
    assert evaluation.metrics == pytest.approx(expected, rel=1e-5)
    assert {f"val/{name}": value for name, value in evaluation.metrics.items()} == {
        name: value for name, value in reported.items() if name.startswith("val/")
    }
    assert np.array_equal(evaluation.confusion, sk.confusion_matrix(labels, predicted, labels=range(5)))
