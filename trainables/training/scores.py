"""What a side of the split says about a classifier: counts that add up over batches and ranks, and rates from them.

In: logits and labels, and what mistakes cost where that is known. Out: a confusion matrix, and the metrics that follow
from it alone. A sum of matrices is the matrix of the whole, so nothing here depends on how the pictures were dealt to
batches and ranks.

Axes: B pictures, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trainables.training.auroc import auroc


@dataclass(frozen=True)
class Evaluation:
    """Scores of one side.

    Attributes:
        metrics: ``loss``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``; ``auroc`` where a class has pictures and
            another has too; ``cost`` where mistakes have costs.
        confusion: int64 [K, K], rows are true classes, columns what was decided. Where pictures have several labels,
            one such table per class: [K, 2, 2].
        average_precisions: Of the classes, where pictures have several labels; None for a class without pictures.
    """

    metrics: dict[str, float]
    confusion: np.ndarray
    average_precisions: tuple[float | None, ...] = ()


def expected_costs(probabilities_BK: torch.Tensor, costs_KK: torch.Tensor) -> torch.Tensor:
    """What each decision is expected to cost: float64 [B, K], columns are decisions (Elkan 2001, equation 1).

    Args:
        probabilities_BK: Of the classes, rows summing to 1.
        costs_KK: By true class (rows) and decision (columns).
    """
    return probabilities_BK.double() @ costs_KK.double()


def decide(logits_BK: torch.Tensor, costs_KK: torch.Tensor | None = None) -> torch.Tensor:
    """What each picture is taken for [B]: the most probable class, or with costs the one expected to cost least."""
    if costs_KK is None:
        return logits_BK.argmax(1)
    return expected_costs(logits_BK.double().softmax(1), costs_KK).argmin(1)


def count_confusion(
    logits_BK: torch.Tensor, labels_B: torch.Tensor, costs_KK: torch.Tensor | None = None
) -> torch.Tensor:
    """Pictures by true class (rows) and by what `decide` takes them for (columns): int64 [K, K]."""
    num_classes = logits_BK.shape[1]
    decided_B = decide(logits_BK, costs_KK)
    # One line of our own: importing torchmetrics for it takes two seconds of every worker's start (it imports SciPy).
    return torch.bincount(labels_B * num_classes + decided_B, minlength=num_classes**2).view(num_classes, -1)


def mean_cost(confusion_KK: np.ndarray, costs_KK: np.ndarray) -> float:
    """What a picture's decision cost on average; 0 where there are no pictures."""
    return float((confusion_KK * costs_KK).sum() / max(1, confusion_KK.sum()))


def judge_whole(
    confusion_KK: np.ndarray, logits_NK: torch.Tensor, labels_N: torch.Tensor, costs_KK: np.ndarray | None
) -> dict[str, float]:
    """The metrics of a whole side but its loss.

    Args:
        confusion_KK: Its decisions, counted.
        logits_NK: Of all its pictures.
        labels_N: Of the same.
        costs_KK: What decisions cost; None where that is not known.
    """
    metrics = rates(confusion_KK)
    area = auroc(logits_NK, labels_N)
    if area is not None:
        metrics["auroc"] = area
    if costs_KK is not None:
        metrics["cost"] = mean_cost(confusion_KK, costs_KK)
    return metrics


def judge(
    probabilities_NK: torch.Tensor,
    labels_N: torch.Tensor,
    decided_by_KK: torch.Tensor | None = None,
    costs_KK: np.ndarray | None = None,
) -> Evaluation:
    """Scores probabilities that are all at hand.

    Args:
        probabilities_NK: Rows summing to 1.
        labels_N: Indices of the true classes.
        decided_by_KK: Costs by which decisions are made; None: the most probable class.
        costs_KK: Costs by which decisions are reckoned.
    """
    # What rounds to 0 counts as the least number above it: a loss is large then, and finite.
    logits_NK = probabilities_NK.double().clamp(min=torch.finfo(torch.float32).tiny).log()
    confusion_KK = count_confusion(logits_NK, labels_N, decided_by_KK).cpu().numpy()
    loss = torch.nn.functional.nll_loss(logits_NK, labels_N).item() if len(labels_N) else 0.0
    return Evaluation({"loss": loss, **judge_whole(confusion_KK, logits_NK, labels_N, costs_KK)}, confusion_KK)


def rates(confusion_KK: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro F1 as scikit-learn defines them; 0 where there are no pictures.

    Balanced accuracy is the mean recall of the classes that have pictures; macro F1 the mean over the classes that
    have pictures or were predicted.
    """
    hits_K = np.diag(confusion_KK).astype(float)
    true_K, predicted_K = confusion_KK.sum(1), confusion_KK.sum(0)
    has_pictures_K, is_seen_K = true_K > 0, true_K + predicted_K > 0
    if not has_pictures_K.any():
        return {"accuracy": 0.0, "balanced_accuracy": 0.0, "macro_f1": 0.0}
    return {
        "accuracy": float(hits_K.sum() / true_K.sum()),
        "balanced_accuracy": float((hits_K[has_pictures_K] / true_K[has_pictures_K]).mean()),
        "macro_f1": float((2 * hits_K[is_seen_K] / (true_K + predicted_K)[is_seen_K]).mean()),
    }
