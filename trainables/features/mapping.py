"""All shards of an entry as one array: their values mapped one behind the other, paged in and out by the kernel.

In: shard files. Out: words [N, D] that no shard's boundary interrupts, so a shuffled batch is one gather. The maps
outlive the files' names.

N rows of the entry, D values of a row with the gap behind it.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainables.features.layout import ITEM_BYTES, DamagedError, Plan, ShardFile
from trainables.features.shards import PAGE_BYTES, WORDS, find_values, verify

if TYPE_CHECKING:
    import torch

# Python 3.11 does not name it yet.
_MAP_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_MAP_FIXED = 0x10  # on Linux and macOS alike; Python does not name it
_FAILED = ctypes.c_void_p(-1).value
_READ_AND_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


class RowMap:
    """Memory for all rows of an entry; each shard's part of it becomes the shard's file when `place` is called.

    Private and writable, because torch warns of memory that it must not write to; nothing written reaches a file.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._row_bytes = plan.row_stride * ITEM_BYTES[plan.key.dtype]
        size = plan.num_shards * plan.rows_per_shard * self._row_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._region = mmap.mmap(-1, max(size, 1), flags=flags, prot=_READ_AND_WRITE)
        dtype = WORDS[plan.key.dtype]
        words = np.frombuffer(self._region, dtype, plan.num_rows * plan.row_stride)
        self.words_ND: NDArray[Any] = words.reshape(plan.num_rows, plan.row_stride)

    def place(self, path: Path, shard: ShardFile) -> None:
        """Maps a shard to its place, after its checksum was verified, if this process had not done so yet.

        Raises:
            DamagedError: The file is gone or is not what was promised.
            OSError: The system has no more maps to give.
        """
        try:
            with path.open("rb") as file:
                verify(file.fileno(), shard)
                offset = find_values(file.fileno(), self._plan, shard.number)
                first, stop = self._plan.bounds(shard.number)
                self._put(file.fileno(), offset, first * self._row_bytes, (stop - first) * self._row_bytes)
        except FileNotFoundError as error:
            raise DamagedError(f"{shard.name}: gone") from error

    def _put(self, descriptor: int, offset: int, start: int, length: int) -> None:
        if not length:
            return
        if mmap.PAGESIZE > PAGE_BYTES:  # on such machines the rows are copied to memory
            os.preadv(descriptor, [memoryview(self._region)[start : start + length]], offset)
            return
        address = np.frombuffer(self._region, np.uint8).ctypes.data + start
        flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
        if _mmap()(address, length, _READ_AND_WRITE, flags, descriptor, offset) == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def tensor(self) -> torch.Tensor:
        """All rows [N, *shape] without a copy, in the plan's layout."""
        import torch

        dtype = torch.float32 if self._plan.key.dtype == "fp32" else torch.bfloat16
        if not self.words_ND.size:
            return torch.empty(self._plan.num_rows, *self._plan.shape, dtype=dtype)
        flat = torch.frombuffer(self._region, dtype=dtype, count=self.words_ND.size)
        values_ND = flat.view(self.words_ND.shape)[:, : math.prod(self._plan.shape)]
        return row_shaper(self._plan)(values_ND)

    def release(self) -> None:
        """Gives the pages in memory back; they are read again when needed."""
        if mmap.PAGESIZE <= PAGE_BYTES:
            self._region.madvise(mmap.MADV_DONTNEED)


def row_shaper(plan: Plan) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes values as they lie on disk [B, D] a tensor [B, *shape] without a copy."""
    if not plan.is_channels_last:
        return lambda values_BD: values_BD.view(-1, *plan.shape)
    channels, height, width = plan.shape
    return lambda values_BD: values_BD.view(-1, height, width, channels).permute(0, 3, 1, 2)


@functools.cache
def _mmap() -> Callable[..., int | None]:
    """The system's own: Python's module maps files only where the kernel likes."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    ]  # fmt: skip
    function.restype = ctypes.c_void_p
    return function
