"""Which side of the split a picture is on: decided by its content, so that it never moves.

In: content ids, the sides that the source gave, shares. Out: `train`, `val` or `test` for each picture. Pure functions;
no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.config import SPLIT_NAMES, DataConfig, SplitConfig, SplitName
from trainables.data.table import ImageTable
from trainables.errors import InputError

MIN_PICTURES_PER_CLASS = 3
_MOST_TO_LEAVE_OUT = 20
"""Classes that people may still leave out by name."""
_HELD_OUT_MOST = {None: -1, "train": 0, "val": 1, "test": 2}


def sides_of(table: ImageTable, rows: NDArray[np.int64], config: DataConfig) -> NDArray[np.str_]:
    """The side of each of some rows of a table; see `assign_sides`."""
    groups = table.groups_of(rows, config.group_pattern)
    return assign_sides(table.ids[rows], table.sides[rows], config.split, groups)


def assign_sides(
    ids: Sequence[str] | NDArray[Any],
    sides: Sequence[SplitName | None] | NDArray[Any],
    config: SplitConfig,
    groups: Sequence[str] = (),
) -> NDArray[np.str_]:
    """Deals pictures to sides by a hash of their content, or of their group's name.

    A picture's side depends on its own content alone, so adding pictures moves none and copies go together. The
    pictures of a group go together too, with every copy of them, wherever it is. Where the source has sides of its own
    they are kept, and only a side it lacks is dealt out of another: test out of val, val out of train. What the source
    has on two sides goes to the one held out longer (test, then val), so that nothing that is trained on is also judged
    on.

    Args:
        ids: Content ids [N], text or ASCII bytes.
        sides: What the source says [N]; None where it says nothing.
        config: Shares and seed.
        groups: Name of each picture's group [N], empty for none; or no groups at all.

    Returns:
        [N] of `train`, `val`, `test`.

    Raises:
        InputError: All shares are zero.
    """
    texts = [bytes(each).decode("ascii") if isinstance(each, bytes) else str(each) for each in ids]
    keys = _keys(texts, groups) if any(groups) else texts
    given: dict[str, SplitName | None] = {}
    for key, stated in zip(keys, sides, strict=True):
        side: SplitName | None = stated if config.source == "auto" else None
        if _HELD_OUT_MOST[side] >= _HELD_OUT_MOST[given.get(key)]:
            given[key] = side
    shares = {from_side: _shares(from_side, set(given.values()), config) for from_side in set(given.values())}
    dealt = {key: _deal(position_of(config.seed, key), shares[side]) for key, side in given.items()}
    return np.array([dealt[key] for key in keys], dtype="<U5")


def _keys(ids: Sequence[str], groups: Sequence[str]) -> list[str]:
    """What is dealt as one, by a name [N]: a group, groups that share a picture, or a picture of no group."""
    above: dict[str, str] = {}

    def top(key: str) -> str:
        while above.setdefault(key, key) != key:
            above[key] = above[above[key]]
            key = above[key]
        return key

    for image_id, group in zip(ids, groups, strict=True):
        if group:
            # The space sorts before every id: a group's name leads, and does not change with its pictures.
            first, second = sorted((top(f" {group}"), top(image_id)))
            above[second] = first
    return [top(image_id) for image_id in ids]


def position_of(seed: int, image_id: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments; uniform over ids."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def _shares(side: SplitName | None, given: set[SplitName | None], config: SplitConfig) -> dict[SplitName, float]:
    """How the pictures that the source puts on `side` are shared out."""
    shares: dict[SplitName, float] = {"test": config.test, "val": config.val, "train": config.train}
    if side == "test" or (side == "val" and "test" in given) or (side == "train" and "val" in given):
        return {side: 1.0}
    if side == "val":
        return {"test": config.test_share_of_val, "val": 1 - config.test_share_of_val}
    if side == "train" and "test" in given:
        del shares["test"]
    if sum(shares.values()) <= 0:
        raise InputError(
            f"data.split: the shares of {' and '.join(shares)} are all 0: give train, val and test a share"
        )
    return shares


def _deal(position: float, shares: dict[SplitName, float]) -> SplitName:
    """The side whose interval holds the position; test comes first, so that another share of val leaves test alone."""
    upper = 0.0
    for side, share in shares.items():
        upper += share / sum(shares.values())
        if position < upper:
            return side
    return next(side for side in reversed(shares) if shares[side] > 0)


def check_sides(
    assigned: Sequence[str] | NDArray[Any],
    labels: Sequence[int] | NDArray[Any],
    class_names: Sequence[str],
    config: SplitConfig,
    *,
    given: Sequence[SplitName | None] | NDArray[Any] = (),
    is_sample: bool = False,
) -> None:
    """Refuses data that cannot be learnt from or judged on, before any training.

    Args:
        assigned: What `assign_sides` returned [N].
        labels: Positions in `class_names` [N].
        class_names: The classes to tell apart.
        config: What `assign_sides` was given.
        given: The source's own sides [N], as given to `assign_sides`; empty where it has none.
        is_sample: Whether these are only some of the source's pictures, among which a side may lack a class.

    Raises:
        InputError: Fewer than two classes, a class with fewer than 3 pictures, an empty side that was asked for, a
            class without a training picture, or one that a side of the source lacks.
    """
    assigned, labels = np.asarray(assigned), np.asarray(labels)
    if len(class_names) < 2:  # noqa: PLR2004
        raise InputError(
            f"data: {len(class_names)} class ({', '.join(class_names) or 'none'}) to tell apart: "
            "give at least two class folders, or leave fewer out by data.exclude_classes"
        )
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min(initial=MIN_PICTURES_PER_CLASS) < MIN_PICTURES_PER_CLASS:
        raise InputError(_too_few(counts, class_names))
    if config.source == "auto" and len(given) and not is_sample:
        _check_given_sides(given, labels, class_names)
    for side in SPLIT_NAMES:
        if side not in assigned and (side != "test" or _wants_test(config, set(given))):
            raise InputError(
                f"data.split: none of {len(assigned)} pictures is on the {side} side: "
                f"give {_share_field(side, set(given), config)} a larger share, or try another data.split.seed"
            )
    in_train = np.bincount(labels[assigned == "train"], minlength=len(class_names))
    if (in_train == 0).any():
        missing = class_names[int(in_train.argmin())]
        raise InputError(
            f"data.split: class {missing!r} has no picture on the train side: "
            "add pictures of it, or try another data.split.seed"
        )


def _check_given_sides(
    given: Sequence[SplitName | None] | NDArray[Any], labels: NDArray[Any], class_names: Sequence[str]
) -> None:
    """Refuses a class that one of the source's sides lacks: it is not learnt, or no figure says anything of it."""
    stated = np.array([side or "" for side in given])
    if "" in stated:
        return  # what the source leaves open is dealt, and may well go where a class lacks pictures
    for side in SPLIT_NAMES:
        lacking = np.bincount(labels[stated == side], minlength=len(class_names)) == 0
        if side in stated and lacking.any():
            raise InputError(
                f"data: class {class_names[int(lacking.argmax())]!r} has no picture on the {side} side of the source, "
                "and has some on another: add some there, leave the class out by data.exclude_classes, or deal all "
                "pictures anew by data.split.source: ignore"
            )


