"""Pictures in folders of classes, on a disk of this machine or one that is mounted.

In: a folder. Out: the pictures below it. Other sources take from here what holds for folders anywhere: which names are
nobody's picture (`is_hidden`), which folders are sides, and how large a picture's file may be.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from trainables.config import SplitName
from trainables.data.candidates import Candidate, Candidates, shown
from trainables.data.picture import Picture
from trainables.errors import InputError
from trainables.files.typed_path import expand
from trainables.wording import shorten_place

_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
SIDE_OF_FOLDER: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_SCHEME_OF_ENDING = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
MAX_FILE_BYTES = 256 * 1024 * 1024


class FolderSource:
    """Pictures in class folders, or in class folders under train, val (valid, validation) and test.

    Every file below a class folder is a candidate, whatever its ending, except hidden ones and well-known litter: what
    is no picture is set aside with its reason when packed, not silently left out. Files outside class folders are
    ignored.
    """

    def __init__(self, place: str) -> None:
        self._root = expand(place, "data source").resolve()
        if not place or not self._root.is_dir():
            where = f"data source {shorten_place(f'folder:{place}')}"
            if self._root.is_file() and (scheme := _SCHEME_OF_ENDING.get(self._root.suffix.lower())):
                raise InputError(f"{where}: is a file, not a folder: write '{scheme}:{place}'")
            what = "is a file, not a folder" if self._root.is_file() and place else "no such folder"
            raise InputError(f"{where}: {what}: give a folder that holds one folder per class")

    @property
    def uri(self) -> str:
        """`folder:` and the absolute path."""
        return f"folder:{self._root}"

    def pictures(self) -> Sequence[Picture]:
        """All candidates, sorted by name; see `Source.pictures`."""
        found = self._candidates()
        self._check_classes(set(found.class_names))
        check_side_folders(self.uri, {side for _, _, side in self._class_folders()} | self._empty_sides(), found.sides)
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


def check_side_folders(
    uri: str, every: Collection[SplitName | None], with_pictures: Collection[SplitName | None]
) -> None:
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
    return name.startswith(".") or name.lower() in _LITTER


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
            try:
                stat = entry.stat(follow_symlinks=_is_file(entry))
            except FileNotFoundError:
                continue  # somebody has removed it meanwhile
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
