"""Which side of the split a picture is on: decided by its content, so that it never moves.

In: content ids, the sides that the source gave, shares. Out: `train`, `val` or `test` for each picture. Pure functions;
no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.config import SPLIT_NAMES, DataConfig, SplitConfig, SplitName
from trainables.data.folds import assign_folds, position_of
from trainables.data.label_sets import members_of
from trainables.data.side import Side
from trainables.data.table import ImageTable
from trainables.errors import InputError

MIN_PICTURES_PER_CLASS = 3
_COMPARED_AT_ONCE = 4096
_MOST_TO_LEAVE_OUT = 20
"""Classes that people may still leave out by name."""
_HELD_OUT_MOST = {None: -1, "train": 0, "val": 1, "test": 2}
_SIDE_OF_RANK: dict[int, SplitName | None] = {-1: None, 0: "train", 1: "val", 2: "test"}


def sides_of(table: ImageTable, rows: NDArray[np.int64], config: DataConfig) -> NDArray[np.str_]:
    """The side of each of some rows of a table; see `assign_sides`, and with folds `assign_folds`."""
    groups = table.groups_of(rows, config.group_pattern)
    sides = assign_sides(table.ids[rows], table.sides[rows], config.split, groups)
    if not config.folds:
        return sides
    sides[sides == "val"] = "train"
    if isinstance(config.fold, int):
        pool = np.flatnonzero(sides == "train")
        keys = dealt_as(table.ids[rows], groups)
        labels: NDArray[Any] = table.labels[rows[pool]]
        if config.label_separator is not None:
            labels = members_of(table.class_names, config.class_names, config.label_separator)[labels]
        folds = assign_folds([keys[row] for row in pool], labels, config.folds, config.split.seed)
        sides[pool[folds == config.fold]] = "val"
    return sides


def labelled_rows(table: ImageTable, config: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of a table that a trial uses, in table order, and their labels.

    Labels are positions in `config.class_names`; where pictures have several, all rows, and the table's sets of labels.

    Raises:
        InputError: See `ImageTable.rows_of`.
    """
    return table.rows_of(config.class_names if config.label_separator is None else table.class_names)


def is_dealt_by_source(table: ImageTable, config: DataConfig) -> bool:
    """Whether sides follow from what the source says of them, or of groups, and not from the pictures alone."""
    stated = config.split.source == "auto" and any(side is not None for side in table.sides.tolist())
    return stated or (config.group_pattern is None and any(table.source_groups))


def clusters_of(side: Side, config: DataConfig) -> list[int]:
    """For each picture of a side the number, from 0, of what was dealt as one with it: a group, or copies [N]."""
    table, rows = side.table, side.rows
    numbers: dict[str, int] = {}
    keys = dealt_as(table.ids[rows], table.groups_of(rows, config.group_pattern))
    return [numbers.setdefault(key, len(numbers)) for key in keys]


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
    if len(ids) == 0:
        return np.empty(0, dtype="<U5")
    keys = _as_bytes(_joined([_text(each) for each in ids], groups) if any(groups) else ids)
    stated: Sequence[SplitName | None] | NDArray[Any] = sides if config.source == "auto" else [None] * len(keys)
    ranks = np.fromiter((_HELD_OUT_MOST[side] for side in stated), dtype=np.int8, count=len(keys))
    # Arrays and not a dict: there may be a hundred thousand pictures, and a hundred bytes of each add up.
    order = np.argsort(keys, kind="stable")
    firsts = _firsts(keys, order)
    given = np.maximum.reduceat(ranks[order], firsts)
    present = {_SIDE_OF_RANK[rank] for rank in np.unique(given).tolist()}
    shares = {from_side: _shares(from_side, present, config) for from_side in present}
    dealt = np.fromiter(
        (
            SPLIT_NAMES.index(_deal(position_of(config.seed, _text(keys[row])), shares[_SIDE_OF_RANK[rank]]))
            for row, rank in zip(order[firsts], given.tolist(), strict=True)
        ),
        dtype=np.int8,
        count=len(firsts),
    )
    codes = np.empty(len(keys), dtype=np.int8)
    codes[order] = np.repeat(dealt, np.diff(np.r_[firsts, len(keys)]))
    return np.array(SPLIT_NAMES, dtype="<U5")[codes]


