"""Pictures packed and dealt to the sides of a split, or to folds, and whether they can be learnt from and judged on.

In: which pictures a spec wants, and a home. Out: `PreparedData`, or the `DealtData` before it is judged. What the list
of a source's pictures shows is refused before any of them is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.data_spec import DataSpec
from trainables.config import SPLIT_NAMES, DataConfig, SplitName
from trainables.data.alike import alike_names
from trainables.data.fit import FitChoice, choose_fit
from trainables.data.folds import beside_a_val_side, check_folds
from trainables.data.label_sets import may_be_a_set, members_of, names_in
from trainables.data.limited_source import LimitedSource
from trainables.data.packing import PackReport, pack
from trainables.data.picture import Picture
from trainables.data.sharing import publish_table
from trainables.data.sources import open_source
from trainables.data.splits import check_classes, check_sides, count_classes, dealt_as, labelled_rows, sides_of
from trainables.data.table import ImageTable, group_in, searched_in
from trainables.errors import InputError
from trainables.wording import shorten
from tuner.paths import HomePaths
from tuner.records.shared_home import check_home, check_local

_MOST_NAMED = 12
_BLOCK = 4096
_STORE_MARGIN = 1.5
"""Pictures are kept at this many times the network's size: random crops down to half the area then still shrink."""


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
        every = self._sides_by_fold if self.config.folds else [self.sides]
        return [Judged(int((sides == "val").sum()), self._count(sides == "val")) for sides in every]

    @cached_property
    def _sides_by_fold(self) -> list[NDArray[np.str_]]:
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
        for sides in self._sides_by_fold if self.config.folds else [self.sides]:
            for some in _in_blocks(order):
                digest.update(sides[some].astype("S5").tobytes())
        return digest.hexdigest()

    def notes(self) -> Iterator[str]:
        """What nobody may have meant, in clauses."""
        yield from filter(None, (self.joined(), self._may_be_sets()))
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

    def _may_be_sets(self) -> str:
        """See `_may_be_sets`; empty where pictures have several labels."""
        return "" if self.config.label_separator else _may_be_sets(self.config.class_names, self.separator)

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
        _check_names(self.config.class_names)
        try:
            self._check_dealing()
        except InputError as error:
            if not (why := [*filter(None, (self.joined(), self._may_be_sets()))]):
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
        for sides in self._sides_by_fold:
            check_sides(sides, labels, config.class_names, config.split, given=given, is_sample=self.is_sample)


def stored_side_px(spec: DataSpec) -> int:
    """The shorter side at which pictures are packed."""
    return round(_STORE_MARGIN * spec.image_size_px)


def prepare_data(spec: DataSpec, home: HomePaths, counted: Callable[[str, int, int], None]) -> PreparedData:
    """Packs the source unless that is done, deals the sides and checks them; publishes what other machines read.

    Args:
        spec: Which pictures.
        home: Where tables are kept.
        counted: Told what is being done, how much of it, of how much.

    Raises:
        InputError: The source, its classes, its sides or the home will not do.
    """
    dealt = deal_data(spec, home, counted, partial(_check_listed, spec))
    dealt.check()
    tested = dealt.sides == "test"
    names = dealt.config.class_names if dealt.config.label_separator is None else dealt.table.class_names
    digest = _digest(dealt.table.ids[dealt.rows][tested], dealt.labels[tested], names)
    sizes = {side: int((dealt.sides == side).sum()) for side in SPLIT_NAMES}
    return PreparedData(
        dealt.config,
        dealt.report,
        dealt.counts(),
        digest,
        sizes,
        dealt.fit,
        tuple(dealt.judged()),
        tuple(dealt.notes()),
        dealt.sides_digest(),
    )


