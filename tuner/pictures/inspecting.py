"""What a set of pictures is like, before anything is trained on it: how many, how large, how alike, how usable.

In: a source of pictures as a spec names it. Out: an `Inspection`: counts by side, sizes, brightness, copies and
look-alikes on several sides, files that cannot be read, and remarks on what to do about them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import combinations, islice, product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search_spaces.data_spec import DataSpec
from trainables.config import SPLIT_NAMES, SplitName
from trainables.data.decoding import Header, header_of
from trainables.data.fit import FitChoice, lost_by_crop
from trainables.data.packing import BadFile, in_order, num_readers
from trainables.data.picture import Picture
from trainables.data.sources import Source, open_source
from trainables.data.splits import dealt_as
from trainables.data.table import ImageTable
from trainables.errors import InputError
from tuner.pictures.dealt import DealtData

LOOK_ALIKE_BITS = 3
"""Two pictures whose difference hashes differ in at most so many of 64 bits are taken for shots of one thing."""

_HASH_SIDE = 8
_FEW_PICTURES = 20
_UNEVEN = 10.0
_NEARLY_BLACK = 8.0
_MOST_IN_A_BUCKET = 300
_MOST_LOOK_ALIKES = 1000
_MOST_BAD_FILES = 20
_MOST_NAMED = 5


@dataclass(frozen=True)
class ClassFacts:
    """One class.

    Attributes:
        name: Its name.
        counts: Pictures by side.
        brightness: Mean over its pictures, 0 to 255.
        contrast: Mean over its pictures of the grey values' standard deviation.
    """

    name: str
    counts: dict[SplitName, int]
    brightness: float
    contrast: float

    @property
    def total(self) -> int:
        """Pictures on all sides."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class LookAlike:
    """Two pictures that look alike and stand on different sides of the split.

    Attributes:
        first: Name of one.
        second: Name of the other.
        sides: Their sides.
        bits: In how many of 64 bits their difference hashes differ.
    """

    first: str
    second: str
    sides: tuple[str, str]
    bits: int


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        source: Where.
        num_pictures: Usable ones.
        sizes: Of these by side.
        classes: In label order; a picture with several labels counts for each.
        num_groups: Groups of pictures that stay together; 0 without any.
        copies: Names of pictures whose files are the same, byte for byte; they always share a side.
        notes: See `DealtData.notes`.
        sizes_px: Width and height of each file as it is, [M, 2].
        with_frames: Names of files that hold several pictures, of which the first is read.
        misnamed: Names of files that end as those of another kind do, and are read as what they are.
        cut_off: Share of each picture's area that a square from its middle leaves out, [N].
        fit: How `data.fit` brings them to a square, and why so.
        on_two_sides: Names of the pictures of each thing (a picture, or a group) that the source itself has on several
            sides.
        look_alikes: Across sides; at most 1,000.
        are_all_compared: Whether every pair was looked at that may look alike; not where very many do.
        bad_files: What was set aside.
        refusal: Why a sweep would refuse these pictures; empty if it would not.
    """

    source: str
    num_pictures: int
    sizes: Mapping[SplitName, int]
    classes: tuple[ClassFacts, ...]
    num_groups: int
    copies: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    sizes_px: NDArray[np.int64]
    with_frames: tuple[str, ...]
    misnamed: tuple[str, ...]
    cut_off: NDArray[np.float64]
    fit: FitChoice
    on_two_sides: tuple[tuple[str, ...], ...]
    look_alikes: tuple[LookAlike, ...]
    are_all_compared: bool
    bad_files: tuple[BadFile, ...]
    refusal: str

    @property
    def num_copies(self) -> int:
        """How many files one could do without."""
        return sum(len(same) - 1 for same in self.copies)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to do about it, in sentences."""
        return tuple(_remarks(self))

    def lines(self) -> Iterator[str]:
        """What does not fit into a table by class, and the remarks."""
        widths, heights = self.sizes_px.T if len(self.sizes_px) else np.zeros((2, 1), dtype=np.int64)
        yield (
            f"Sizes from {widths.min()} x {heights.min()} to {widths.max()} x {heights.max()} px, "
            f"half of the files at least {int(np.median(widths))} x {int(np.median(heights))}."
        )
        if self.num_groups:
            yield f"{self.num_groups} groups of pictures stay together."
        yield from self.remarks

    def to_json(self) -> str:
        """Everything but what is per picture."""
        facts = {
            "source": self.source,
            "num_pictures": self.num_pictures,
            "classes": [
                {"name": each.name, **each.counts, "brightness": each.brightness, "contrast": each.contrast}
                for each in self.classes
            ],
            "num_groups": self.num_groups,
            "num_copies": self.num_copies,
            "copies": self.copies,
            "on_two_sides": self.on_two_sides,
            "with_frames": self.with_frames,
            "misnamed": self.misnamed,
            "cut_off": {"mean": _mean(self.cut_off), "worst": float(self.cut_off.max(initial=0))},
            "fit": asdict(self.fit),
            "look_alikes": [asdict(pair) for pair in self.look_alikes],
            "bad_files": [asdict(file) for file in self.bad_files],
            "remarks": list(self.remarks),
        }
        return json.dumps(facts, indent=1, ensure_ascii=False)


