"""Metrics against scikit-learn's, on the same predictions."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional import classification as tm
from training_support import CPU

from trainables.config import SplitConfig, TrialConfig
from trainables.loop import TrialRun
from trainables.ranks import Ranks
from trainables.scores import count_confusion, rates
from trainables.workbench import Workbench


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
        count_confusion(logits[part], torch.from_numpy(labels[part])) for part in (slice(middle), slice(middle, None))
    ]
    confusion = sum(parts).numpy()
    assert np.array_equal(confusion, sk.confusion_matrix(labels, predicted, labels=range(5)))
    assert rates(confusion) == pytest.approx(sklearn_rates(labels, predicted), abs=1e-12)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_rates_are_those_of_torchmetrics(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, num_classes, generator=generator)
    labels = torch.randint(num_classes, (200,), generator=generator)
    confusion = count_confusion(logits, labels)
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


@pytest.mark.parametrize("depth", [0, 2])
def test_a_trials_scores_are_those_of_its_own_predictions(config: Callable[..., TrialConfig], depth: int) -> None:
    trial = config(depth=depth, epochs=4, split=SplitConfig(train=0.4, val=0.3, test=0.3), optimizer={"lr": 3e-3})
    run = TrialRun(trial, Workbench(), Ranks(CPU))
    for _ in range(trial.epochs):
        reported = run.run_epoch()
    logits: list[torch.Tensor] = []
    handle = run._tail.register_forward_hook(lambda _, __, output: logits.append(output.detach()))
    evaluation = run.evaluate("val")
    handle.remove()
    probabilities = torch.cat(logits).double().softmax(1).numpy()
    labels, predicted = run.side("val").labels, probabilities.argmax(1)
    expected = {"loss": sk.log_loss(labels, probabilities, labels=range(5)), **sklearn_rates(labels, predicted)}
    assert expected["accuracy"] > 0.5
    # The loss is of float32 logits.
    assert evaluation.metrics == pytest.approx(expected, rel=1e-5)
    assert {f"val/{name}": value for name, value in evaluation.metrics.items()} == {
        name: value for name, value in reported.items() if name.startswith("val/")
    }
    assert np.array_equal(evaluation.confusion, sk.confusion_matrix(labels, predicted, labels=range(5)))