def _firsts(keys: NDArray[np.bytes_], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where in the order another key begins; compared in pieces, because keys are long and copied for it."""
    is_first = np.ones(len(order), dtype=bool)
    for start in range(1, len(order), _COMPARED_AT_ONCE):
        stop = start + _COMPARED_AT_ONCE
        here, before = order[start:stop], order[start - 1 : stop - 1]
        is_first[start:stop] = keys[here] != keys[before[: len(here)]]
    return np.flatnonzero(is_first)


def _text(key: Any) -> str:
    return bytes(key).decode() if isinstance(key, bytes) else str(key)


def _as_bytes(keys: Sequence[str] | NDArray[Any]) -> NDArray[np.bytes_]:
    if isinstance(keys, np.ndarray) and keys.dtype.kind == "S":
        return keys
    return np.array([_text(key).encode() for key in keys])


def dealt_as(ids: Sequence[str] | NDArray[Any], groups: Sequence[str] = ()) -> list[str]:
    """What is dealt as one, by a name [N]: a group, groups that share a picture, or a picture of no group."""
    texts = [bytes(each).decode("ascii") if isinstance(each, bytes) else str(each) for each in ids]
    return _joined(texts, groups) if any(groups) else texts


def _joined(ids: Sequence[str], groups: Sequence[str]) -> list[str]:
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
        labels: Positions in `class_names` [N]; or, where pictures have several, which they have: bool [N, K].
        class_names: The classes to tell apart.
        config: What `assign_sides` was given.
        given: The source's own sides [N], as given to `assign_sides`; empty where it has none.
        is_sample: Whether these are only some of the source's pictures, among which a side may lack a class.

    Raises:
        InputError: Fewer than two classes, a class with fewer than 3 pictures, an empty side that was asked for, a
            class without a training picture, or one that a side of the source lacks.
    """
    assigned, labels = np.asarray(assigned), np.asarray(labels)
    check_classes(labels, class_names, config, given=given, is_sample=is_sample)
    for side in SPLIT_NAMES:
        if side not in assigned and (side != "test" or _wants_test(config, set(given))):
            raise InputError(
                f"data.split: none of {len(assigned)} pictures is on the {side} side: "
                f"give {_share_field(side, set(given), config)} a larger share, or try another data.split.seed"
            )
    in_train = count_classes(labels[assigned == "train"], len(class_names))
    if (in_train == 0).any():
        missing = class_names[int(in_train.argmin())]
        raise InputError(
            f"data.split: class {missing!r} has no picture on the train side: "
            "add pictures of it, or try another data.split.seed"
        )


def check_classes(
    labels: NDArray[Any],
    class_names: Sequence[str],
    config: SplitConfig,
    *,
    given: Sequence[SplitName | None] | NDArray[Any] = (),
    is_sample: bool = False,
) -> None:
    """The part of `check_sides` that needs no dealing, and so no pictures: a list of them will do.

    Raises:
        InputError: Fewer than two classes, a class with fewer than 3 pictures, or one that a side of the source lacks.
    """
    if len(class_names) < 2:  # noqa: PLR2004
        raise InputError(
            f"data: {len(class_names)} class ({', '.join(class_names) or 'none'}) to tell apart: "
            "give at least two class folders, or leave fewer out by data.exclude_classes"
        )
    counts = count_classes(labels, len(class_names))
    if counts.min(initial=MIN_PICTURES_PER_CLASS) < MIN_PICTURES_PER_CLASS:
        raise InputError(_too_few(counts, class_names))
    if config.source == "auto" and len(given) and not is_sample:
        _check_given_sides(given, labels, class_names)


def count_classes(labels: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """Pictures of each class [K]; `labels` as for `check_sides`."""
    return labels.sum(0) if labels.ndim > 1 else np.bincount(labels, minlength=num_classes)


def _check_given_sides(
    given: Sequence[SplitName | None] | NDArray[Any], labels: NDArray[Any], class_names: Sequence[str]
) -> None:
    """Refuses a class that one of the source's sides lacks: it is not learnt, or no figure says anything of it."""
    stated = np.array([side or "" for side in given])
    if "" in stated:
        return  # what the source leaves open is dealt, and may well go where a class lacks pictures
    for side in SPLIT_NAMES:
        lacking = count_classes(labels[stated == side], len(class_names)) == 0
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
