"""Pictures that a table lists: a CSV file that names picture files, and Parquet files that hold them.

In: `csv:PATH` or `parquet:URI`. Out: `Source`s. Columns are found by their usual names, in any case; a split column
gives sides, a group column what must stay together. No torch.
"""

from __future__ import annotations

import csv
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from trainables.config import SplitName
from trainables.data.label_sets import set_name
from trainables.data.picture import Picture
from trainables.data.sources import SIDE_OF_FOLDER, read_file
from trainables.errors import InputError
from trainables.storage import is_local, open_filesystem

Column = Literal["file", "image", "label", "split", "group"]
_NAMES: dict[Column, tuple[str, ...]] = {
    "file": ("file", "filename", "file_name", "filepath", "path", "image"),
    "image": ("image", "img", "bytes", "picture"),
    "label": ("label", "class", "class_name", "labels", "target"),
    "split": ("split", "side", "set"),
    "group": ("group", "group_id"),
}
_ROW_GROUPS_IN_MEMORY = 4
_reading = threading.Lock()


class CsvSource:
    """Picture files that a CSV (or TSV) file lists with their labels, paths relative to its folder."""

    def __init__(self, place: str, separator: str | None = None) -> None:
        self._separator = separator
        self._path = Path(place).expanduser().resolve()
        if not place or not self._path.is_file():
            raise InputError(
                f"data source 'csv:{place}': no such file: give a CSV file with the columns file and label"
            )

    @property
    def uri(self) -> str:
        """`csv:` and the absolute path."""
        return f"csv:{self._path}"

    def with_many_labels(self, separator: str) -> CsvSource:
        """See `ManyLabelsSource`; the label column holds a picture's labels with ``separator`` between them."""
        return CsvSource(str(self._path), separator)

    def pictures(self) -> Sequence[Picture]:
        """What the lines name, sorted; see `Source.pictures`.

        Raises:
            InputError: A column is missing, a line has no label or an unknown side, or a file is listed twice.
        """
        found: dict[str, tuple[int, Picture]] = {}
        for number, row in self._rows():
            where = f"{self.uri}, line {number}"
            name = row["file"]
            if not name:
                raise InputError(f"{where}: no file: name one, or remove the line")
            if name in found:
                raise InputError(f"{where}: {name} stands on line {found[name][0]} already: remove one of them")
            read = partial(read_file, self._path.parent / name)
            facts = _facts(row, where, self._separator)
            found[name] = number, Picture(name, facts.class_name, facts.side, read, facts.group)
        if not found:
            raise InputError(f"{self.uri}: no line below the header: list some pictures")
        return [found[name][1] for name in sorted(found)]

    def signature(self) -> str:
        """SHA-256 over the list itself and the size and times of every file on it."""
        kind = "csv" if self._separator is None else f"csv of labels by {self._separator}"
        digest = hashlib.sha256(f"{kind} {self._path}\0".encode() + self._path.read_bytes())
        for picture in self.pictures():
            try:
                stat = (self._path.parent / picture.name).stat()
                digest.update(f"\0{picture.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}".encode())
            except OSError:
                digest.update(f"\0{picture.name}\0not there".encode())
        return digest.hexdigest()

    def _rows(self) -> Iterator[tuple[int, Mapping[Column, str]]]:
        delimiter = "\t" if self._path.suffix.lower() == ".tsv" else ","
        try:
            with self._path.open(newline="", encoding="utf-8-sig") as lines:
                reader = csv.DictReader(lines, delimiter=delimiter)
                columns = _find_columns(reader.fieldnames or (), ("file", "label"), self.uri)
                for row in reader:
                    texts = {column: (row[name] or "").strip() for column, name in columns.items()}
                    yield reader.line_num, texts
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{self.uri}: cannot be read ({error}): save it as CSV in UTF-8") from error


