"""What a side says about a classifier that gives every picture any number of labels.

In: the logits of a whole side and which labels its pictures have. Out: metrics, counts per class, and each class's
average precision, all as scikit-learn defines them. A label is given where its probability is at least a half.

Axes: N pictures, B pictures of a batch, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from trainables.training.auroc import mean_area
from trainables.training.scores import Evaluation


def label_losses(logits_BK: torch.Tensor, has_BK: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Each picture's loss [B]: binary cross-entropy, the mean over the classes.

    Args:
        logits_BK: Of the labels.
        has_BK: 1 where a picture has a label, else 0.
        smoothing: Share of each label's target that is spread over having it and not.
    """
    targets_BK = has_BK.to(logits_BK.dtype) * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits_BK, targets_BK, reduction="none").mean(1)


def average_precisions(logits_NK: torch.Tensor, has_NK: torch.Tensor) -> list[float | None]:
    """Of each class: the mean precision at its pictures, ranked by score, equal scores together; None without any.

    The step-wise sum of precision over recall, not interpolated (Zhu 2004; scikit-learn's ``average_precision_score``).
    """
    found: list[float | None] = []
    for scores_N, has_N in zip(logits_NK.T.double(), has_NK.T.bool(), strict=True):
        if not has_N.any():
            found.append(None)
            continue
        order_N = scores_N.argsort(descending=True)
        ranked_N, hits_N = scores_N[order_N], has_N[order_N].double().cumsum(0)
        # Of equal scores all are taken at once: the last of each run says how many are as high.
        is_last_N = torch.ones_like(has_N)
        is_last_N[:-1] = ranked_N[1:] != ranked_N[:-1]
        hits, places = hits_N[is_last_N], torch.arange(1, len(hits_N) + 1, device=hits_N.device)[is_last_N]
        gained = hits.diff(prepend=hits.new_zeros(1))
        found.append(float((gained * hits / places).sum() / hits_N[-1]))
    return found


def count_labels(logits_NK: torch.Tensor, has_NK: torch.Tensor) -> np.ndarray:
    """Per class a table of two rows (has the label not, has it) and two columns (not given, given): int64 [K, 2, 2]."""
    is_given_NK, has_NK = logits_NK >= 0, has_NK.bool()
    tables = [(~has_NK & ~is_given_NK, ~has_NK & is_given_NK), (has_NK & ~is_given_NK, has_NK & is_given_NK)]
    return np.array([[cell.sum(0).tolist() for cell in row] for row in tables], np.int64).transpose(2, 0, 1)


def judge_labels(logits_NK: torch.Tensor, has_NK: torch.Tensor) -> Evaluation:
    """The metrics of a whole side.

    ``loss``; ``map``, the mean of the classes' average precisions, and ``auroc``, that of their areas under the ROC
    curve, both without the classes that have no value; ``macro_f1``, 0 for a class that neither occurs nor is given, as
    scikit-learn counts it; ``accuracy``, the share of pictures whose labels are all right.
    """
    if not len(logits_NK):
        nothing = np.zeros(0, np.int64)
        return Evaluation(
            {"loss": 0.0, "accuracy": 0.0, "macro_f1": 0.0}, count_labels(logits_NK, has_NK), nothing, nothing
        )
    counts_K22 = count_labels(logits_NK, has_NK)
    true_K, given_K = counts_K22[:, 1].sum(1), counts_K22[:, :, 1].sum(1)
    precisions = average_precisions(logits_NK, has_NK)
    are_right_N = ((logits_NK >= 0) == has_NK.bool()).all(1)
    metrics = {
        "loss": label_losses(logits_NK.double(), has_NK).mean().item(),
        "accuracy": are_right_N.double().mean().item(),
        "macro_f1": float((2 * counts_K22[:, 1, 1] / np.maximum(1, true_K + given_K)).mean()),
    }
    if defined := [value for value in precisions if value is not None]:
        metrics["map"] = sum(defined) / len(defined)
    area = mean_area(logits_NK.T.double(), has_NK.T.bool())
    if area is not None:
        metrics["auroc"] = area
    decided_N = are_right_N.long().cpu().numpy()
    return Evaluation(metrics, counts_K22, np.ones_like(decided_N), decided_N, average_precisions=tuple(precisions))