def deal_data(
    spec: DataSpec,
    home: HomePaths,
    counted: Callable[[str, int, int], None],
    check: Callable[[Sequence[Picture]], None] | None = None,
) -> DealtData:
    """What `prepare_data` does, without judging whether the sides will do.

    Args:
        spec: As `prepare_data`.
        home: As `prepare_data`.
        counted: As `prepare_data`.
        check: See `pack`.

    Raises:
        InputError: The source, its classes or the home will not do.
    """
    check_local(home)
    check_home(home)
    separator = spec.label_separator if spec.labels == "multi" else None
    source = open_source(spec.source, separator)
    report = pack(
        source if spec.max_per_class is None else LimitedSource(source, spec.max_per_class),
        home.tables,
        side_px=stored_side_px(spec),
        progress=lambda done, total: counted("packing pictures", done, total),
        check=check,
    )
    if home.is_shared:
        publish_table(report.path, home.uri_of(report.path))
    table = ImageTable.open(report.path)
    known = table.class_names if separator is None else names_in(table.class_names, separator)
    class_names = _classes_in_use(spec, known)
    config = DataConfig(
        table=home.uri_of(report.path),
        fingerprint=report.fingerprint,
        class_names=class_names,
        label_separator=separator,
        split=spec.split,
        group_pattern=spec.group_pattern,
        image_size_px=spec.image_size_px,
        folds=spec.folds,
    )
    rows, labels = labelled_rows(table, config)
    fit = choose_fit(spec.fit, *table.sizes_of(rows))
    config = config.model_copy(update={"fit": fit.fit})
    if spec.group_pattern is not None and len(rows):
        _check_pattern(spec.group_pattern, [table.names[row] for row in rows.tolist()])
    sides, is_sample = sides_of(table, rows, config), spec.max_per_class is not None
    return DealtData(
        config, report, table, rows, labels, sides, fit, spec.max_bad_fraction, is_sample, spec.label_separator
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


def _check_listed(spec: DataSpec, pictures: Sequence[Picture]) -> None:
    """Refuses what the list of the files shows, before any is read: there can only be fewer usable ones.

    Raises:
        InputError: As `deal_data` and `DealtData.check` say it.
    """
    if spec.labels == "multi":
        if spec.folds and spec.split.source == "auto" and any(picture.side == "val" for picture in pictures):
            raise InputError(beside_a_val_side(spec.folds))
        return
    every: tuple[SplitName | None, ...] = (*SPLIT_NAMES, None)
    class_names = _classes_in_use(spec, sorted({picture.class_name for picture in pictures}))
    _check_names(class_names)
    labels = {name: label for label, name in enumerate(class_names)}
    # One number of each: there may be a hundred thousand, and each is made when it is looked at.
    codes = np.fromiter(
        (labels.get(picture.class_name, -1) * len(every) + every.index(picture.side) for picture in pictures),
        dtype=np.int64,
        count=len(pictures),
    )
    codes = codes[codes >= 0]
    given = np.array(every, dtype=object)[codes % len(every)]
    is_sample = spec.max_per_class is not None
    try:
        check_classes(codes // len(every), class_names, spec.split, given=given, is_sample=is_sample)
    except InputError as error:
        if not (why := _may_be_sets(class_names, spec.label_separator)):
            raise
        raise InputError(f"{error}; {why}") from error
    if spec.folds and spec.split.source == "auto" and "val" in given:
        raise InputError(beside_a_val_side(spec.folds))
    if spec.group_pattern is not None:
        _check_pattern(spec.group_pattern, [picture.name for picture in pictures if picture.class_name in labels])


def _classes_in_use(spec: DataSpec, known: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in spec.exclude_classes if name not in known]
    if unknown:
        raise InputError(f"data.exclude_classes: no class {shorten(unknown[0])}; {_known_classes(unknown[0], known)}")
    return tuple(name for name in known if name not in spec.exclude_classes)


def _check_names(class_names: Sequence[str]) -> None:
    if alike := alike_names(class_names):
        raise InputError(
            f"data: the classes {alike[0]!r} and {alike[1]!r} differ by case or spaces only: if they are one, put "
            "its pictures under one name; else rename one, or leave it out by data.exclude_classes"
        )


def _may_be_sets(class_names: Sequence[str], separator: str) -> str:
    """That classes read as sets of labels; empty where none does."""
    if (name := may_be_a_set(class_names, separator)) is None:
        return ""
    return (
        f"the class {shorten(name)} reads as several labels of one picture: if it is, set data.labels to multi (in a "
        "csv: or parquet: source)"
    )


def _known_classes(wanted: str, known: Sequence[str]) -> str:
    if match := get_close_matches(wanted, known, n=1):
        return f"did you mean {match[0]!r}?"
    names = known[:_MOST_NAMED]
    more = len(known) - len(names)
    return f"there are {', '.join(names)}" + (f" and {more} more" if more else "")


def _check_pattern(pattern: str, names: Sequence[str]) -> None:
    if not any(group_in(name, pattern) for name in names):
        kind = "names" if "/" in pattern else "file names"
        raise InputError(
            f"data.group_pattern: {shorten(pattern)} is found in none of {len(names)} {kind}, such as "
            f"{searched_in(names[0], pattern)!r}; write one that finds what pictures of one group share, with a / in "
            "it to look at folders too"
        )


def _in_blocks(positions: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """So many at a time that copies of what stands there are small, however many pictures there are."""
    return (positions[start : start + _BLOCK] for start in range(0, len(positions), _BLOCK))


def _digest(ids: Any, labels: Any, class_names: tuple[str, ...]) -> str:
    lines = sorted(f"{bytes(key).decode()}:{class_names[label]}" for key, label in zip(ids, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
