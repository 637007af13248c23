"""One shard on disk: rows of features as an Arrow IPC file, hashed while written.

In: a tensor of rows. Out: a file that appears whole under a name with its checksum. The file holds one record batch
with one column of fixed-size lists: float32, or uint16 words for bf16, which Arrow has no type for. Rows begin at whole
cache lines and the first one at a whole page, so that the shards of an entry can be mapped one behind the other.

R rows of a shard, D values of a row with the gap behind it.
"""

from __future__ import annotations

import functools
import json
import math
import mmap
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_128

from trainables.config import Precision
from trainables.features.layout import DamagedError, Plan, ShardFile, shard_name

if TYPE_CHECKING:
    import torch

WORDS: dict[Precision, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "bf16": np.dtype(np.uint16)}
_ARROW = {"fp32": pa.float32(), "bf16": pa.uint16()}
_CHUNK_BYTES = 4 << 20
_PIECE_BYTES = 1 << 18
PAGE_BYTES = 4096

_verified: set[tuple[int, int, int, int, str]] = set()
_verified_lock = threading.Lock()


def to_words(rows: torch.Tensor, plan: Plan) -> NDArray[Any]:
    """Rows [R, ...] as they lie on disk: words [R, D], copied only where the layout asks for it."""
    import torch

    rows = rows.detach().cpu()
    if plan.is_channels_last:
        rows = rows.permute(0, 2, 3, 1)
    flat = rows.contiguous().view(len(rows), math.prod(plan.shape))
    gap = plan.row_stride - flat.shape[1]
    if gap:
        flat = torch.nn.functional.pad(flat, (0, gap))
    return words_of(flat)


def words_of(values: torch.Tensor) -> NDArray[Any]:
    """A tensor's memory as the words that are stored."""
    import torch

    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()


def from_words(words: NDArray[Any]) -> torch.Tensor:
    """The inverse of `words_of`, on the same memory."""
    import torch

    values = torch.from_numpy(words)
    return values if values.dtype == torch.float32 else values.view(torch.bfloat16)


def write_shard(folder: Path, plan: Plan, number: int, words_RD: NDArray[Any]) -> ShardFile:
    """Writes one shard under a temporary name and moves it to its own.

    Raises:
        OSError: The disk is full, or does not take it for another reason; nothing is left behind.
    """
    batch = _record_batch(_schema(plan, number, _filler(plan)), words_RD)
    with _appearing(folder, number) as sink:
        with pa.PythonFile(sink, "w") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
            writer.write_batch(batch)
        checksum = sink.digest.hexdigest()
        shard = ShardFile(shard_name(number, checksum), number, checksum, sink.num_bytes)
        sink.finish(folder / shard.name)
    return shard


def copy_shard(folder: Path, shard: ShardFile, chunks: Iterable[bytes]) -> None:
    """Writes a shard that was made elsewhere, if it is what its name says.

    Raises:
        DamagedError: It is not.
        OSError: See `write_shard`.
    """
    with _appearing(folder, shard.number) as sink:
        for chunk in chunks:
            sink.write(chunk)
        if sink.digest.hexdigest() != shard.checksum:
            raise DamagedError(f"{shard.name}: its bytes were altered")
        sink.finish(folder / shard.name)


def verify(descriptor: int, shard: ShardFile, *, is_anew: bool = False) -> None:
    """Compares a file's bytes with the checksum, once per process, and again when the file was changed.

    Raises:
        DamagedError: They differ.
    """
    state = os.fstat(descriptor)
    if not is_anew and _identity(state, shard.checksum) in _verified:
        return
    if _hash_file(descriptor) != shard.checksum:
        raise DamagedError(f"{shard.name}: its bytes were altered")
    _remember(state, shard.checksum)


def verify_file(path: Path, shard: ShardFile) -> None:
    """Reads a whole file and compares it with its checksum, whether or not this process did so before.

    Raises:
        DamagedError: They differ, or the file is gone.
    """
    try:
        with path.open("rb") as file:
            verify(file.fileno(), shard, is_anew=True)
    except FileNotFoundError as error:
        raise DamagedError(f"{shard.name}: gone") from error


