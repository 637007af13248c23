"""The confusion matrix as figures, table and picture."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuner.report.confusion import Confusion, draw_confusion, write_confusion


def test_confusion_figures() -> None:
    confusion = Confusion.of(("a", "b", "c"), np.array([[8, 2, 0], [1, 4, 0], [0, 0, 0]]))
    assert (confusion.total, confusion.correct) == (15, 12)
    assert confusion.majority_rate == pytest.approx(10 / 15)
    assert confusion.shares() == [[0.8, 0.2, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 0.0]]
    assert math.isnan(Confusion.of(("a",), [[0]]).majority_rate)
    with pytest.raises(ValueError, match="3 classes has 3 rows and columns"):
        Confusion.of(("a", "b", "c"), [[1, 2], [3, 4]])


def test_tables_hold_names_and_counts(tmp_path: Path) -> None:
    names = ("plain", 'with "quotes", and commas')
    confusion = Confusion.of(names, [[3, 1], [0, 5]])
    paths = write_confusion(confusion, tmp_path / "new", "title")
    assert [path.name for path in paths] == ["confusion.csv", "confusion.json", "confusion.png"]
    header, *rows = csv.reader(io.StringIO(paths[0].read_text()))
    assert tuple(header[1:]) == names
    assert rows == [["plain", "3", "1"], [names[1], "0", "5"]]
    assert json.loads(paths[1].read_text())["counts"] == [[3, 1], [0, 5]]
    with Image.open(paths[2]) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    "names", [("$5_vs_$10", "price_$10_to_20_to_$30"), ("a", "Tomato___Tomato_Yellow_Leaf_Curl_Virus")]
)
def test_class_names_are_drawn_as_they_are(names: tuple[str, str]) -> None:
    """No mathematics where dollars are; of a long name its beginning, which is more than an ellipsis."""
    drawn = draw_confusion(Confusion.of(names, np.eye(2, dtype=int)), "title")
    plain = draw_confusion(Confusion.of(("a", "…"), np.eye(2, dtype=int)), "title")
    assert drawn != plain


@pytest.mark.parametrize("num_classes", [2, 12, 120])
def test_the_picture_shows_the_shares(num_classes: int) -> None:
    """A perfect matrix is dark on the diagonal only; with few or many classes, and names too long to print."""
    names = [f"a class with a very long name indeed, number {index}" for index in range(num_classes)]
    counts = np.eye(num_classes, dtype=int) * 9
    first = draw_confusion(Confusion.of(names, counts), "a title " * 12)
    other = draw_confusion(Confusion.of(names, counts[::-1]), "a title " * 12)
    pixels, mirrored = (np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=int) for png in (first, other))
    assert pixels.shape == mirrored.shape
    assert max(pixels.shape) <= 2700
    assert (pixels != mirrored).mean() > 0.5 / num_classes
