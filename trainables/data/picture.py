"""One picture before it is decoded: what every source of pictures hands out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainables.config import SplitName


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture before decoding.

    Attributes:
        name: Its place in the source, with `/` between folders; unique there.
        class_name: The class it shows.
        side: The side its source puts it on, or None where the source has no sides.
        read: Returns the file's bytes; raises OSError or InputError where that cannot be done.
        group: What it shares with pictures that must stay on its side (a part, a patient, a scene); empty: nothing.
    """

    name: str
    class_name: str
    side: SplitName | None
    read: Callable[[], bytes]
    group: str = ""


def pgm(pixels: bytes, height: int, width: int) -> bytes:
    """Grey pixels as a PGM file."""
    return b"P5 %d %d 255\n" % (width, height) + pixels