def _too_few(counts: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """What is said of classes that have next to no pictures."""
    rarest, num_rare = int(counts.argmin()), int((counts < MIN_PICTURES_PER_CLASS).sum())
    if num_rare > _MOST_TO_LEAVE_OUT:
        return (
            f"data: {num_rare} of {len(class_names)} classes have fewer than {MIN_PICTURES_PER_CLASS} usable pictures, "
            f"such as {class_names[rarest]!r} with {counts[rarest]}: is there one folder per class, and not per "
            "picture? put pictures of one class together, or add pictures"
        )
    return (
        f"data: class {class_names[rarest]!r} has {counts[rarest]} usable pictures, fewer than "
        f"{MIN_PICTURES_PER_CLASS}: add pictures, or leave the class out by data.exclude_classes"
    )


def _wants_test(config: SplitConfig, given: set[SplitName | None]) -> bool:
    if config.source == "ignore" or "val" not in given:
        return config.test > 0 or (config.source == "auto" and "test" in given)
    return "test" in given or config.test_share_of_val > 0


def _share_field(side: SplitName, given: set[SplitName | None], config: SplitConfig) -> str:
    dealt_from_val = config.source == "auto" and "val" in given and side == "test"
    return "data.split.test_share_of_val" if dealt_from_val else f"data.split.{side}"
