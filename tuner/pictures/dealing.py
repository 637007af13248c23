"""Pictures packed and dealt to the sides of a split, or to folds, and whether they can be learnt from and judged on.

In: which pictures a spec wants, and a home. Out: `PreparedData`, or the `DealtData` before it is judged. What the list
of a source's pictures shows is refused before any of them is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np

from search_spaces.data_spec import DataSpec
from trainables.config import SPLIT_NAMES, DataConfig, SplitName
from trainables.data.fit import choose_fit
from trainables.data.folds import beside_a_val_side
from trainables.data.label_sets import names_in
from trainables.data.limited_source import LimitedSource
from trainables.data.packing import pack
from trainables.data.picture import Picture
from trainables.data.sharing import publish_table
from trainables.data.sources import open_source
from trainables.data.splits import check_classes, labelled_rows, sides_of
from trainables.data.table import ImageTable, group_in, searched_in
from trainables.errors import InputError
from trainables.wording import shorten
from tuner.paths import HomePaths
from tuner.pictures.dealt import DealtData, PreparedData, check_names, sets_note
from tuner.records.shared_home import check_home, check_local

_MOST_NAMED = 12
_STORE_MARGIN = 1.5
"""Pictures are kept at this many times the network's size: random crops down to half the area then still shrink."""


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
    check_names(class_names)
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
        if not (why := sets_note(class_names, spec.label_separator)):
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


def _digest(ids: Any, labels: Any, class_names: tuple[str, ...]) -> str:
    lines = sorted(f"{bytes(key).decode()}:{class_names[label]}" for key, label in zip(ids, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
