"""Which pictures go on a contact sheet: some of each class, or what each augmentation policy makes of some.

In: packed pictures and their sides. Out: an image, to be saved as PNG.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
from PIL import Image

from search_spaces.ranges import MagnitudeRange, listed
from search_spaces.spec import SweepSpec
from trainables.config import POLICIES_WITH_MAGNITUDE, AugmentationConfig, Fit
from trainables.data.fit import lost_by_crop
from trainables.data.views import eval_view, view
from tuner.pictures.contact_sheet import SheetRow, contact_sheet, tile
from tuner.pictures.dealt import DealtData

_COLUMNS = 8
_MOST_CLASSES = 200


def sheet_of_classes(dealt: DealtData) -> Image.Image:
    """Some pictures of each class, as they are packed; of very many classes the first."""
    rows = []
    names = dealt.config.class_names
    for label, name in enumerate(names[:_MOST_CLASSES]):
        some = dealt.rows[dealt.has_label(label)]
        chosen = some[np.linspace(0, len(some) - 1, min(_COLUMNS, len(some))).round().astype(int)]
        # Tiles already: there may be 1,600 pictures on the sheet.
        pictures = [np.asarray(tile(dealt.table.image(row).permute(1, 2, 0).numpy())) for row in chosen.tolist()]
        rows.append(SheetRow(f"{name}: {len(some)}", pictures))
    if len(names) > _MOST_CLASSES:
        rows.append(SheetRow(f"and {len(names) - _MOST_CLASSES} classes more", []))
    return contact_sheet(rows)


def sheet_of_policies(spec: SweepSpec, dealt: DealtData) -> Image.Image:
    """Views of one training picture of each class, by policy and, where that counts, by magnitude."""
    in_train = dealt.sides == "train"
    firsts = [int(dealt.rows[in_train & (dealt.labels == label)][0]) for label in np.unique(dealt.labels[in_train])][
        :_COLUMNS
    ]
    size_px, num_each = spec.data.image_size_px, max(1, _COLUMNS // max(1, len(firsts)))
    rows = [SheetRow("as they are", [dealt.table.image(row).permute(1, 2, 0).numpy() for row in firsts])]
    rows += _rows_of_fits(dealt, firsts, size_px)
    for config in _policies(spec):
        shown = f" at {config.magnitude} of 30" if config.policy in POLICIES_WITH_MAGNITUDE else ""
        views = [
            view(dealt.table.image(row), config, dealt.table.id_of(row), index, size_px, dealt.fit.fit)
            .permute(1, 2, 0)
            .numpy()
            for row in firsts
            for index in range(num_each)
        ]
        rows.append(SheetRow(f"{config.policy}{shown}", views))
    return contact_sheet(rows)


def _rows_of_fits(dealt: DealtData, chosen: list[int], size_px: int) -> list[SheetRow]:
    """What each fit makes of some pictures, the one in use first; nothing where all are square and look the same."""
    if not lost_by_crop(*dealt.table.sizes_of(dealt.rows)).any():
        return []
    images = [dealt.table.image(row) for row in chosen]
    in_use = dealt.fit.fit
    return [
        SheetRow(
            f"fit {fit}" if fit == in_use else f"fit {fit}, not in use",
            [eval_view(image, size_px, fit).permute(1, 2, 0).numpy() for image in images],
        )
        for fit in sorted(get_args(Fit), key=lambda fit: fit != in_use)
    ]


def _policies(spec: SweepSpec) -> Iterator[AugmentationConfig]:
    magnitude = spec.search.magnitude
    ends = (magnitude.low, magnitude.high) if isinstance(magnitude, MagnitudeRange) else listed(magnitude)
    for name in listed(spec.search.augmentation):
        for strength in ends if name in POLICIES_WITH_MAGNITUDE else ends[:1]:
            yield AugmentationConfig(policy=name, magnitude=strength, num_views="unlimited")
