"""The pictures in a Parquet file, a few rows at a time: a row group may hold a whole set.

In: a file, a row group, a column. Out: what stands in its rows, for readers that go through them nearly in order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from trainables.errors import InputError, StorageError, first_line
from trainables.files.storage import OF_NO_FILE, is_local, open_filesystem, problem_of, problem_with

_ROWS_AT_ONCE, _BATCHES_KEPT = 32, 4
_BUFFER_BYTES = 1 << 20
_ROW_GROUPS_OPEN = 4
_TRIES, _PAUSE_S = 3, 1.0
_reading = threading.Lock()


@dataclass(frozen=True)
class ParquetPlace:
    """One version of a Parquet file: where its filesystem is found, its path there, and its time."""

    place: str
    path: str
    mtime_ns: int


def open_parquet(filesystem: pyarrow.fs.FileSystem, path: str) -> pyarrow.parquet.ParquetFile:
    """A file that is read page by page rather than a row group at once."""
    return pyarrow.parquet.ParquetFile(filesystem.open_input_file(path), buffer_size=_BUFFER_BYTES, pre_buffer=False)


def read_image(file: ParquetPlace, row_group: int, column: str, position: int) -> bytes:
    """The bytes of the picture in one row.

    Raises:
        InputError: There are none, or the file is damaged there.
        StorageError: The storage does not answer, or no longer lets us read.
    """
    with _reading:  # each row group is read once, for all threads
        value = _patiently_read(file, row_group, column, position)
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise InputError("the row holds no picture")
    return content


def _patiently_read(file: ParquetPlace, row_group: int, column: str, position: int) -> Any:
    """What stands in a row. Storage that fails looks like damage: only what fails again and again is damaged."""
    for tries_left in reversed(range(_TRIES)):
        try:
            return _rows_of(file, row_group, column).value(position)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            filesystem, _ = open_filesystem(file.place)
            problem = problem_with(filesystem, file.path)
            if problem or getattr(error, "errno", None) in OF_NO_FILE:
                raise StorageError(f"parquet:{file.place}: {file.path}: {problem or problem_of(error)}") from error
            if not tries_left:
                raise InputError(f"the file is damaged there: {first_line(error)}") from error
            time.sleep(0 if is_local(file.place) else _PAUSE_S)
    raise AssertionError


class _Rows:
    """One column of a row group, from its first row on; the last rows are kept, for whoever is a little behind."""

    def __init__(self, reopen: Callable[[], pyarrow.parquet.ParquetFile], row_group: int, column: str) -> None:
        self._reopen, self._opened = reopen, reopen()
        self._row_group, self._column = row_group, column
        self._failed_at = self._num_failures = 0
        self._damage = ""
        self._begin()

    def value(self, position: int) -> Any:
        """What stands in a row; who goes back further than what is kept makes it begin again."""
        if self._num_failures >= _TRIES and position >= self._failed_at:
            raise InputError(self._damage)  # nothing behind it can be read either
        if self._kept and position < self._kept[0][0]:
            self._begin()
        while position >= self._next:
            try:
                column = next(self._batches).column(0)
            except (OSError, pa.ArrowException) as error:
                self._num_failures = self._num_failures + 1 if self._failed_at == self._next else 1
                self._failed_at, self._damage = self._next, f"the file is damaged there: {first_line(error)}"
                # What has failed once has no next batch, and what it was read through may be dead for good.
                self._opened = self._reopen()
                self._begin()
                raise
            if self._next >= self._failed_at:
                self._num_failures = 0
            self._kept.append((self._next, column))
            self._next += len(column)
        start, column = next(batch for batch in reversed(self._kept) if batch[0] <= position)
        return column[position - start].as_py()

    def _begin(self) -> None:
        self._kept: deque[tuple[int, pa.Array]] = deque(maxlen=_BATCHES_KEPT)
        self._next = 0
        self._batches: Iterator[pa.RecordBatch] = self._opened.iter_batches(
            _ROWS_AT_ONCE, row_groups=[self._row_group], columns=[self._column], use_threads=False
        )


@lru_cache(_ROW_GROUPS_OPEN)
def _rows_of(file: ParquetPlace, row_group: int, column: str) -> _Rows:
    def reopen() -> pyarrow.parquet.ParquetFile:
        filesystem, _ = open_filesystem(file.place)
        return open_parquet(filesystem, file.path)

    return _Rows(reopen, row_group, column)
