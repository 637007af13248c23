"""What people are told of the champion's test where pictures have several labels: one line per label.

In: counts and average precisions. Out: figures, files. The confusion matrix of pictures with one class is in
`tuner.report.confusion`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainables.files.storage import write_bytes


@dataclass(frozen=True)
class LabelLine:
    """How well one label is found.

    Attributes:
        label: Its name.
        pictures: Pictures that have it.
        average_precision: None where none has it.
        given: Pictures that are given it, from a probability of a half on.
        right: Pictures that have it and are given it.
        precision: Share of the given that are right; None where none is given.
        recall: Share of the pictures that are given it; None where none has it.
    """

    label: str
    pictures: int
    average_precision: float | None
    given: int
    right: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class LabelTable:
    """All labels of a side, and how many pictures it has."""

    lines: tuple[LabelLine, ...]
    total: int

    @classmethod
    def of(cls, class_names: Sequence[str], counts: Any, average_precisions: Sequence[float | None]) -> LabelTable:
        """From counts [K, 2, 2], rows whether a picture has the label and columns whether it is given."""
        lines = []
        for name, ((neither, wrong), (missed, right)), value in zip(
            class_names, counts, average_precisions, strict=True
        ):
            total = neither + wrong + missed + right
            pictures, given = missed + right, wrong + right
            precision = right / given if given else None
            recall = right / pictures if pictures else None
            lines.append(LabelLine(name, pictures, value, given, right, precision, recall))
        return cls(tuple(lines), total)

    def csv(self) -> str:
        """One line per label."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(LabelLine.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in self.lines)
        return out.getvalue()

    def json(self) -> str:
        """The same lines, and the number of pictures."""
        return json.dumps({"pictures": self.total, "labels": [asdict(line) for line in self.lines]}, indent=1)


def write_labels(table: LabelTable, folder: Path) -> list[Path]:
    """Writes ``labels.csv`` and ``labels.json``, each whole or not at all; returns the paths."""
    contents = {"labels.csv": table.csv(), "labels.json": table.json()}
    for name, content in contents.items():
        write_bytes(str(folder / name), content.encode())
    return [folder / name for name in contents]
