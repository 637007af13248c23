"""One side of the split, and the order in which an epoch sees its pictures.

In: rows of a table, a seed, an epoch. Out: global batches of positions. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainables.config import SplitName
from trainables.data.table import ImageTable


@dataclass(frozen=True, eq=False)
class Side:
    """The pictures of one side of the split: rows of the table and their labels, both [N], not to be changed.

    Attributes:
        table: Where they are.
        rows: Of the table.
        labels: Indices of their classes.
        name: Which side it is.
        whole: With folds, the pictures of all folds, this side's among them: what is kept of views and features is
            kept for these, so that every fold reads it.
        places: The positions in ``whole`` of this side's pictures [N], ascending; without ``whole`` None.
    """

    table: ImageTable
    rows: np.ndarray
    labels: np.ndarray
    name: SplitName = "train"
    whole: Side | None = None
    places: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.rows)


def plan_epoch(
    num_rows: int, batch_size: int, seed: int, epoch: int, balanced_labels: np.ndarray | None = None
) -> list[np.ndarray]:
    """The shuffled positions of one epoch, cut into global batches.

    The batches are of nearly equal size (none larger than ``batch_size``), so that no small remainder gets a step
    of its own, and from ``batch_size`` 3 on BatchNorm never sees a lone picture unless there is only one.

    Args:
        num_rows: Pictures of the side, and of the epoch.
        batch_size: Most pictures of a batch.
        seed: Of the trial.
        epoch: From 0.
        balanced_labels: Of all pictures, where each class is to be drawn equally often; None: each picture once.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    chosen = num_rows if balanced_labels is None else _balanced(balanced_labels, generator)
    return np.array_split(generator.permutation(chosen), max(1, -(-num_rows // batch_size)))


def _balanced(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many positions as there are labels, of each class that occurs equally many, give or take one.

    Which classes get the one that is left over is drawn. Within a class each picture is there equally often, give or
    take one: a large class gives a sample without repetition, a rare one repeats.
    """
    classes = np.unique(labels)
    quotas = np.full(len(classes), len(labels) // max(1, len(classes)))
    quotas[generator.permutation(len(classes))[: len(labels) - quotas.sum()]] += 1
    chosen = []
    for class_, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(labels == class_)
        rounds, rest = divmod(int(quota), len(members))
        chosen += [np.tile(members, rounds), generator.permutation(members)[:rest]]
    return np.concatenate(chosen) if chosen else labels


def plan_in_order(num_rows: int, batch_size: int) -> list[np.ndarray]:
    """Positions 0 to ``num_rows`` in order, ``batch_size`` at a time."""
    return [np.arange(first, min(first + batch_size, num_rows)) for first in range(0, num_rows, batch_size)]
