"""What a side of the split says about a classifier: counts that add up over batches and ranks, and rates from them.

In: logits and labels. Out: a confusion matrix, and from it alone the metrics of a trial. A sum of matrices is the
matrix of the whole, so nothing here depends on how the pictures were dealt to batches and ranks.

Axes: B pictures, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Evaluation:
    """Scores of one side.

    Attributes:
        metrics: ``loss``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``.
        confusion: int64 [K, K], rows are true classes.
    """

    metrics: dict[str, float]
    confusion: np.ndarray


def count_confusion(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Pictures by true class (rows) and by the class of the largest logit (columns): int64 [K, K]."""
    num_classes = logits_BK.shape[1]
    # One line of our own: importing torchmetrics for it takes two seconds of every worker's start (it imports SciPy).
    return torch.bincount(labels_B * num_classes + logits_BK.argmax(1), minlength=num_classes**2).view(num_classes, -1)


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