class ParquetSource:
    """Pictures in Parquet files: a column with their bytes (or with `bytes` in it, as Hugging Face writes), a label."""

    def __init__(self, place: str, separator: str | None = None) -> None:
        self._separator = separator
        self._place = place if not is_local(place) else str(Path(place).expanduser().resolve())
        try:
            self._filesystem, self._root = open_filesystem(self._place)
            self._infos = sorted(_parquet_files(self._filesystem, self._root), key=lambda info: info.path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"data source 'parquet:{place}': cannot be reached ({error}): check its spelling"
            ) from error
        if not place or not self._infos:
            raise InputError(f"data source 'parquet:{place}': no Parquet file there: give a file or a folder of them")

    @property
    def uri(self) -> str:
        """`parquet:` and the absolute place."""
        return f"parquet:{self._place}"

    def with_many_labels(self, separator: str) -> ParquetSource:
        """See `ManyLabelsSource`; the label column holds lists, or text with ``separator`` in it."""
        return ParquetSource(self._place, separator)

    def pictures(self) -> Sequence[Picture]:
        """Every row of every file, in order; see `Source.pictures`.

        Raises:
            InputError: A column is missing, or a row has no label or an unknown side.
        """
        found = [picture for info in self._infos for picture in self._pictures_of(info)]
        return sorted(found, key=lambda picture: picture.name)

    def signature(self) -> str:
        """SHA-256 over the place and the name, size and time of every file."""
        kind = "parquet" if self._separator is None else f"parquet of labels by {self._separator}"
        digest = hashlib.sha256(f"{kind} {self._place}".encode())
        for info in self._infos:
            digest.update(f"\0{info.path}\0{info.size}\0{info.mtime_ns}".encode())
        return digest.hexdigest()

    def _pictures_of(self, info: pyarrow.fs.FileInfo) -> Iterator[Picture]:
        name = info.path.removeprefix(self._root).strip("/") or info.base_name
        where = f"{self.uri}, {name}"
        place = _File(self._place, info.path, info.mtime_ns or 0)
        try:
            with _open(self._filesystem, info.path) as file:
                columns = _find_columns(file.schema_arrow.names, ("image", "label"), where)
                others = [column for key, column in columns.items() if key != "image"]
                class_names = _class_names(file.schema_arrow, columns["label"])
                number = 0
                for row_group in range(file.num_row_groups):
                    texts = file.read_row_group(row_group, columns=others).to_pydict()
                    for position in range(file.metadata.row_group(row_group).num_rows):
                        row = {key: texts[column][position] for key, column in columns.items() if key != "image"}
                        here = f"{where}, row {number}"
                        texts_of_row: dict[Column, str] = {
                            key: _labels_text(value, class_names, self._separator, here)
                            if key == "label"
                            else _text(value, ())
                            for key, value in row.items()
                        }
                        facts = _facts(texts_of_row, here, self._separator)
                        read = partial(_read_image, place, row_group, columns["image"], position)
                        yield Picture(f"{name}#{number:08d}", facts.class_name, facts.side, read, facts.group)
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{where}: cannot be read as Parquet ({error}): write it anew") from error


@dataclass(frozen=True)
class _File:
    """One version of a Parquet file: where its filesystem is found, its path there, and its time."""

    place: str
    path: str
    mtime_ns: int


@dataclass(frozen=True)
class _Facts:
    class_name: str
    side: SplitName | None
    group: str


def _facts(row: Mapping[Column, str], where: str, separator: str | None) -> _Facts:
    """What a row says of its picture; where it may have several labels it may have none."""
    label = row["label"]
    if separator is not None:
        label = set_name(label.split(separator), separator)
    elif not label:
        raise InputError(f"{where}: no label: fill it in, or remove the row")
    stated = row.get("split", "")
    if stated and stated.lower() not in SIDE_OF_FOLDER:
        raise InputError(f"{where}: split is {stated!r}: use train, val or test, or leave it empty")
    side = SIDE_OF_FOLDER[stated.lower()] if stated else None
    return _Facts(label, side, row.get("group", ""))


def _find_columns(names: Sequence[str], needed: Sequence[Column], where: str) -> dict[Column, str]:
    """The columns that are there, by what they mean."""
    by_key = {name.strip().lower(): name for name in reversed(names)}
    found: dict[Column, str] = {}
    for column in (*needed, "split", "group"):
        meant = next((by_key[name] for name in _NAMES[column] if name in by_key), None)
        if meant is not None:
            found[column] = meant
        elif column in needed:
            there = ", ".join(names) or "none"
            raise InputError(f"{where}: no column {column!r} among {there}: call one of them {column!r}")
    return found


def _parquet_files(filesystem: pyarrow.fs.FileSystem, root: str) -> list[pyarrow.fs.FileInfo]:
    info = filesystem.get_file_info(root)
    if info.type == pyarrow.fs.FileType.File:
        return [info]
    if info.type != pyarrow.fs.FileType.Directory:
        return []
    below = filesystem.get_file_info(pyarrow.fs.FileSelector(root, recursive=True))
    return [info for info in below if info.type == pyarrow.fs.FileType.File and info.extension == "parquet"]


def _open(filesystem: pyarrow.fs.FileSystem, path: str) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(filesystem.open_input_file(path))


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The names that Hugging Face's datasets keep for numbered labels; none where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _labels_text(value: Any, names: Sequence[str], separator: str | None, where: str) -> str:
    """The label column of one row as text; a list's labels with the separator between them."""
    if not isinstance(value, list):
        return _text(value, names)
    labels = [_text(label, names) for label in value]
    if separator is None:
        raise InputError(f"{where}: the label is a list: set data.labels to multi, or give each picture one label")
    if wrong := next((label for label in labels if separator in label), None):
        raise InputError(
            f"{where}: label {wrong!r} contains {separator!r}: set data.label_separator to what is in no label"
        )
    return separator.join(labels)


def _text(value: Any, names: Sequence[str]) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return str(value).strip()


def _read_image(file: _File, row_group: int, column: str, position: int) -> bytes:
    with _reading:  # else every thread would read the row group that all are waiting for
        images = _images(file, row_group, column)
    value = images[position].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise InputError("the row holds no picture")
    return content


@lru_cache(_ROW_GROUPS_IN_MEMORY)
def _images(file: _File, row_group: int, column: str) -> pa.ChunkedArray:
    filesystem, _ = open_filesystem(file.place)
    with _open(filesystem, file.path) as opened:
        return opened.read_row_group(row_group, columns=[column]).column(0)
