"""What a packed image table is on disk: one Arrow IPC file of record batches, and a manifest beside it.

In: rows, one after another. Out: the file, and a fingerprint of what went into it. `packing` writes,
`table` reads; only this module knows the columns. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SCHEMA_VERSION = 2
_FINGERPRINT_VERSION = 1
MANIFEST_NAME = "manifest.json"
BATCH_BYTES = 16 * 1024 * 1024
NO_SIDE = -1  # in the column `side`, otherwise an index into SPLIT_NAMES
SCHEMA = pa.schema(
    [
        pa.field("id", pa.binary(64), nullable=False),  # SHA-256 of the picture file's bytes, as hexadecimal text
        pa.field("label", pa.int32(), nullable=False),
        pa.field("side", pa.int8(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),  # empty: none
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("pixels", pa.binary(), nullable=False),  # uint8 [height, width, 3]
    ]
)


@dataclass(frozen=True)
class Manifest:
    """What stands beside the pixels; written last, so that a table without it is not complete.

    Attributes:
        file: Name of the Arrow file in the same folder.
        file_bytes: Its length.
        fingerprint: SHA-256 that names the table's content, wherever its pictures came from.
        side_px: The shorter side of each picture is at most this.
        num_images: Rows of the table.
        class_names: In label order.
        bad_files: Pairs of name and reason of what was set aside.
    """

    file: str
    file_bytes: int
    fingerprint: str
    side_px: int
    num_images: int
    class_names: tuple[str, ...]
    bad_files: tuple[tuple[str, str], ...]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """As text, for `from_json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: Not a manifest of this version.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("schema_version") != SCHEMA_VERSION:
            raise ValueError("not a manifest of this version")
        try:
            fields["class_names"] = tuple(fields["class_names"])
            fields["bad_files"] = tuple((name, reason) for name, reason in fields["bad_files"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a manifest: {error}") from error


@dataclass(frozen=True)
class Row:
    """One picture of the table; the fields are its columns."""

    id: str
    label: int
    side: int
    name: str
    height: int
    width: int
    pixels: bytes
    group: str = ""


class TableWriter:
    """Rows to record batches of bounded bytes; the fingerprint grows with them.

    Args:
        path: The Arrow file; overwritten.
        class_names: In label order.
        side_px: The shorter side of each picture is at most this.
    """

    def __init__(self, path: Path, class_names: tuple[str, ...], side_px: int) -> None:
        self.num_rows = 0
        self._digest = _begin_digest(class_names, side_px)
        self._rows: list[Row] = []
        self._bytes = 0
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, SCHEMA)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._flush()
            self._writer.close()
        finally:
            self._file.close()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over schema, size, classes and, of each row so far, content id, label, side and pixels.

        The pixels too, and not only the file they came from: another version of a decoder may round differently, and
        features stored for one table must not be taken for those of the other.
        """
        return self._digest.hexdigest()

    def append(self, row: Row) -> None:
        """Takes one row; writes when enough bytes have come together."""
        _add_to_digest(self._digest, row)
        self.num_rows += 1
        if self._rows and self._bytes + len(row.pixels) > BATCH_BYTES:
            self._flush()
        self._rows.append(row)
        self._bytes += len(row.pixels)

    def _flush(self) -> None:
        if not self._rows:
            return
        rows, self._rows, self._bytes = self._rows, [], 0
        arrays = [_arrow_array([getattr(row, field.name) for row in rows], field.type) for field in SCHEMA]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))


def _begin_digest(class_names: tuple[str, ...], side_px: int) -> hashlib._Hash:
    head = {"schema": _FINGERPRINT_VERSION, "side_px": side_px, "class_names": class_names}
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode())


def _add_to_digest(digest: hashlib._Hash, row: Row) -> None:
    digest.update(f"\n{row.id} {row.label} {row.side} {row.height} {row.width} ".encode())
    digest.update(hashlib.sha256(row.pixels).digest())
    if row.group:  # tables without groups keep the names that they had before there were any
        digest.update(b"\ngroup " + row.group.encode())


def _arrow_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """What `pa.array` does; but that imports pandas, which takes half a second of a cold start."""
    if isinstance(values[0], int):
        numbers = np.array(values, dtype=f"int{kind.bit_width}")
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(numbers)])
    texts = [value.encode("utf-8") if isinstance(value, str) else value for value in values]
    data = pa.py_buffer(b"".join(texts))
    if isinstance(kind, pa.FixedSizeBinaryType):
        return pa.Array.from_buffers(kind, len(values), [None, data])
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets), data])


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a finished file, in order, one batch in memory at a time."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:  # pages of a map would stay in memory
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for position in range(batch.num_rows):
                values = {name: batch.column(name)[position].as_py() for name in SCHEMA.names}
                yield Row(**{**values, "id": values["id"].decode("ascii")})


def read_ids(path: Path) -> tuple[NDArray[np.bytes_], NDArray[np.int32]]:
    """Content ids [N] of dtype S64 and labels [N] of a finished file; nothing else of it is read."""
    fields = [SCHEMA.get_field_index(name) for name in ("id", "label")]
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file, options=options) as reader:
        batches = map(reader.get_batch, range(reader.num_record_batches))
        parts = [(column_values(batch, "id").copy(), column_values(batch, "label").copy()) for batch in batches]
    ids, labels = zip(*parts, strict=True) if parts else ((), ())
    return np.concatenate([np.empty(0, "S64"), *ids]), np.concatenate([np.empty(0, np.int32), *labels])


def column_values(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    """A column of numbers, or of as many bytes each, as an array [N] that is a view of it."""
    kind = SCHEMA.field(name).type
    dtype = np.dtype(f"S{kind.byte_width}" if pa.types.is_fixed_size_binary(kind) else f"i{kind.byte_width}")
    return np.frombuffer(batch.column(name).buffers()[1], dtype, count=batch.num_rows)


def fingerprint_of(path: Path, manifest: Manifest) -> str:
    """The fingerprint of what a file really holds, to compare with the one that was promised.

    Raises:
        ValueError: Not an Arrow file of rows.
    """
    digest = _begin_digest(manifest.class_names, manifest.side_px)
    for row in read_rows(path):
        _add_to_digest(digest, row)
    return digest.hexdigest()
