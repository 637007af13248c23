"""Where pictures come from: a table of schemes, each a `Source`.

In: a URI (`digits`, `folder:PATH`, `csv:PATH`, `parquet:URI`, or a bare path). Out: named pictures with a class, maybe
a side or a group, and a way to read their bytes. Nothing is decoded here. No torch: the driver packs pictures while
the workers still import it.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import importlib.util
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

import numpy as np

from trainables.config import SplitName
from trainables.data.candidates import Candidate, Candidates, shown
from trainables.data.picture import Picture
from trainables.errors import InputError
from trainables.typed_path import expand

LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
SIDE_OF_FOLDER: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_SCHEME_OF_ENDING = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
MAX_FILE_BYTES = 256 * 1024 * 1024


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
            f"data.labels: multi, and {uri!r} gives each picture one class: "
            "list the pictures in a csv: or parquet: source, or set data.labels to single"
        )
    return source.with_many_labels(label_separator)


def _open_source(uri: str) -> Source:
    scheme, colon, place = uri.partition(":")
    if scheme in SCHEMES:
        return SCHEMES[scheme](place)
    if expand(uri).is_dir():
        return FolderSource(uri)
    known = ", ".join(SCHEMES)
    nearest = difflib.get_close_matches(scheme, SCHEMES, n=1)
    hint = f"did you mean `{nearest[0]}{colon}{place}`?" if nearest else f"give a folder's path or one of {known}"
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise InputError(f"data source {uri!r}: no source is called {scheme!r}: {hint}")
    raise InputError(f"data source {uri!r}: no such folder: {hint}")


def as_source(text: str) -> str:
    """What people type on a command line, as a spec names it: a folder's path or URI needs no scheme there."""
    scheme, colon, _ = text.partition(":")
    has_scheme = scheme in SCHEMES or (colon and not is_storage_uri(text))
    return text if has_scheme else f"folder:{text}"


