"""Cross-validation: which pictures are judged together, while all others are learnt from.

In: content ids or groups, labels, a number of folds. Out: the fold of each picture. Classes are spread evenly, what
belongs together stays together, and only the pictures themselves and a seed decide. Pure functions; no torch.

Labels are positions of classes [N] or, where pictures have several, which of them each has: bool [N, K].

Axes: N pictures, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.errors import InputError


def position_of(seed: int, image_id: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments; uniform over ids."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def assign_folds(keys: Sequence[str], labels: NDArray[Any], num_folds: int, seed: int) -> NDArray[np.int64]:
    """Deals pictures to folds, each class as evenly as its groups, and what else its pictures show, allow.

    The large groups first, then in the order of a hash: each goes to the fold that has least of its classes, of equal
    ones to that with the fewest pictures. Pictures without a group are groups of one, and then no class's numbers
    differ by more than one between folds (as in scikit-learn's `StratifiedKFold`; with groups it is the greedy rule of
    its `StratifiedGroupKFold`). Where pictures have several labels those with rare ones come first, as in iterative
    stratification (Sechidis et al. 2011), and a rare label weighs more; a fold may still lack one that comes with
    others. Unlike the sides, folds move when pictures are added.

    Args:
        keys: What each picture is dealt as [N]: equal ones stay together.
        labels: Classes [N], or [N, K].
        num_folds: At least 2.
        seed: Another one deals differently.

    Returns:
        Fold of each picture [N], from 0.
    """
    names, of_key_N = np.unique(np.asarray(keys, dtype=object).astype(str), return_inverse=True)
    if labels.ndim > 1:
        counts_GK = np.zeros((len(names), labels.shape[1]))
        np.add.at(counts_GK, of_key_N, labels)
    else:
        counts_GK = np.zeros((len(names), int(labels.max(initial=0)) + 1))
        np.add.at(counts_GK, (of_key_N, labels), 1)
    sizes_G = np.bincount(of_key_N, minlength=len(names))
    # A class's share counts, not its size: else rare ones would not be spread.
    shares_GK = counts_GK / np.maximum(counts_GK.sum(0), 1)
    rare_G = shares_GK.sum(1).round(12) if labels.ndim > 1 else np.zeros(len(names))
    order = sorted(range(len(names)), key=lambda at: (-sizes_G[at], -rare_G[at], position_of(seed, str(names[at]))))
    held_FK, sizes_F = np.zeros((num_folds, counts_GK.shape[1])), np.zeros(num_folds)
    fold_of_G = np.zeros(len(names), dtype=np.int64)
    for group in order:
        crowded_F = np.round(held_FK @ shares_GK[group], 12)
        fold = int(np.lexsort((sizes_F, crowded_F))[0])
        fold_of_G[group] = fold
        held_FK[fold] += shares_GK[group]
        sizes_F[fold] += sizes_G[group]
    folds_N: NDArray[np.int64] = fold_of_G[of_key_N]
    return folds_N


def check_folds(
    keys: Sequence[str], labels: NDArray[Any], class_names: Sequence[str], num_folds: int, *, has_val: bool
) -> None:
    """Refuses folds that cannot be learnt from or judged on, before any training.

    Args:
        keys: As for `assign_folds`, of the pictures that are not tested.
        labels: Positions in ``class_names`` [N], or which of them each picture has [N, K].
        class_names: The classes to tell apart.
        num_folds: As for `assign_folds`.
        has_val: Whether the source has a validation side of its own.

    Raises:
        InputError: It has, or a class has fewer pictures, or groups of them, than there are folds.
    """
    if has_val:
        raise InputError(beside_a_val_side(num_folds))
    if len(class_names) < 2:  # noqa: PLR2004
        return  # whoever checks the sides says so
    owners, shown = np.nonzero(labels) if labels.ndim > 1 else (np.arange(len(labels)), labels)
    pairs = {(keys[owner], label) for owner, label in zip(owners.tolist(), shown.tolist(), strict=True)}
    numbers = np.bincount([label for _, label in pairs], minlength=len(class_names))
    rarest = int(numbers.argmin())
    if numbers[rarest] < num_folds:
        fewer = f"give at most {numbers[rarest]} folds, " if numbers[rarest] > 1 else ""
        raise InputError(
            f"data.folds: {num_folds}, but class {class_names[rarest]!r} has {numbers[rarest]} pictures, or groups of "
            f"them, beside the test side: {fewer}add pictures, or leave the class out by data.exclude_classes"
        )


def beside_a_val_side(num_folds: int) -> str:
    """What is said of folds where the source has a validation side of its own."""
    return (
        f"data.folds: {num_folds}, but the source has a validation side of its own, which would lose its meaning: "
        "set data.split.source to ignore, and all pictures are pooled; or leave folds out"
    )