def inspect_data(spec: DataSpec, dealt: DealtData, counted: Callable[[str, int, int], None]) -> Inspection:
    """Looks at every picture of a source once.

    Args:
        spec: Which pictures, and how they are dealt to the sides.
        dealt: What `deal_data` made of it.
        counted: Told what is being done, how much of it, of how much.
    """
    table, rows, sides = dealt.table, dealt.rows, dealt.sides
    looks = _look(table, rows, lambda done: counted("looking at pictures", done, len(rows)))
    counts = dealt.counts()
    classes = tuple(
        ClassFacts(
            name,
            {side: counts[side][name] for side in SPLIT_NAMES},
            _mean(looks.brightness[dealt.has_label(label)]),
            _mean(looks.contrast[dealt.has_label(label)]),
        )
        for label, name in enumerate(dealt.config.class_names)
    )
    groups = table.groups_of(rows, spec.group_pattern)
    names = [table.names[row] for row in rows.tolist()]
    stated = [None] * len(rows) if spec.split.source == "ignore" else table.sides[rows].tolist()
    look_alikes = _LookAlikes(looks.hashes, sides, names)
    headers = _headers(open_source(spec.source, dealt.config.label_separator), set(names), counted)
    refusal = ""
    try:
        dealt.check()
    except InputError as error:
        refusal = str(error)
    return Inspection(
        source=spec.source,
        num_pictures=len(rows),
        sizes={side: int((sides == side).sum()) for side in SPLIT_NAMES},
        classes=classes,
        num_groups=len({*groups} - {""}),
        copies=_together(table.ids[rows].tolist(), names),
        notes=tuple(dealt.notes()),
        on_two_sides=_together(dealt_as(table.ids[rows], groups), names, stated),
        sizes_px=np.array([header.size for header in headers.values()], dtype=np.int64).reshape(-1, 2),
        with_frames=tuple(name for name, header in headers.items() if header.num_frames > 1),
        misnamed=tuple(name for name, header in headers.items() if not header.is_named(name)),
        cut_off=lost_by_crop(*table.sizes_of(rows)),
        fit=dealt.fit,
        look_alikes=tuple(islice(look_alikes, _MOST_LOOK_ALIKES)),
        are_all_compared=look_alikes.are_all_compared,
        bad_files=dealt.report.bad_files,
        refusal=refusal,
    )


def _mean(values: NDArray[np.float64]) -> float:
    """0 for a class of which nothing is usable."""
    return float(values.mean()) if len(values) else 0.0


@dataclass(frozen=True)
class _Looks:
    brightness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    hashes: NDArray[np.uint64]


def _look(table: ImageTable, rows: NDArray[np.int64], done: Callable[[int], None]) -> _Looks:
    brightness, contrast = np.empty(len(rows)), np.empty(len(rows))
    hashes = np.empty(len(rows), np.uint64)
    for position, row in enumerate(rows.tolist()):
        pixels_HWC = table.image(row).permute(1, 2, 0).numpy()
        grey = Image.fromarray(pixels_HWC).convert("L")
        values = np.asarray(grey, dtype=np.float32)
        brightness[position], contrast[position] = values.mean(), values.std()
        hashes[position] = difference_hash(grey)
        done(position + 1)
    return _Looks(brightness, contrast, hashes)


