"""Class folders on any storage that pyarrow knows: `folder:s3://...`, `folder:gs://...`.

In: a URI. Out: a `Source` with the rules of a local folder. The storage is listed once; bytes are read one picture at a
time, by as many threads as pack. Storage that does not answer stops packing: it says nothing about a picture. No torch.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import pyarrow.fs

from trainables.config import SplitName
from trainables.data.candidates import Candidate, Candidates
from trainables.data.folder_source import MAX_FILE_BYTES, SIDE_OF_FOLDER, check_side_folders, is_hidden
from trainables.data.picture import Picture
from trainables.errors import InputError, StorageError
from trainables.files.storage import join, open_filesystem, problem_of


class RemoteFolderSource:
    """Pictures in class folders, or in class folders under train, val and test, below a storage URI.

    Every file below a class folder is a candidate, except hidden ones and well-known litter. An object store has no
    empty folders, so only where the storage has some is an empty class folder refused.
    """

    def __init__(self, place: str) -> None:
        self._place = place.rstrip("/")
        try:
            self._filesystem, root = open_filesystem(self._place)
            info = self._filesystem.get_file_info(root)
        except (OSError, ValueError) as error:
            raise InputError(f"data source 'folder:{place}': {problem_of(error)}") from error
        if info.type != pyarrow.fs.FileType.Directory:
            what = "is a file, not a folder" if info.type == pyarrow.fs.FileType.File else "no such folder"
            raise InputError(f"data source 'folder:{place}': {what}: give a folder that holds one folder per class")
        self._root = root.rstrip("/")

    @property
    def uri(self) -> str:
        """`folder:` and the URI."""
        return f"folder:{self._place}"

    def pictures(self) -> Sequence[Picture]:
        """All candidates, sorted by name; see `Source.pictures`."""
        return self._candidates

    def signature(self) -> str:
        """SHA-256 over the place and every candidate's name, size and time."""
        return self._candidates.digest(f"remote folder {self._place}".encode())

    @cached_property
    def _candidates(self) -> Candidates:
        folders, files = self._listing()
        depth, side_of = self._layout({folder.split("/", 1)[0] for folder in folders})
        classes = {tuple(folder.split("/")[:depth]) for folder in folders if folder.count("/") >= depth - 1}
        if side_of:
            classes = {parts for parts in classes if parts[0] in side_of}
        found = (
            Candidate(
                name.encode(), _class_name(parts[-1]), side_of.get(parts[0]), info.size or 0, (info.mtime_ns or 0, 0)
            )
            for name, info in files
            if (parts := tuple(name.split("/")[:depth])) in classes and name.count("/") >= depth
        )
        candidates = Candidates(found, self._reader)
        self._check(classes, set(candidates.class_names))
        check_side_folders(self.uri, set(side_of.values()), candidates.sides)
        return candidates

    def _reader(self, name: bytes, size_bytes: int) -> Callable[[], bytes]:
        return partial(_read, self._filesystem, f"{self._root}/{name.decode()}", size_bytes, self.uri)

    def _listing(self) -> tuple[set[str], list[tuple[str, pyarrow.fs.FileInfo]]]:
        """Names below the root of every folder, said or implied by a file, and of every file; hidden ones left out."""
        try:
            infos = self._filesystem.get_file_info(pyarrow.fs.FileSelector(self._root, recursive=True))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.uri}: {problem_of(error)}") from error
        folders: set[str] = set()
        files: list[tuple[str, pyarrow.fs.FileInfo]] = []
        for info in infos:
            name = info.path.strip("/")[len(self._root.strip("/")) :].strip("/")
            if any(is_hidden(part) for part in name.split("/")):
                continue
            if info.type == pyarrow.fs.FileType.Directory:
                folders.add(name)
                continue
            files.append((name, info))
            folders |= set(_above(name))
        return folders, files

    def _layout(self, tops: set[str]) -> tuple[int, dict[str, SplitName]]:
        """How many folders lead to a class's pictures, and which of the first ones are sides."""
        sides = {name: SIDE_OF_FOLDER[name.lower()] for name in sorted(tops) if name.lower() in SIDE_OF_FOLDER}
        if "train" in sides.values() and len(set(sides.values())) > 1:
            return 2, sides
        if len(tops) == 1 and sides:
            (only,) = tops
            raise InputError(
                f"{self.uri}: only the folder {only!r} stands there: give '{join(self.uri, only)}', or put the other "
                "sides beside it"
            )
        return 1, {}

    def _check(self, classes: set[tuple[str, ...]], with_pictures: set[str]) -> None:
        if not classes:
            raise InputError(f"{self.uri}: no class folders there: put the pictures into one folder per class")
        if not with_pictures:
            raise InputError(f"{self.uri}: its class folders hold no pictures: add some or give another folder")
        if empty := sorted({_class_name(parts[-1]) for parts in classes} - with_pictures):
            raise InputError(f"{self.uri}: class folder {empty[0]!r} is empty: add pictures or remove the folder")


def _above(name: str) -> Iterator[str]:
    parts = name.split("/")[:-1]
    return ("/".join(parts[:number]) for number in range(1, len(parts) + 1))


def _class_name(folder: str) -> str:
    return unicodedata.normalize("NFC", folder)


def _read(filesystem: pyarrow.fs.FileSystem, path: str, size_bytes: int, uri: str) -> bytes:
    """The bytes of a picture's file.

    Raises:
        FileNotFoundError: It went away.
        InputError: It is far too large for a picture.
        StorageError: The storage does not answer, or no longer lets us read.
    """
    if size_bytes > MAX_FILE_BYTES:
        raise InputError(f"the file has {size_bytes // 2**20} MiB, more than {MAX_FILE_BYTES // 2**20}")
    try:
        with filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
            return content
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{uri}: {path}: {problem_of(error)}") from error
