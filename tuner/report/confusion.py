"""What people are told of the champion's test: the confusion matrix as table and picture.

In: counts. Out: figures, files. Nothing here keeps state; the picture is drawn without matplotlib's global figure.
"""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.files.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_COUNTS = 30
_MOST_LABELS = 100
_LONGEST_NAME = 24
_MOST_LEVEL_CHARACTERS = 50
_TITLE_PER_INCH = 12
_DARK = 0.55


@dataclass(frozen=True)
class Confusion:
    """How often each class was taken for each.

    Attributes:
        class_names: In the order of rows and columns.
        counts: Pictures by true class (rows) and predicted class (columns), which is what the model
            decides, by costs where it has them.
    """

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, class_names: Sequence[str], counts: Any) -> Confusion:
        """From an integer matrix [K, K]: nested lists, an array or a tensor.

        Raises:
            ValueError: It is not square, or not of as many classes as there are names.
        """
        rows = tuple(tuple(int(value) for value in row) for row in counts)
        num_classes = len(class_names)
        if len(rows) != num_classes or any(len(row) != num_classes for row in rows):
            raise ValueError(f"a confusion matrix of {num_classes} classes has {num_classes} rows and columns")
        return cls(tuple(class_names), rows)

    @property
    def total(self) -> int:
        """Number of pictures."""
        return sum(map(sum, self.counts))

    @property
    def correct(self) -> int:
        """Pictures whose class was found."""
        return sum(row[index] for index, row in enumerate(self.counts))

    @property
    def majority_rate(self) -> float:
        """Accuracy of always saying the most frequent class; NaN without pictures."""
        return max(map(sum, self.counts)) / self.total if self.total else math.nan

    def shares(self) -> list[list[float]]:
        """Each row divided by its sum; a class without pictures has zeros."""
        return [[value / max(1, sum(row)) for value in row] for row in self.counts]

    def csv(self) -> str:
        """One line per true class, one column per predicted class."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["true \\ predicted", *self.class_names])
        writer.writerows([name, *row] for name, row in zip(self.class_names, self.counts, strict=True))
        return out.getvalue()

    def json(self) -> str:
        """Class names, and counts by true class (rows)."""
        return json.dumps({"class_names": self.class_names, "counts": self.counts, "rows": "true class"}, indent=1)


def write_confusion(confusion: Confusion, folder: Path, title: str) -> list[Path]:
    """Writes ``confusion.csv``, ``.json`` and ``.png``, each whole or not at all; returns the paths."""
    contents = {
        "confusion.csv": confusion.csv().encode(),
        "confusion.json": confusion.json().encode(),
        "confusion.png": draw_confusion(confusion, title),
    }
    for name, content in contents.items():
        write_bytes(str(folder / name), content)
    return [folder / name for name in contents]


def draw_confusion(confusion: Confusion, title: str) -> bytes:
    """The matrix as PNG: colour is the share of the true class, the number in a cell the count."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_classes = len(confusion.class_names)
    side = min(3.0 + 0.5 * num_classes, 16.0)
    figure = Figure(figsize=(side + 1.5, side), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(confusion.shares(), cmap="Blues", vmin=0, vmax=1)
    _draw_labels(axes, confusion.class_names, side)
    if num_classes <= _MOST_COUNTS:
        _draw_counts(axes, confusion, side)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(textwrap.fill(title, round(_TITLE_PER_INCH * (side + 1.5))), fontsize=11, pad=10)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03, label="share of the true class")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    bar.outline.set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _draw_labels(axes: Axes, class_names: Sequence[str], side: float) -> None:
    """Class names as far as they can be read, and white lines between the cells."""
    num_classes = len(class_names)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if num_classes > _MOST_LABELS:
        axes.tick_params(length=0)
        return
    ticks = range(num_classes)
    size = min(10.0, 55 * side / num_classes)
    names = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in class_names]
    is_long = max(map(len, names)) * num_classes > _MOST_LEVEL_CHARACTERS
    turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if is_long else {"rotation": 0, "ha": "center"}
    axes.set_xticks(ticks, names, fontsize=size, parse_math=False, **turned)
    if is_long:
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axes.tick_params(length=0, which="both")
    axes.set_xticks([tick + 0.5 for tick in ticks[:-1]], minor=True)
    axes.set_yticks([tick + 0.5 for tick in ticks[:-1]], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5 if num_classes <= _MOST_COUNTS else 0.3)


def _draw_counts(axes: Axes, confusion: Confusion, side: float) -> None:
    """The number of pictures in each cell; zeros faint, so that mistakes stand out."""
    size = min(11.0, 40 * side / len(confusion.class_names))
    for row, (counts, shares) in enumerate(zip(confusion.counts, confusion.shares(), strict=True)):
        for column, (count, share) in enumerate(zip(counts, shares, strict=True)):
            colour = "white" if share > _DARK else ("#333333" if count else "#c8c8c8")
            weight = "bold" if row == column else "normal"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=size, color=colour, fontweight=weight)
