"""What a registered model says of pictures: a file, or a folder and all below it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.data.candidates import shown
from trainables.data.decoding import UnreadablePictureError, decode_picture
from trainables.errors import InputError
from trainables.files.typed_path import expand

if TYPE_CHECKING:
    from tuner.models.classifier import Classifier

_AT_ONCE = 64
_GIVEN_FROM = 0.5


@dataclass(frozen=True)
class Prediction:
    """What one picture is taken for, and the next best classes.

    Attributes:
        name: Path of the picture.
        classes: Pairs of class and probability, the model's decision first: the most probable, or by its costs the one
            expected to cost least; empty when it could not be read.
        expected_costs: Of these classes, where the model has costs.
        are_given: Whether the picture has these labels, where it may have several.
        problem: Why it could not be read.
    """

    name: str
    classes: tuple[tuple[str, float], ...] = ()
    expected_costs: tuple[float, ...] = ()
    are_given: tuple[bool, ...] = ()
    problem: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One row per class, in order."""
        rows: list[dict[str, Any]] = [
            {"picture": self.name, "rank": rank, "class": name, "probability": round(probability, 6)}
            for rank, (name, probability) in enumerate(self.classes, start=1)
        ]
        for row, cost in zip(rows, self.expected_costs, strict=False):
            row["expected_cost"] = round(cost, 6)
        for row, is_given in zip(rows, self.are_given, strict=False):
            row["given"] = is_given
        return rows


def find_pictures(place: Path) -> list[Path]:
    """The file itself, or every file below a folder that is not hidden, by name.

    Raises:
        InputError: There is no such place, or nothing in it.
    """
    place = expand(place, "predict")
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise InputError(f"predict: there is no file or folder {str(place)!r}; give the path of a picture or a folder")
    files = sorted(
        path
        for path in place.rglob("*")
        if _is_file(path) and not any(part.startswith(".") for part in path.relative_to(place).parts)
    )
    if not files:
        raise InputError(f"predict: folder {str(place)!r} holds no files")
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # it stands where only others may look: whoever reads it says so
        return True


def predict(classifier: Classifier, pictures: list[Path], top_k: int) -> Iterator[Prediction]:
    """Classifies pictures in order, a few at a time; one that cannot be read is said to be so."""
    import torch

    from trainables.training.scores import expected_costs

    names, costs = classifier.card.class_names, classifier.card.costs
    for first in range(0, len(pictures), _AT_ONCE):
        chunk = pictures[first : first + _AT_ONCE]
        images, problems = {}, {}
        for path in chunk:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what Pillow has to say of odd files does not change their pixels
                    pixels_HWC = decode_picture(path.read_bytes(), classifier.card.stored_side_px)
                images[path] = torch.from_numpy(pixels_HWC).permute(2, 0, 1)
            except (UnreadablePictureError, OSError) as error:
                problems[path] = str(error)
        probabilities = dict(zip(images, classifier.probabilities(list(images.values())), strict=True))
        for path in chunk:
            if path in problems:
                yield Prediction(shown(os.fsencode(path)), problem=problems[path])
                continue
            values_K = probabilities[path]
            # All labels that the picture is given, however few are asked for.
            num_given = 0 if classifier.card.labels == "single" else int((values_K >= _GIVEN_FROM).sum())
            if costs is None:
                costs_K, order = None, values_K.argsort(descending=True, stable=True)[: max(top_k, num_given)]
            else:
                costs_K = expected_costs(values_K.unsqueeze(0), torch.tensor(costs))[0]
                order = costs_K.argsort(stable=True)[:top_k]
            yield Prediction(
                shown(os.fsencode(path)),
                tuple((names[label], values_K[label].item()) for label in order.tolist()),
                () if costs_K is None else tuple(costs_K[order].tolist()),
                () if classifier.card.labels == "single" else tuple((values_K[order] >= _GIVEN_FROM).tolist()),
            )
