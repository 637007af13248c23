"""Pictures that are dealt to the sides of a split, or to folds: what is on each, and whether it will do.

In: a packed table, and the side of each of its pictures. Out: counts, digests, notes and refusals. `dealing` makes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainables.config import SPLIT_NAMES, DataConfig, SplitName
from trainables.data.alike import alike_names
from trainables.data.fit import FitChoice
from trainables.data.folds import check_folds
from trainables.data.label_sets import may_be_a_set, members_of
from trainables.data.packing import PackReport
from trainables.data.splits import check_sides, count_classes, dealt_as, sides_of
from trainables.data.table import ImageTable
from trainables.errors import InputError
from trainables.wording import shorten

_BLOCK = 4096


class Judged(NamedTuple):
    """Pictures that a trial is judged by.

    Attributes:
        size: How many.
        counts: How many of each class; one with several labels counts for each.
    """

    size: int
    counts: dict[str, int]


@dataclass(frozen=True)
class PreparedData:
    """Pictures ready to train on.

    Attributes:
        config: What a trial needs to know of them.
        report: What packing did, and the files it set aside.
        counts: Pictures by side and class; with folds ``train`` has all that are not tested, and ``val`` none.
        test_digest: Names the test side's pictures and labels; equal digests mean comparable test figures.
        sizes: Pictures by side.
        fit: How they are brought to a square, and why so.
        judged: What a trial is judged by: the validation side, or each fold.
        notes: See `DealtData.notes`.
        sides_digest: Names the side of each picture, by its content.
    """

    config: DataConfig
    report: PackReport
    counts: dict[SplitName, dict[str, int]]
    test_digest: str
    sizes: dict[SplitName, int]
    fit: FitChoice
    judged: tuple[Judged, ...]
    notes: tuple[str, ...] = ()
    sides_digest: str = ""

    def size(self, side: SplitName) -> int:
        """Pictures of one side."""
        return self.sizes[side]


@dataclass(frozen=True)
class DealtData:
    """Packed pictures and the side that each is on.

    Attributes:
        config: What a trial needs to know of them.
        report: What packing did, and the files it set aside.
        table: The packed pictures.
        rows: Those of the classes in use [N].
        labels: Their classes [N]; or, where pictures have several, their sets of labels, as the table names them.
        sides: Their sides [N].
        fit: How they are brought to a square, and why so.
        max_bad_fraction: Share of the files that may be set aside.
        is_sample: Whether the source has more pictures than these.
        separator: What stands between the labels of a picture, or would if it had several.
    """

    config: DataConfig
    report: PackReport
    table: ImageTable
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    sides: NDArray[np.str_]
    fit: FitChoice
    max_bad_fraction: float = 1.0
    is_sample: bool = False
    separator: str = "|"

    def counts(self) -> dict[SplitName, dict[str, int]]:
        """Pictures by side and class."""
        return {side: self._count(self.sides == side) for side in SPLIT_NAMES}

    def has_labels(self) -> NDArray[np.bool_]:
        """Which labels each picture has, where it may have several: [N, K]."""
        separator = self.config.label_separator
        assert separator is not None
        return members_of(self.table.class_names, self.config.class_names, separator)[self.labels]

    @cached_property
    def _labels_to_count(self) -> NDArray[Any]:
        """As `check_sides` takes them: [N], or [N, K] where pictures may have several labels."""
        return self.labels if self.config.label_separator is None else self.has_labels()

    def has_label(self, label: int) -> NDArray[np.bool_]:
        """Which pictures have one class: [N]."""
        labels = self._labels_to_count
        has_N: NDArray[np.bool_] = labels == label if labels.ndim == 1 else labels[:, label]
        return has_N

    def judged(self) -> list[Judged]:
        """What a trial is judged by: the validation side, or each fold."""
        return [Judged(int((sides == "val").sum()), self._count(sides == "val")) for sides in self._every_dealing]

    @cached_property
    def _every_dealing(self) -> list[NDArray[np.str_]]:
        """The sides, or those of each fold."""
        if not self.config.folds:
            return [self.sides]
        configs = (self.config.model_copy(update={"fold": fold}) for fold in range(self.config.folds))
        return [sides_of(self.table, self.rows, config) for config in configs]

    def _count(self, are_asked: NDArray[np.bool_]) -> dict[str, int]:
        """Some pictures by class; one with several labels counts for each."""
        names = self.config.class_names
        counts = count_classes(self._labels_to_count[are_asked], len(names))
        return dict(zip(names, counts.tolist(), strict=True))

    def sides_digest(self) -> str:
        """Names the side of each picture, in each fold, by its content and not by its name."""
        order = np.argsort(self.table.ids[self.rows], kind="stable")
        digest = hashlib.sha256()
        for some in _in_blocks(self.rows[order]):
            digest.update(self.table.ids[some].tobytes())
        for sides in self._every_dealing:
            for some in _in_blocks(order):
                digest.update(sides[some].astype("S5").tobytes())
        return digest.hexdigest()

    def notes(self) -> Iterator[str]:
        """What nobody may have meant, in clauses."""
        yield from self._misread()
        lacking = [
            (fold, name)
            for fold, side in enumerate(self.judged() if self.config.folds else (), start=1)
            for name, count in side.counts.items()
            if not count
        ]
        if lacking:
            fold, name = lacking[0]
            more = f", and so for {len(lacking) - 1} more" if len(lacking) > 1 else ""
            yield (
                f"no picture of fold {fold} of {self.config.folds} shows {shorten(name)}{more}: such folds say nothing "
                "of it; give fewer folds, or try another data.split.seed"
            )

    def _misread(self) -> Iterator[str]:
        """How groups or classes may have been taken for what they are not."""
        if joined := self.joined():
            yield joined
        if self.config.label_separator is None and (note := sets_note(self.config.class_names, self.separator)):
            yield note

    def joined(self) -> str:
        """That groups are one because they share pictures, which nobody may have meant; empty where none are."""
        groups = self.table.groups_of(self.rows, self.config.group_pattern)
        names = {*groups} - {""}
        if not names:
            return ""
        keys = dealt_as(self.table.ids[self.rows], groups)
        num_apart = len({key for key, group in zip(keys, groups, strict=True) if group})
        if num_apart == len(names):
            return ""
        return (
            f"{len(names)} groups stay together as {num_apart}, because they share pictures, byte for byte: remove the "
            "copies if they are to be told apart"
        )

    def check(self) -> None:
        """Refuses what cannot be learnt from or judged on; see `check_folds` and `check_sides`."""
        _check_bad_files(self.report, self.max_bad_fraction)
        check_names(self.config.class_names)
        try:
            self._check_dealing()
        except InputError as error:
            if not (why := [*self._misread()]):
                raise
            raise InputError("; ".join([str(error), *why])) from error

    def _check_dealing(self) -> None:
        config, given = self.config, self.table.sides[self.rows]
        if not config.folds:
            labels = self._labels_to_count
            check_sides(self.sides, labels, config.class_names, config.split, given=given, is_sample=self.is_sample)
            return
        groups = self.table.groups_of(self.rows, config.group_pattern)
        keys = dealt_as(self.table.ids[self.rows], groups)
        untested = np.flatnonzero(self.sides != "test")
        has_val = config.split.source == "auto" and "val" in given
        own_keys = [keys[row] for row in untested]
        labels = self._labels_to_count
        check_folds(own_keys, labels[untested], config.class_names, config.folds, has_val=has_val)
        for sides in self._every_dealing:
            check_sides(sides, labels, config.class_names, config.split, given=given, is_sample=self.is_sample)


def check_names(class_names: Sequence[str]) -> None:
    """Refuses classes whose names differ by case or spaces only.

    Raises:
        InputError: Some do.
    """
    if alike := alike_names(class_names):
        raise InputError(
            f"data: the classes {alike[0]!r} and {alike[1]!r} differ by case or spaces only: if they are one, put "
            "its pictures under one name; else rename one, or leave it out by data.exclude_classes"
        )


def sets_note(class_names: Sequence[str], separator: str) -> str:
    """That classes read as sets of labels; empty where none does."""
    if (name := may_be_a_set(class_names, separator)) is None:
        return ""
    return (
        f"the class {shorten(name)} reads as several labels of one picture: if it is, set data.labels to multi (in a "
        "csv: or parquet: source)"
    )


def _check_bad_files(report: PackReport, most: float) -> None:
    num_bad = len(report.bad_files)
    total = num_bad + report.num_images
    if num_bad > most * total:
        first = report.bad_files[0]
        raise InputError(
            f"data.max_bad_fraction: {num_bad} of {total} files cannot be used, more than {most:.0%}, such as "
            f"{first.name}: {first.reason}; `thaw data inspect` lists them; mend or remove them, or raise "
            "data.max_bad_fraction"
        )


def _in_blocks(positions: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """So many at a time that copies of what stands there are small, however many pictures there are."""
    return (positions[start : start + _BLOCK] for start in range(0, len(positions), _BLOCK))
