"""The area under the ROC curve, exactly: a statistic of ranks, in which ties count one half.

In: the logits and labels of a whole side. Out: one number, or one of each class. What it says does not add up over
batches, so who deals a side to several ranks gathers the logits first.

Axes: N pictures, K classes, k some of the classes.
"""

from __future__ import annotations

import torch

_SCORES_AT_ONCE = 1 << 22
_ROWS_AT_ONCE = 4096


def mean_defined(areas: torch.Tensor) -> float | None:
    """The mean of those that are not NaN (of classes: Provost & Domingos 2001, unweighted); None where all are."""
    defined = areas[~areas.isnan()]
    return defined.mean().item() if len(defined) else None


def class_areas(logits_NK: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """How often a picture of a class scores above one of another class, in [0, 1]; 0.5 is chance.

    Of two classes one area, of the second against the first; of more each against the rest, by its probability.

    Returns:
        float64 [1] or [K]; NaN for a class without pictures on this side, or with all of them.
    """
    num_classes = logits_NK.shape[1]
    if num_classes == 2:  # noqa: PLR2004
        # The difference says the same as the probability and does not saturate; both classes give one value.
        margins_1N = (logits_NK[:, 1].double() - logits_NK[:, 0].double()).unsqueeze(0)
        return _areas(margins_1N, (labels_N == 1).unsqueeze(0))
    norms_N = torch.cat([rows.double().logsumexp(1) for rows in logits_NK.split(_ROWS_AT_ONCE)])
    classes_K = torch.arange(num_classes, device=logits_NK.device)
    width = max(1, _SCORES_AT_ONCE // max(1, len(labels_N)))
    return torch.cat(
        [
            _areas(logits_NK[:, some].T.double() - norms_N, labels_N == some.unsqueeze(1))
            for some in classes_K.split(width)
        ]
    )


def mean_area(scores_kN: torch.Tensor, are_positive_kN: torch.Tensor) -> float | None:
    """The mean area of some classes by their own scores; None where none has both positive and negative pictures."""
    return mean_defined(_areas(scores_kN, are_positive_kN))


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
