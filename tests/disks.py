"""Small disks of their own (see the fixture ``mount``), and what is done to them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def fill(folder: Path) -> Path:
    """Takes all the room that there is, and leaves a file to remove."""
    file = folder / "filler"
    with file.open("wb", buffering=0) as stream:
        for piece in (bytes(1 << 16), bytes(1 << 12)):
            with suppress(OSError):
                while True:
                    stream.write(piece)
    return file
