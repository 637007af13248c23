"""Several labels of one picture: the sets of labels that occur, and which class is in which.

A table of pictures with several labels keeps the set of each picture as if it were one class, its name the sorted names
of its labels with a separator between them; the empty name is the set of none. So packing, splits and batches are the
same for both kinds of labels, and only who learns or judges looks up what a set holds.

Axes: S sets, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def set_name(labels: Iterable[str], separator: str) -> str:
    """The name of a set of labels: each once, sorted; white space around them is left out."""
    return separator.join(sorted({label.strip() for label in labels} - {""}))


def labels_in(text: str, separator: str) -> set[str]:
    """The labels that a text holds, each without the white space around it."""
    return {label.strip() for label in text.split(separator)} - {""}


def names_in(set_names: Iterable[str], separator: str) -> tuple[str, ...]:
    """The labels that occur in some sets, sorted."""
    return tuple(sorted({label for name in set_names for label in name.split(separator)} - {""}))


def may_be_a_set(class_names: Sequence[str], separator: str) -> str | None:
    """A class whose name reads as a set of labels, one of which another class has too; None where none does."""
    sets = {name: labels_in(name, separator) for name in class_names}
    uses = Counter(label for labels in sets.values() for label in labels)
    several = (name for name, labels in sets.items() if len(labels) > 1)
    return next((name for name in several if any(uses[label] > 1 for label in sets[name])), None)


def members_of(set_names: Sequence[str], class_names: Sequence[str], separator: str) -> NDArray[np.bool_]:
    """Which classes (columns) are in which sets (rows): [S, K]."""
    rows = [set(name.split(separator)) for name in set_names]
    return np.array([[name in row for name in class_names] for row in rows], dtype=bool).reshape(len(rows), -1)
