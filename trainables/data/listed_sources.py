"""Pictures that a table lists: a CSV file that names picture files, and Parquet files that hold them.

In: `csv:PATH` or `parquet:URI`. Out: `Source`s. Columns are found by their usual names, in any case; a split column
gives sides, a group column what must stay together. No torch.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from trainables.config import SplitName
from trainables.data.candidates import Candidate, Candidates
from trainables.data.folder_source import SIDE_OF_FOLDER, read_file
from trainables.data.label_sets import labels_in, set_name
from trainables.data.parquet_rows import ParquetPlace, open_parquet, read_image
from trainables.data.picture import Picture
from trainables.errors import InputError, first_line
from trainables.files.storage import is_local, open_filesystem, problem_of, problem_with
from trainables.files.typed_path import expand
from trainables.wording import shorten, shorten_place

Column = Literal["file", "image", "label", "split", "group"]
_NAMES: dict[Column, tuple[str, ...]] = {
    "file": ("file", "filename", "file_name", "filepath", "path", "image"),
    "image": ("image", "img", "bytes", "picture"),
    "label": ("label", "class", "class_name", "labels", "target"),
    "split": ("split", "side", "set"),
    "group": ("group", "group_id"),
}
_ROWS_AT_ONCE = 4096


class CsvSource:
    """Picture files that a CSV (or TSV) file lists with their labels, paths relative to its folder."""

    def __init__(self, place: str, separator: str | None = None) -> None:
        self._separator = separator
        self._path = expand(place, "data source").resolve()
        if not place or not self._path.is_file():
            where = f"data source {shorten_place(f'csv:{place}')}"
            raise InputError(f"{where}: no such file: give a CSV file with the columns file and label")

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
        found = Candidates(self._listed(), self._reader)
        if not found:
            raise InputError(f"{self.uri}: no line below the header: list some pictures")
        if repeated := found.repeated():
            name, earlier, later = repeated
            raise InputError(f"{self.uri}, line {later}: {name} stands on line {earlier} already: remove one of them")
        return found

    def _reader(self, name: bytes, _: int) -> Callable[[], bytes]:
        return partial(read_file, self._path.parent / name.decode())

    def _listed(self) -> Iterator[Candidate]:
        for number, row in self._rows():
            where = f"{self.uri}, line {number}"
            name = row["file"]
            if not name:
                raise InputError(f"{where}: no file: name one, or remove the line")
            if "\0" in name:
                raise InputError(f"{where}: {name!r}: no file's name holds a NUL character: save the list anew")
            facts = _facts(row, where, self._separator)
            yield Candidate(name.encode(), facts.class_name, facts.side, number, group=facts.group)

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
        try:
            with self._path.open(newline="", encoding="utf-8-sig") as lines:
                delimiter = _delimiter(lines.readline(), self._path.suffix.lower())
                lines.seek(0)
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
        self._place = place if not is_local(place) else str(expand(place, "data source").resolve())
        try:
            self._filesystem, self._root = open_filesystem(self._place)
            self._infos = sorted(_parquet_files(self._filesystem, self._root), key=lambda info: info.path)
        except (OSError, ValueError) as error:
            raise InputError(f"data source 'parquet:{place}': {problem_of(error)}") from error
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
        files: list[tuple[ParquetPlace, str]] = []
        listed = (row for info in self._infos for row in self._rows_of(info, files))
        found = Candidates(listed, partial(_reader, files))
        if not found:
            raise InputError(f"{self.uri}: no row in it: list some pictures")
        return found

    def signature(self) -> str:
        """SHA-256 over the place and the name, size and time of every file."""
        # 2: what stands for no label, and what kind of text a label is, were read otherwise before.
        kind = "parquet 2" if self._separator is None else f"parquet 2 of labels by {self._separator}"
        digest = hashlib.sha256(f"{kind} {self._place}".encode())
        for info in self._infos:
            digest.update(f"\0{info.path}\0{info.size}\0{info.mtime_ns}".encode())
        return digest.hexdigest()

    def _rows_of(self, info: pyarrow.fs.FileInfo, files: list[tuple[ParquetPlace, str]]) -> Iterator[Candidate]:
        """The rows of one file, which is added to those that readers look into."""
        name = info.path.removeprefix(self._root).strip("/") or info.base_name
        where = f"{self.uri}, {name}"
        place = ParquetPlace(self._place, info.path, info.mtime_ns or 0)
        try:
            with open_parquet(self._filesystem, info.path) as file:
                columns = _find_columns(file.schema_arrow.names, ("image", "label"), where)
                others = [column for key, column in columns.items() if key != "image"]
                class_names = _class_names(file.schema_arrow, columns["label"])
                files.append((place, columns["image"]))
                number = 0
                for row_group in range(file.num_row_groups):
                    start = number
                    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[row_group], columns=others):
                        for row in batch.to_pylist():
                            here = f"{where}, row {number}"
                            texts: dict[Column, str] = {
                                key: _labels_text(row[column], class_names, self._separator, here)
                                if key == "label"
                                else _text(row[column], ())
                                for key, column in columns.items()
                                if key != "image"
                            }
                            facts = _facts(texts, here, self._separator)
                            found_by = _packed(len(files) - 1, row_group, number - start)
                            key = f"{name}#{number:08d}".encode()
                            yield Candidate(key, facts.class_name, facts.side, found_by, group=facts.group)
                            number += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if problem := problem_with(self._filesystem, info.path):
                raise InputError(f"{where}: {problem}") from error
            raise InputError(f"{where}: cannot be read as Parquet ({first_line(error)}): write it anew") from error


def _delimiter(header: str, suffix: str) -> str:
    """A tab in a TSV file; else a comma, or the semicolon that spreadsheets write where a comma is in numbers."""
    if suffix == ".tsv":
        return "\t"
    return ";" if ";" in header and "," not in header else ","


@dataclass(frozen=True)
class _Facts:
    class_name: str
    side: SplitName | None
    group: str


def _facts(row: Mapping[Column, str], where: str, separator: str | None) -> _Facts:
    """What a row says of its picture; where it may have several labels it may have none."""
    label = row["label"]
    if separator is not None:
        labels = labels_in(label, separator)
        label = set_name(labels, separator)
        if labels_in(label, separator) != labels:
            raise InputError(
                f"{where}: labels {shorten(label)}: one ends or begins as {separator!r} does; set data.label_separator "
                "to what is in no label"
            )
    elif not label:
        raise InputError(
            f"{where}: no label: fill it in, or remove the row; if pictures may have none or several, "
            "set data.labels to multi"
        )
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
    """A value as text, and empty where there is none: nothing, NaN, or a number that stands for no name."""
    if value is None:
        return ""
    if isinstance(value, float):  # as which a column of whole numbers comes where it has a gap
        if math.isnan(value):
            return ""
        value = int(value) if value.is_integer() else value
    if isinstance(value, int) and names:
        return names[value] if 0 <= value < len(names) else ""  # Hugging Face numbers what has no label -1
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return str(value).strip()


_POSITION_BITS, _GROUP_BITS, _FILE_BITS = 32, 16, 15


def _packed(file: int, row_group: int, position: int) -> int:
    """Where a picture is, as one number of 63 bits; a file with more row groups, or rows in one, is split first."""
    if file >> _FILE_BITS or row_group >> _GROUP_BITS or position >> _POSITION_BITS:
        raise InputError(
            f"more than {1 << _FILE_BITS} Parquet files, or {1 << _GROUP_BITS} row groups in one: write them anew, in "
            "fewer files or larger row groups"
        )
    return file << (_POSITION_BITS + _GROUP_BITS) | row_group << _POSITION_BITS | position


def _reader(files: Sequence[tuple[ParquetPlace, str]], _: bytes, packed: int) -> Callable[[], bytes]:
    place, column = files[packed >> (_POSITION_BITS + _GROUP_BITS)]
    row_group = packed >> _POSITION_BITS & (1 << _GROUP_BITS) - 1
    return partial(read_image, place, row_group, column, packed & (1 << _POSITION_BITS) - 1)
