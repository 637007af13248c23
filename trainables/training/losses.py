"""What a batch's predictions cost: cross entropy with smoothed, mixed and weighed labels, or that of each label.

In: logits and labels of one rank's part of a batch. Out: the pictures' losses added up, to be divided by the number of
pictures on all ranks together.

Axes: B pictures of a batch, K classes, S sets of labels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from trainables.training.label_scores import label_losses
from trainables.training.mixing import MixedBatch


class TrainingLoss:
    """The loss that training makes small.

    Args:
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016, section 7).
        weights_K: What each class's pictures count; None where all count the same.
        members_SK: Which classes are in each set of labels, where a picture's label names such a set; None where it is
            its class. There are no weights then.
    """

    def __init__(
        self, label_smoothing: float, weights_K: torch.Tensor | None = None, members_SK: torch.Tensor | None = None
    ) -> None:
        self.label_smoothing, self.weights_K, self.members_SK = label_smoothing, weights_K, members_SK

    def __call__(self, logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """The pictures' losses, added up."""
        if self.members_SK is not None:
            return label_losses(logits_BK, self.members_SK[labels_B], self.label_smoothing).sum()
        if self.weights_K is None:
            return F.cross_entropy(logits_BK, labels_B, reduction="sum", label_smoothing=self.label_smoothing)
        # Not by torch's `weight`: that weighs the smoothed part by the other classes instead of by the picture's own.
        losses_B = F.cross_entropy(logits_BK, labels_B, reduction="none", label_smoothing=self.label_smoothing)
        return (self.weights_K[labels_B] * losses_B).sum()

    def of_mixed(self, logits_BK: torch.Tensor, batch: MixedBatch) -> torch.Tensor:
        """The losses of mixed pictures, added up: each label's loss counts by its picture's share.

        Without weights that is the cross entropy with the mixed labels (Zhang et al. 2018, section 2), which it is
        linear in; with them, each share counts by the weight of its own class.
        """
        own, partners = self(logits_BK, batch.labels_B), self(logits_BK, batch.partner_labels_B)
        return batch.share * own + (1 - batch.share) * partners


def class_weights(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """The inverse of each class's share [K], such that the weights of all pictures are 1 on average."""
    counts_K = torch.bincount(torch.from_numpy(labels), minlength=num_classes)
    return (len(labels) / (num_classes * counts_K.clamp(min=1))).float()