def is_storage_uri(text: str) -> bool:
    """Whether it is a storage's address by itself, such as ``s3://bucket/pictures``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


class FolderSource:
    """Pictures in class folders, or in class folders under train, val (valid, validation) and test.

    Every file below a class folder is a candidate, whatever its ending, except hidden ones and well-known litter: what
    is no picture is set aside with its reason when packed, not silently left out. Files outside class folders are
    ignored.
    """

    def __init__(self, place: str) -> None:
        self._root = expand(place).resolve()
        if not place or not self._root.is_dir():
            if self._root.is_file() and (scheme := _SCHEME_OF_ENDING.get(self._root.suffix.lower())):
                raise InputError(f"data source 'folder:{place}': is a file, not a folder: write '{scheme}:{place}'")
            what = "is a file, not a folder" if self._root.is_file() and place else "no such folder"
            raise InputError(f"data source 'folder:{place}': {what}: give a folder that holds one folder per class")

    @property
    def uri(self) -> str:
        """`folder:` and the absolute path."""
        return f"folder:{self._root}"

    def pictures(self) -> Sequence[Picture]:
        """All candidates, sorted by name; see `Source.pictures`."""
        found = self._candidates()
        self._check_classes(set(found.class_names))
        check_sides(self.uri, {side for _, _, side in self._class_folders()} | self._empty_sides(), found.sides)
        return found

    def signature(self) -> str:
        """SHA-256 over the folder's place and every candidate's name, size and times."""
        return self._candidates().digest(os.fsencode(self._root))

    def _candidates(self) -> Candidates:
        found = (
            Candidate(os.fsencode(name), class_name, side, size_bytes, times_ns)
            for class_folder, class_name, side in self._class_folders()
            for name, size_bytes, times_ns in self._files_of(class_folder)
        )
        return Candidates(found, self._reader)

    def _reader(self, name: bytes, _: int) -> Callable[[], bytes]:
        return partial(read_file, self._root / os.fsdecode(name))

    def _files_of(self, class_folder: Path) -> Iterator[tuple[str, int, tuple[int, int]]]:
        """All candidates of a class; a link back to the source, or to a side of it, would bring in other classes."""
        above = {(stat.st_dev, stat.st_ino) for folder in (self._root, class_folder.parent) for stat in [folder.stat()]}
        return _files_below(class_folder, self._root, frozenset(above))

    def _class_folders(self) -> Iterator[tuple[Path, str, SplitName | None]]:
        folders, sides = _folders_in(self._root), _side_folders(self._root)
        if _are_sides(sides):
            for folder, side in sides.items():
                for class_folder in _folders_in(folder):
                    yield class_folder, _class_name(class_folder), side
            return
        if len(folders) == 1 and sides:
            raise InputError(
                f"{self.uri}: only the folder {folders[0].name!r} stands there: "
                f"give 'folder:{folders[0]}', or put the other sides beside it"
            )
        for class_folder in folders:
            yield class_folder, _class_name(class_folder), None

    def _check_classes(self, with_pictures: set[str]) -> None:
        every = {class_name for _, class_name, _ in self._class_folders()}
        if not every:
            if any(self._root.glob("train-images-idx3-ubyte*")):
                raise InputError(
                    f"{self.uri}: no class folders there, but files of MNIST's kind: give "
                    f"torchvision:MNIST:{self._root}, or FashionMNIST or KMNIST in its place, whichever it is"
                )
            raise InputError(f"{self.uri}: no class folders there: put the pictures into one folder per class")
        if not with_pictures:
            raise InputError(f"{self.uri}: its class folders hold no pictures: add some or give another folder")
        if empty := sorted(every - with_pictures):
            raise InputError(f"{self.uri}: class folder {empty[0]!r} is empty: add pictures or remove the folder")

    def _empty_sides(self) -> set[SplitName]:
        """Sides whose folders stand beside others and hold no class folder."""
        sides = _side_folders(self._root)
        return {side for folder, side in sides.items() if _are_sides(sides) and not _folders_in(folder)}


class DigitsSource:
    """The 1,797 handwritten digits that scikit-learn carries (UCI, Alpaydin 1998): 8 x 8 px, grey, ten classes."""

    uri = "digits"

    def __init__(self, place: str = "") -> None:
        if place:
            raise InputError(f"data source 'digits:{place}': this source takes no path: write 'digits'")

    def pictures(self) -> Sequence[Picture]:
        """The digits in scikit-learn's order.

        As PGM files and not PNG: those would be compressed by whichever zlib is there, and the splits hash the bytes.
        """
        pixels_NHW, labels_N = _load_digits()
        grey_NHW = np.rint(pixels_NHW * (255 / 16)).astype(np.uint8)
        return [
            Picture(f"{number:04d}", str(label), None, partial(pgm, grey_HW.tobytes(), *grey_HW.shape))
            for number, (grey_HW, label) in enumerate(zip(grey_NHW, labels_N.tolist(), strict=True))
        ]

    def signature(self) -> str:
        """Constant: the set does not change."""
        return hashlib.sha256(b"digits, 1797 x 8 x 8, pgm").hexdigest()


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


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 8, 8] from 0 to 16 and labels [1797]; read past scikit-learn, whose import takes a second."""
    package = importlib.util.find_spec("sklearn")
    for place in (package.submodule_search_locations or ()) if package else ():
        path = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            with gzip.open(path, "rt") as lines:
                rows = np.loadtxt(lines, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


def pgm(pixels: bytes, height: int, width: int) -> bytes:
    """Grey pixels as a PGM file."""
    return b"P5 %d %d 255\n" % (width, height) + pixels


def check_sides(uri: str, every: Collection[SplitName | None], with_pictures: Collection[SplitName | None]) -> None:
    """Refuses a folder of a side that holds no pictures.

    Raises:
        InputError: There is one.
    """
    if empty := sorted(str(side) for side in set(every) - set(with_pictures)):
        raise InputError(
            f"{uri}: its folder for the {empty[0]} side holds no pictures: add some, or remove the folder, "
            "and then that side is dealt out of the others"
        )


def is_hidden(name: str) -> bool:
    """Whether a file or folder is nobody's picture: hidden, or what systems leave behind."""
    return name.startswith(".") or name.lower() in LITTER


def _class_name(folder: Path) -> str:
    # Some file systems store accents decomposed; a class named in a spec is usually typed composed.
    return unicodedata.normalize("NFC", shown(os.fsencode(folder.name)))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}): check its permissions") from error


def _folders_in(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if _is_dir(entry)]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """False where links lead in a circle, which the system reports as an error."""
    with suppress(OSError):
        return entry.is_dir()
    return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        return entry.is_file()
    return False


def _side_folders(root: Path) -> dict[Path, SplitName]:
    """The folders whose names are those of sides."""
    return {
        folder: SIDE_OF_FOLDER[key] for folder in _folders_in(root) if (key := folder.name.lower()) in SIDE_OF_FOLDER
    }


def _are_sides(folders: dict[Path, SplitName]) -> bool:
    """Whether such folders are sides, and not classes of those names."""
    return "train" in folders.values() and len(set(folders.values())) > 1


def _files_below(
    folder: Path, root: Path, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Name, size and times of all candidates at any depth.

    `above` holds the folders on the way here, so that a link upwards ends.
    """
    stat = folder.stat()
    if (here := (stat.st_dev, stat.st_ino)) in above:
        return
    for entry in _entries(folder):
        path = Path(entry.path)
        if _is_dir(entry):
            yield from _files_below(path, root, above | {here})
        elif _is_file(entry) or (entry.is_symlink() and not path.exists()):  # a dangling link is set aside by name
            stat = entry.stat(follow_symlinks=_is_file(entry))
            # The change time as well: unpacking an archive over the old pictures may keep size and modification time.
            yield path.relative_to(root).as_posix(), stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns)


def read_file(path: Path) -> bytes:
    """The bytes of a picture's file.

    Raises:
        OSError: It cannot be read.
        InputError: It is far too large for a picture.
    """
    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise InputError(f"the file has {size_bytes // 2**20} MiB, more than {MAX_FILE_BYTES // 2**20}")
    return path.read_bytes()
