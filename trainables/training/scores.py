"""What a side of the split says about a classifier: what its pictures are taken for, and rates from that.

In: logits and labels, and what mistakes cost where that is known. Out: a confusion matrix, and the metrics that follow
from it and from the ranks of scores. A decision is of one picture's logits alone, so nothing here depends on how the
pictures were dealt to batches and ranks.

Axes: B pictures of a batch, N of a side, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trainables.training.auroc import class_areas, mean_defined


@dataclass(frozen=True)
class Evaluation:
    """Scores of one side.

    Attributes:
        metrics: ``loss``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``; ``auroc`` where a class has pictures and
            another has too; ``cost`` where mistakes have costs.
        confusion: int64 [K, K], rows are true classes, columns what was decided. Where pictures have several labels,
            one such table per class: [K, 2, 2].
        true: int64 [N], the classes of the pictures in the side's order; all 1 where pictures have several labels.
        decided: int64 [N], what each was taken for; where pictures have several labels, 1 if all of them are right.
        areas: Under the ROC curve, of each class; see `class_areas`. Empty where pictures have several labels.
        average_precisions: Of the classes, where pictures have several labels; None for a class without pictures.
    """

    metrics: dict[str, float]
    confusion: np.ndarray
    true: np.ndarray
    decided: np.ndarray
    areas: tuple[float, ...] = ()
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


def count_confusion(decided_B: torch.Tensor, labels_B: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Pictures by true class (rows) and by what `decide` takes them for (columns): int64 [K, K]."""
    # One line of our own: importing torchmetrics for it takes two seconds of every worker's start (it imports SciPy).
    return torch.bincount(labels_B * num_classes + decided_B, minlength=num_classes**2).view(num_classes, -1)


def mean_cost(confusion_KK: np.ndarray, costs_KK: np.ndarray) -> float:
    """What a picture's decision cost on average; 0 where there are no pictures."""
    return float((confusion_KK * costs_KK).sum() / max(1, confusion_KK.sum()))


def judge_whole(
    loss: float,
    decided_N: torch.Tensor,
    logits_NK: torch.Tensor,
    labels_N: torch.Tensor,
    costs_KK: np.ndarray | None,
) -> Evaluation:
    """Scores of a whole side.

    Args:
        loss: The mean of its pictures.
        decided_N: What each was taken for.
        logits_NK: Of the same.
        labels_N: Their classes.
        costs_KK: What decisions cost; None where that is not known.
    """
    confusion_KK = count_confusion(decided_N, labels_N, logits_NK.shape[1]).cpu().numpy()
    areas = class_areas(logits_NK, labels_N)
    metrics = {"loss": loss, **rates(confusion_KK)}
    area = mean_defined(areas)
    if area is not None:
        metrics["auroc"] = area
    if costs_KK is not None:
        metrics["cost"] = mean_cost(confusion_KK, costs_KK)
    return Evaluation(metrics, confusion_KK, labels_N.cpu().numpy(), decided_N.cpu().numpy(), tuple(areas.tolist()))


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
    loss = torch.nn.functional.nll_loss(logits_NK, labels_N).item() if len(labels_N) else 0.0
    return judge_whole(loss, decide(logits_NK, decided_by_KK), logits_NK, labels_N, costs_KK)


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
