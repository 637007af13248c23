"""What a registered model says of pictures: a file, or a folder and all below it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.data.decoding import UnreadablePictureError, decode_picture
from trainables.errors import InputError

if TYPE_CHECKING:
    from tuner.model_file import Classifier

_AT_ONCE = 64


@dataclass(frozen=True)
class Prediction:
    """One picture's most probable classes.

    Attributes:
        name: Path of the picture.
        classes: Pairs of class and probability, the most probable first; empty when it could not be read.
        problem: Why it could not be read.
    """

    name: str
    classes: tuple[tuple[str, float], ...] = ()
    problem: str | None = None


def find_pictures(place: Path) -> list[Path]:
    """The file itself, or every file below a folder that is not hidden, by name.

    Raises:
        InputError: There is no such place, or nothing in it.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise InputError(f"predict: there is no file or folder {str(place)!r}; give the path of a picture or a folder")
    files = sorted(
        path
        for path in place.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(place).parts)
    )
    if not files:
        raise InputError(f"predict: folder {str(place)!r} holds no files")
    return files


def predict(classifier: Classifier, pictures: list[Path], top_k: int) -> Iterator[Prediction]:
    """Classifies pictures in order, a few at a time; one that cannot be read is said to be so."""
    import torch

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
                yield Prediction(str(path), problem=problems[path])
                continue
            values, order = probabilities[path].sort(descending=True, stable=True)
            ranked = zip(order[:top_k].tolist(), values[:top_k].tolist(), strict=True)
            names = classifier.card.class_names
            yield Prediction(str(path), tuple((names[label], value) for label, value in ranked))
