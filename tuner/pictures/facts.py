"""What a spec for a set of pictures is fitted to: a look at the set, without decoding it, and at this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from search_spaces.fitting import DataFacts
from trainables.data.decoding import decode_picture, header_of
from trainables.data.limited_source import LimitedSource
from trainables.data.picture import Picture
from trainables.data.sources import open_source
from trainables.errors import InputError
from trainables.wording import shorten_place

_SAMPLE = 100
_DECODED_SAMPLE, _SMALL_PX = 24, 32
_FAINT_COLOUR = 4.0
"""Of 255: what compression makes of grey."""
_GPUS = Path("/proc/driver/nvidia/gpus")


def facts_of(
    source: str,
    label_separator: str | None = None,
    *,
    max_per_class: int | None = None,
    excluded: Collection[str] = (),
    pools_sides: bool = False,
) -> DataFacts:
    """Counts the classes, looks at the sizes of some pictures, and whether this machine has a GPU.

    Args:
        source: As a spec names it.
        label_separator: Between the labels of a picture that may have several; None: each has one class.
        max_per_class: As in a spec's data.
        excluded: Classes that are left out.
        pools_sides: Whether the source's own sides are ignored.

    Raises:
        InputError: There is no such source, or no picture of it can be opened.
    """
    opened = open_source(source, label_separator)
    pictures = (opened if max_per_class is None else LimitedSource(opened, max_per_class)).pictures()
    if label_separator is None and excluded:  # who leaves out all of them is told so when the spec is used
        pictures = [picture for picture in pictures if picture.class_name not in excluded] or pictures
    names: Iterable[str] = (picture.class_name for picture in pictures)
    if label_separator is not None:
        names = (label for name in names for label in name.split(label_separator) if label and label not in excluded)
    counts = Counter(names)
    sides = Counter(None if pools_sides else picture.side for picture in pictures)
    has_sides = {"train", "val"} <= sides.keys() or {"train", "test"} <= sides.keys()
    return DataFacts(
        source=opened.uri,
        class_counts=dict(sorted(counts.items())),
        has_sides=has_sides,
        short_side_px=_short_side(pictures, source),
        has_gpu=has_gpu(),
        is_grey=_is_grey(pictures),
        label_separator=label_separator,
        num_files=None if label_separator is None else len(pictures),
        num_to_learn=sides["train"] + sides[None] if has_sides else None,
    )


def _short_side(pictures: Sequence[Picture], source: str) -> int:
    """The median of some pictures' shorter sides, from their headers."""
    chosen = _some(pictures, _SAMPLE)
    found: list[int] = []
    reason = ""
    for picture in chosen:
        try:
            found.append(min(header_of(picture.read()).size))
        except (OSError, InputError) as error:  # packing will set it aside and name it
            reason = reason or f"{picture.name}: {error}"
    if not found:
        raise InputError(
            f"data source {shorten_place(source)}: none of {len(chosen)} files is a picture that can be opened "
            f"({reason}); `thaw data inspect` lists them: mend them, or give another folder"
        )
    return int(np.median(found))


def _is_grey(pictures: Sequence[Picture]) -> bool:
    """Whether red, green and blue are alike in some pictures, however their files keep them."""
    spreads = []
    for picture in _some(pictures, _DECODED_SAMPLE):
        with suppress(OSError, InputError):
            spreads.append(np.ptp(decode_picture(picture.read(), _SMALL_PX), axis=2).mean())
    return bool(spreads) and max(spreads) < _FAINT_COLOUR


def _some(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """Pictures from beginning to end, evenly."""
    places = np.linspace(0, len(pictures) - 1, min(most, len(pictures))).round().astype(int)
    return [pictures[place] for place in places.tolist()]


def has_gpu() -> bool:
    """Whether this machine has one of NVIDIA's, without asking CUDA, whose start takes seconds."""
    return _GPUS.is_dir() and any(_GPUS.iterdir())
