"""Where pictures come from: what a `Source` is, and the table of schemes that open one.

In: a URI (`digits`, `folder:PATH` or URI, `csv:PATH`, `parquet:URI`, `torchvision:NAME`, or a bare path). Out: named
pictures with a class, maybe a side or a group, and a way to read their bytes. Nothing is decoded here. No torch: the
driver packs pictures while the workers still import it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from trainables.data.digits_source import DigitsSource
from trainables.data.folder_source import FolderSource
from trainables.data.picture import Picture
from trainables.errors import InputError
from trainables.files.typed_path import expand
from trainables.wording import shorten, shorten_place


class Source(Protocol):
    """Something that holds labelled pictures."""

    @property
    def uri(self) -> str:
        """The scheme and the absolute place: `open_source` of it finds the same pictures from anywhere."""

    def pictures(self) -> Sequence[Picture]:
        """All pictures, sorted by name.

        Raises:
            InputError: There is none, or a class is empty.
        """

    def signature(self) -> str:
        """A cheap digest that changes whenever a picture is added, removed, renamed or changed."""


@runtime_checkable
class ManyLabelsSource(Source, Protocol):
    """A source that can give a picture several labels."""

    def with_many_labels(self, separator: str) -> Source:
        """The same pictures, their class names those of sets of labels: see `label_sets`."""


def open_source(uri: str, label_separator: str | None = None) -> Source:
    """Finds the pictures that a URI names, without reading any.

    Args:
        uri: `digits`, `folder:PATH`, `folder:URI`, `csv:PATH`, `parquet:URI`, `torchvision:NAME`, or a folder's path.
        label_separator: Between the labels of a picture that has several: each class name is then a set's, see
            `label_sets`. None: each picture has one class.

    Raises:
        InputError: No such scheme or no such folder, or one that gives each picture one label only.
    """
    source = _open_source(uri)
    if label_separator is None:
        return source
    if not isinstance(source, ManyLabelsSource):
        raise InputError(
            f"data.labels: multi, and {shorten_place(uri)} gives each picture one class: "
            "list the pictures in a csv: or parquet: source, or set data.labels to single"
        )
    return source.with_many_labels(label_separator)


def _open_source(uri: str) -> Source:
    scheme, colon, place = uri.partition(":")
    if scheme in SCHEMES:
        return SCHEMES[scheme](place)
    if not is_storage_uri(uri) and _local(uri).is_dir():
        return FolderSource(uri)
    known = ", ".join(SCHEMES)
    nearest = difflib.get_close_matches(scheme, SCHEMES, n=1)
    hint = f"did you mean `{nearest[0]}{colon}{place}`?" if nearest else f"give a folder's path or one of {known}"
    if _names_a_scheme(uri):
        raise InputError(f"data source {shorten_place(uri)}: no source is called {shorten(scheme)}: {hint}")
    raise InputError(f"data source {shorten_place(uri)}: no such folder: {hint}")


def _names_a_scheme(uri: str) -> bool:
    """Whether what stands before a colon is meant for a scheme, though there is none of that name."""
    scheme, colon, _ = uri.partition(":")
    return is_storage_uri(uri) or (
        bool(colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme)) and not _local(uri).is_dir()
    )


def as_source(text: str) -> str:
    """What people type on a command line, as a spec names it: a folder's path or URI needs no scheme there."""
    scheme, colon, _ = text.partition(":")
    has_scheme = scheme in SCHEMES or (colon and not is_storage_uri(text))
    return text if has_scheme else f"folder:{text}"


def is_storage_uri(text: str) -> bool:
    """Whether it is a storage's address by itself, such as ``s3://bucket/pictures``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def from_anywhere(uri: str) -> str:
    """The same source, its folder or file named from the root, so that it is found from any working directory.

    What torchvision downloads, what lies in storage and what names no source keeps its name.
    """
    scheme, _, place = uri.partition(":")
    if scheme not in SCHEMES:
        return uri if _names_a_scheme(uri) else f"folder:{_local(uri).resolve()}"
    if scheme == "torchvision":
        name, colon, folder = place.partition(":")
        return f"torchvision:{name}:{_local(folder).resolve()}" if colon else uri
    return uri if scheme == "digits" or is_storage_uri(place) else f"{scheme}:{_local(place).resolve()}"


def _local(path: str) -> Path:
    return expand(path, "data source")


def _csv(place: str) -> Source:
    from trainables.data.listed_sources import CsvSource  # Parquet's import would slow down every start

    return CsvSource(place)


def _folder(place: str) -> Source:
    if place.startswith("file://"):  # pyarrow would follow links in circles
        return FolderSource(unquote(urlsplit(place).path))
    if not is_storage_uri(place):
        return FolderSource(place)
    from trainables.data.remote_folder import RemoteFolderSource

    return RemoteFolderSource(place)


def _parquet(place: str) -> Source:
    from trainables.data.listed_sources import ParquetSource

    return ParquetSource(place)


def _torchvision(place: str) -> Source:
    from trainables.data.torchvision_source import TorchvisionSource

    return TorchvisionSource(place)


SCHEMES: dict[str, Callable[[str], Source]] = {
    "csv": _csv,
    "digits": DigitsSource,
    "folder": _folder,
    "parquet": _parquet,
    "torchvision": _torchvision,
}
