"""A packed image table: opened in milliseconds by any number of processes, its pixels read as they are asked for.

In: the folder that `packing.pack` wrote. Out: content ids, labels, sides and images by row. torch is imported when the
first image is asked for, so that light processes can read the rest.
"""

from __future__ import annotations

import difflib
import errno
import mmap
import os
import re
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainables.config import SPLIT_NAMES
from trainables.data.table_file import MANIFEST_NAME, SCHEMA, Manifest, column_values
from trainables.errors import InputError

if TYPE_CHECKING:
    import torch


class ImageTable:
    """Images and what is known of them, by row; pickled as its path.

    Attributes:
        path: The folder.
        fingerprint: See `Manifest`.
        side_px: See `Manifest`.
        class_names: In label order.
        ids: SHA-256 of each picture file's bytes as hexadecimal text, [N] of dtype S64.
        labels: [N], int64.
        sides: The side that the source gave each picture, or None: [N], object.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.fingerprint = manifest.fingerprint
        self.side_px = manifest.side_px
        self.class_names = manifest.class_names
        self._descriptor = os.open(path / manifest.file, os.O_RDONLY | os.O_CLOEXEC)
        # At the interpreter's end other threads may still read.
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        if len(self._map) != manifest.file_bytes:
            raise ValueError(f"{manifest.file} has {len(self._map)} bytes, not {manifest.file_bytes}")
        self._batches = _read_batches(self._map)
        self.ids: NDArray[np.bytes_] = self._column(partial(column_values, name="id"))
        self.labels: NDArray[np.int64] = self._column(partial(column_values, name="label")).astype(np.int64)
        codes = self._column(partial(column_values, name="side"))
        self.sides: NDArray[np.object_] = np.array([*SPLIT_NAMES, None], dtype=object)[codes]
        self._heights = self._column(partial(column_values, name="height"))
        self._widths = self._column(partial(column_values, name="width"))
        address = pa.py_buffer(self._map).address
        self._starts = self._column(lambda batch: _pixel_starts(batch, address))
        self._let_go()
        if len(self.ids) != manifest.num_images:
            raise ValueError(f"{manifest.file} has {len(self.ids)} images, not {manifest.num_images}")

    @classmethod
    def open(cls, path: str | Path) -> ImageTable:
        """Opens the table in a folder.

        Args:
            path: The folder's path, or a `file:` URI of it.

        Raises:
            InputError: No table there, or a damaged one.
        """
        folder = _local_folder(path)
        try:
            return cls(folder, Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise InputError(f"image table {path}: not there: pack the pictures again") from error
        except (ValueError, pa.ArrowException) as error:
            raise InputError(f"image table {path}: damaged ({error}): remove it and pack the pictures again") from error

    def __reduce__(self) -> tuple[Callable[[str], ImageTable], tuple[str]]:
        return ImageTable.open, (str(self.path),)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def id_of(self, row: int) -> str:
        """The content id of one row as text."""
        return bytes(self.ids[row]).decode("ascii")

    @cached_property
    def names(self) -> list[str]:
        """The name of each picture in its source."""
        return self._texts("name")

    @cached_property
    def source_groups(self) -> list[str]:
        """The group that the source puts each picture in; empty for none."""
        return self._texts("group")

    def groups_of(self, rows: NDArray[np.int64], pattern: str | None) -> list[str]:
        """The group of some rows; empty for a picture that stays with nobody.

        Args:
            rows: [N].
            pattern: See `group_in`; None: what the source says.
        """
        if pattern is None:
            return [self.source_groups[row] for row in rows.tolist()]
        return [group_in(self.names[row], pattern) for row in rows.tolist()]

    def image(self, row: int) -> torch.Tensor:
        """The pixels of one row: uint8 [3, H, W] in channels-last memory, the caller's own.

        Read and not mapped, as the columns are: around a page that is missing the kernel maps others, some 2 MiB of
        them, and a process that has seen all pictures would be as large as all of them.

        Raises:
            OSError: The disk failed, or the file was cut short since it was opened.
        """
        import torch

        pixels_HWC = np.empty((self._heights[row], self._widths[row], 3), np.uint8)
        self._read(pixels_HWC.reshape(-1), int(self._starts[row]))
        return torch.from_numpy(pixels_HWC).permute(2, 0, 1)

    def rows_of(self, class_names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of some classes, in table order, and their labels as positions in `class_names`.

        Raises:
            InputError: A class that the table does not have, or one named twice.
        """
        new_label = np.full(len(self.class_names), -1, dtype=np.int64)
        places = {name: place for place, name in enumerate(self.class_names)}
        for position, name in enumerate(class_names):
            if name not in places:
                nearest = difflib.get_close_matches(name, self.class_names, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(self.class_names)}"
                raise InputError(f"class {name!r}: the pictures have no such class: {hint}")
            if new_label[places[name]] >= 0:
                raise InputError(f"class {name!r}: named twice: name each class once")
            new_label[places[name]] = position
        labels = new_label[self.labels]
        rows = np.flatnonzero(labels >= 0)
        return rows, labels[rows]

    def sizes_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Heights and widths of the pictures of some rows, as they are packed: [N] each."""
        return self._heights[rows].astype(np.int64), self._widths[rows].astype(np.int64)

    def _read(self, into: NDArray[np.uint8], start: int) -> None:
        """Fills an array with bytes of the file."""
        done = 0
        while done < len(into):
            try:
                num_read = os.preadv(self._descriptor, [into[done:].data], start + done)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            if not num_read:
                raise OSError(errno.EIO, "cut short while it was open: who opens it next packs it anew", str(self.path))
            done += num_read

    def _let_go(self) -> None:
        """Of the columns' pages: what stays in the system's cache costs this process nothing."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _texts(self, name: str) -> list[str]:
        texts = [text for batch in self._batches for text in batch.column(name).to_pylist()]
        self._let_go()
        return texts

    def _column(self, read: Callable[[pa.RecordBatch], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([read(batch) for batch in self._batches])


def searched_in(name: str, pattern: str) -> str:
    """Where a pattern is looked for: in the name of a picture's file, or with a ``/`` in its place in the source."""
    return name if "/" in pattern else name.rpartition("/")[2]


def group_in(name: str, pattern: str) -> str:
    """What a regular expression finds in a picture's name: its first parenthesis, or all that it matches, or ''."""
    match = re.search(pattern, searched_in(name, pattern))
    return "" if match is None else match[1 if match.re.groups else 0] or ""


def _local_folder(path: str | Path) -> Path:
    parts = urlsplit(str(path))
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if "://" in str(path):
        raise InputError(f"image table {path}: only local folders can be opened: copy the table to a local disk")
    return Path(path)


def _read_batches(mapped: mmap.mmap) -> list[pa.RecordBatch]:
    with pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))) as reader:
        if not reader.schema.equals(SCHEMA):
            raise ValueError("its columns are not those of an image table")
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def _pixel_starts(batch: pa.RecordBatch, map_address: int) -> NDArray[np.int64]:
    """Where each picture's pixels begin, in bytes from the start of the file."""
    _, offsets, data = batch.column("pixels").buffers()
    within = np.frombuffer(offsets, dtype=np.int32, count=batch.num_rows)
    return within.astype(np.int64) + (data.address - map_address)
