"""The area under the ROC curve, exactly: a statistic of ranks, in which ties count one half.

In: the logits and labels of a whole side. Out: one number. What it says does not add up over batches, so who deals a
side to several ranks gathers the logits first.

Axes: N pictures, K classes, k some of the classes.
"""

from __future__ import annotations

import torch

_SCORES_AT_ONCE = 1 << 22
_ROWS_AT_ONCE = 4096


def auroc(logits_NK: torch.Tensor, labels_N: torch.Tensor) -> float | None:
    """How often a picture of a class scores above one of another class, in [0, 1]; 0.5 is chance.

    With two classes, of the second class against the first; with more, the mean of each class against the rest
    (Provost & Domingos 2001, unweighted) by the class's probability. A class without pictures on this side, or with all
    of them, has no value and is left out of the mean.

    Returns:
        None where no class has a value.
    """
    num_classes = logits_NK.shape[1]
    if num_classes == 2:  # noqa: PLR2004
        # The difference says the same as the probability and does not saturate; both classes give one value.
        margins_1N = (logits_NK[:, 1].double() - logits_NK[:, 0].double()).unsqueeze(0)
        values_K = _areas(margins_1N, (labels_N == 1).unsqueeze(0))
    else:
        norms_N = torch.cat([rows.double().logsumexp(1) for rows in logits_NK.split(_ROWS_AT_ONCE)])
        classes_K = torch.arange(num_classes, device=logits_NK.device)
        width = max(1, _SCORES_AT_ONCE // max(1, len(labels_N)))
        values_K = torch.cat(
            [
                _areas(logits_NK[:, some].T.double() - norms_N, labels_N == some.unsqueeze(1))
                for some in classes_K.split(width)
            ]
        )
    defined = values_K[~values_K.isnan()]
    return defined.mean().item() if len(defined) else None


def mean_area(scores_kN: torch.Tensor, are_positive_kN: torch.Tensor) -> float | None:
    """The mean area of some classes by their own scores; None where none has both positive and negative pictures."""
    values_k = _areas(scores_kN, are_positive_kN)
    defined = values_k[~values_k.isnan()]
    return defined.mean().item() if len(defined) else None


def _areas(scores_kN: torch.Tensor, are_positive_kN: torch.Tensor) -> torch.Tensor:
    """Mann and Whitney's U by its share of all pairs (Hanley & McNeil 1982) [k]; NaN where there are no pairs."""
    scores_kN = scores_kN.contiguous()
    ordered_kN = scores_kN.sort(1).values.contiguous()
    # Twice the middle rank of each score among all, from 1: whole numbers, so that sums are exact.
    twice_kN = torch.searchsorted(ordered_kN, scores_kN) + torch.searchsorted(ordered_kN, scores_kN, right=True) + 1
    num_positive_k = are_positive_kN.sum(1)
    num_negative_k = are_positive_kN.shape[1] - num_positive_k
    twice_u_k = (twice_kN * are_positive_kN).sum(1) - num_positive_k * (num_positive_k + 1)
    return twice_u_k.double() / (2 * num_positive_k * num_negative_k)
