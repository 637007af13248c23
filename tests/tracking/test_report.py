"""The interval's numbers, and the confusion matrix as table and picture."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tuner.report import Confusion, draw_confusion, wilson_interval, write_confusion


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_of_published_examples(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_interval_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    correct, total = case
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    mirrored = wilson_interval(total - correct, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_an_impossible_count_has_no_interval(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="there is no interval"):
        wilson_interval(correct, total)


def test_confusion_figures() -> None:
    confusion = Confusion.of(("a", "b", "c"), np.array([[8, 2, 0], [1, 4, 0], [0, 0, 0]]))
    assert (confusion.total, confusion.correct) == (15, 12)
    assert confusion.majority_rate == pytest.approx(10 / 15)
    assert confusion.shares() == [[0.8, 0.2, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 0.0]]
    metrics = confusion.test_metrics()
    assert metrics["test/accuracy"] == pytest.approx(0.8)
    assert (metrics["test/accuracy_low"], metrics["test/accuracy_high"]) == wilson_interval(12, 15)
    assert metrics["test/majority_rate"] == pytest.approx(10 / 15)
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