def _together(
    keys: Sequence[str | bytes], names: Sequence[str], sides: Sequence[SplitName | None] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Names of pictures with the same key, where there are several of them, or of their sides."""
    places: dict[str | bytes, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    several = [same for same in places.values() if len(same) > 1]
    if sides is not None:
        several = [same for same in several if len({sides[place] for place in same} - {None}) > 1]
    return tuple(tuple(names[place] for place in same) for same in several)


def _headers(source: Source, names: set[str], counted: Callable[[str, int, int], None]) -> dict[str, Header]:
    """Those of the files that are in use, by name; what went away since it was packed has none."""
    chosen = [picture for picture in source.pictures() if picture.name in names]
    found = {}
    for number, (name, header) in enumerate(in_order(_header, chosen, num_readers(source.uri)), start=1):
        counted("looking at files", number, len(chosen))
        if header is not None:
            found[name] = header
    return found


def _header(picture: Picture) -> tuple[str, Header | None]:
    with suppress(OSError, InputError):
        return picture.name, header_of(picture.read())
    return picture.name, None


def difference_hash(grey: Image.Image) -> int:
    """64 bits that say where a small copy of a picture grows brighter from left to right (Krawetz 2013, dHash)."""
    small = np.asarray(grey.resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes())


class _LookAlikes:
    """Pairs on different sides whose hashes nearly agree.

    Of four 16-bit parts at least one agrees in full where at most three bits differ, so only such pairs are compared;
    of parts that very many have in common, the first ones of each side.
    """

    def __init__(self, hashes: NDArray[np.uint64], sides: NDArray[np.str_], names: Sequence[str]) -> None:
        self._hashes, self._sides, self._names = hashes, sides, names
        self.are_all_compared = True

    def __iter__(self) -> Iterator[LookAlike]:
        hashes, sides, names = self._hashes, self._sides, self._names
        seen: set[tuple[int, int]] = set()
        for part in range(4):
            buckets: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
            for position, key in enumerate(((hashes >> np.uint64(16 * part)) & np.uint64(0xFFFF)).tolist()):
                buckets[key][str(sides[position])].append(position)
            for one, other in (pair for bucket in buckets.values() for pair in combinations(bucket.values(), 2)):
                self.are_all_compared &= max(len(one), len(other)) <= _MOST_IN_A_BUCKET
                for first, second in product(one[:_MOST_IN_A_BUCKET], other[:_MOST_IN_A_BUCKET]):
                    bits = int(hashes[first] ^ hashes[second]).bit_count()
                    pair = min(first, second), max(first, second)
                    if bits <= LOOK_ALIKE_BITS and pair not in seen:
                        seen.add(pair)
                        yield LookAlike(names[first], names[second], (str(sides[first]), str(sides[second])), bits)


def _remarks(found: Inspection) -> Iterator[str]:
    if found.refusal:
        yield f"A sweep would refuse these pictures: {found.refusal}"
    if not found.classes:
        return
    largest = max(found.classes, key=lambda each: each.total)
    smallest = min(found.classes, key=lambda each: each.total)
    if few := sorted((each for each in found.classes if each.total < _FEW_PICTURES), key=lambda each: each.total):
        named = ", ".join(f"{each.name!r} {each.total}" for each in few[1:_MOST_NAMED])
        more = f" and {len(few) - _MOST_NAMED} more" if len(few) > _MOST_NAMED else ""
        yield (
            f"Class {smallest.name!r} has {smallest.total} pictures{f' ({named}{more})' if named else ''}: figures for "
            f"{'such classes' if named else 'it'} will be rough; add some, or leave it out by data.exclude_classes."
        )
    if smallest.total and largest.total > _UNEVEN * smallest.total:
        yield (
            f"{largest.name!r} has {largest.total / smallest.total:.0f} times as many pictures as {smallest.name!r}: "
            "choose by val/balanced_accuracy or val/macro_f1 rather than accuracy."
        )
    darkest = min(found.classes, key=lambda each: each.brightness)
    if darkest.total and darkest.brightness < _NEARLY_BLACK:
        yield (
            f"The pictures of {darkest.name!r} are nearly black, {darkest.brightness:.1f} of 255 on average: where a "
            "camera's 10 or 12 bits lie in files of 16, stretch them to the whole range, or save 8 bits."
        )
    if found.cut_off.any():
        yield f"To bring them to a square, data.fit: auto takes {found.fit.fit}: {found.fit.reason}."
    if found.look_alikes:
        pair = found.look_alikes[0]
        is_all = found.are_all_compared and len(found.look_alikes) < _MOST_LOOK_ALIKES
        at_least = "" if is_all else "At least "
        yield (
            f"{at_least}{len(found.look_alikes)} pairs on different sides look alike, such as {pair.first} "
            f"({pair.sides[0]}) and {pair.second} ({pair.sides[1]}): if they show one part or scene, the test figure "
            "will be too good; keep them together by data.group_pattern."
        )
    yield from _remarks_on_copies(found)
    yield from _remarks_on_files(found)


def _remarks_on_files(found: Inspection) -> Iterator[str]:
    if found.with_frames:
        yield (
            f"{len(found.with_frames)} files are animated or have pages, such as {found.with_frames[0]}: the first is "
            "read."
        )
    if found.misnamed:
        yield (
            f"{len(found.misnamed)} files are named as pictures of another kind, such as {found.misnamed[0]}: they are "
            "read as what they are."
        )
    if found.bad_files:
        yield f"{len(found.bad_files)} files cannot be used:"
        for bad in found.bad_files[:_MOST_BAD_FILES]:
            yield f"  {bad.name}: {bad.reason}"
        if len(found.bad_files) > _MOST_BAD_FILES:
            yield f"  and {len(found.bad_files) - _MOST_BAD_FILES} more; --format json lists all."


def _remarks_on_copies(found: Inspection) -> Iterator[str]:
    if found.num_copies:
        yield (
            f"{found.num_copies} files are copies of others, byte for byte, such as {_listed(found.copies[0])}; copies "
            "always share a side."
        )
    yield from (f"{note[:1].upper()}{note[1:]}." for note in found.notes)
    if found.on_two_sides:
        what = "groups of pictures" if found.num_groups else "pictures"
        yield (
            f"{len(found.on_two_sides)} {what} stand on several sides of the source, such as "
            f"{_listed(found.on_two_sides[0])}, which would judge by what was trained on: each is moved to the side "
            "that is held out longer, test before val. --format json lists all."
        )


def _listed(names: Sequence[str]) -> str:
    """The first names of some."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