def _hash_file(descriptor: int) -> str:
    digest, offset = xxh3_128(), 0
    buffer = bytearray(_CHUNK_BYTES)
    while count := os.preadv(descriptor, [buffer], offset):
        digest.update(memoryview(buffer)[:count])
        offset += count
    return digest.hexdigest()


def _identity(state: os.stat_result, checksum: str) -> tuple[int, int, int, int, str]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, checksum


def _remember(state: os.stat_result, checksum: str) -> None:
    with _verified_lock:
        _verified.add(_identity(state, checksum))


class _HashingSink:
    """A file for Arrow to write to that hashes what passes."""

    closed = False

    def __init__(self, path: Path, descriptor: int) -> None:
        self.digest, self.num_bytes = xxh3_128(), 0
        self._path, self._descriptor = path, descriptor

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        # Piece by piece: what was hashed is still in the processor's cache, and large writes are slow on some machines.
        for first in range(0, len(content), _PIECE_BYTES):
            piece = content[first : first + _PIECE_BYTES]
            self.digest.update(piece)
            while len(piece):
                piece = piece[os.write(self._descriptor, piece) :]
        self.num_bytes += len(content)
        return len(content)

    def finish(self, path: Path) -> None:
        self._path.rename(path)
        # This process has just hashed these bytes.
        _remember(os.fstat(self._descriptor), self.digest.hexdigest())

    def tell(self) -> int:
        return self.num_bytes

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@contextmanager
def _appearing(folder: Path, number: int) -> Iterator[_HashingSink]:
    """A file under a temporary name, gone at the end unless the sink was finished."""
    temporary = folder / f".{number:06d}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb", buffering=0) as file:
            yield _HashingSink(temporary, file.fileno())
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def find_values(descriptor: int, plan: Plan, number: int) -> int:
    """Where the values of a shard begin in its file, in bytes; a multiple of `PAGE_BYTES`.

    Raises:
        DamagedError: The file holds something else.
    """
    first, stop = plan.bounds(number)
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
        whole = pa.py_buffer(mapped)
        try:
            with pa.ipc.open_file(pa.BufferReader(whole)) as reader:
                batch = reader.get_batch(0)
                schema = _schema(plan, number, _filler(plan))
                fits = reader.num_record_batches == 1 and reader.schema.equals(schema, check_metadata=True)
            if not fits or batch.num_rows != stop - first:
                raise DamagedError(f"shard {number}: holds something else")
            offset = int(batch.column(0).values.buffers()[1].address - whole.address)
        except (pa.ArrowException, IndexError, OSError) as error:
            raise DamagedError(f"shard {number}: not an Arrow file") from error
        finally:
            batch = reader = whole = None  # they hold on to the map
    if offset % PAGE_BYTES:
        raise DamagedError(f"shard {number}: its values cannot be mapped")
    return offset


def _schema(plan: Plan, number: int, filler: int) -> pa.Schema:
    about = {"digest": plan.key.digest(), "shard": f"{number:06d}", "shape": plan.shape, "dtype": plan.key.dtype}
    kind = pa.list_(pa.field("value", _ARROW[plan.key.dtype], nullable=False), plan.row_stride)
    metadata = {"thaw": json.dumps(about, sort_keys=True), "filler": " " * filler}
    return pa.schema([pa.field("features", kind, nullable=False)], metadata)


def _record_batch(schema: pa.Schema, words_RD: NDArray[Any]) -> pa.RecordBatch:
    kind = schema.field(0).type
    data = pa.py_buffer(np.ascontiguousarray(words_RD))
    values = pa.Array.from_buffers(kind.value_type, words_RD.size, [None, data])
    column = pa.Array.from_buffers(kind, len(words_RD), [None], children=[values])
    return pa.RecordBatch.from_arrays([column], schema=schema)


@functools.lru_cache(maxsize=256)
def _filler(plan: Plan) -> int:
    """How much to add to a file's head, so that the values behind it begin at a whole page."""
    mark = np.full((1, plan.row_stride), 0x5A5A, WORDS[plan.key.dtype])
    batch = _record_batch(_schema(plan, 0, 0), mark)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    written = sink.getvalue()
    with pa.ipc.open_file(written) as reader:
        values = reader.get_batch(0).column(0).values.buffers()[1]
        return int((written.address - values.address) % PAGE_BYTES)
