"""The digits that scikit-learn carries, for a first sweep without a file or a network."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from trainables.data.picture import Picture, pgm
from trainables.errors import InputError


class DigitsSource:
    """The 1,797 handwritten digits that scikit-learn carries (UCI, Alpaydin 1998): 8 x 8 px, grey, ten classes."""

    uri = "digits"

    def __init__(self, place: str = "") -> None:
        if place:
            raise InputError(f"data source 'digits:{place}': this source takes no path: write 'digits'")

    def pictures(self) -> Sequence[Picture]:
        """The digits in scikit-learn's order.

        As PGM files and not PNG: those would be compressed by whichever zlib is there, and the splits hash the bytes.
        """
        pixels_NHW, labels_N = _load_digits()
        grey_NHW = np.rint(pixels_NHW * (255 / 16)).astype(np.uint8)
        return [
            Picture(f"{number:04d}", str(label), None, partial(pgm, grey_HW.tobytes(), *grey_HW.shape))
            for number, (grey_HW, label) in enumerate(zip(grey_NHW, labels_N.tolist(), strict=True))
        ]

    def signature(self) -> str:
        """Constant: the set does not change."""
        return hashlib.sha256(b"digits, 1797 x 8 x 8, pgm").hexdigest()


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 8, 8] from 0 to 16 and labels [1797]; read past scikit-learn, whose import takes a second."""
    package = importlib.util.find_spec("sklearn")
    for place in (package.submodule_search_locations or ()) if package else ():
        path = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            with gzip.open(path, "rt") as lines:
                rows = np.loadtxt(lines, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target
