"""Files in a folder or behind a storage URI (``s3://``, ``gs://``, any of pyarrow's): whole, or not there at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs

_OBJECT_STORES = ("s3", "gcs", "abfs")
"""Filesystems whose files appear when they are complete; elsewhere a file is written beside its place and moved."""
_LARGE_BYTES = 1 << 20
"""From here on it matters how a local file's blocks come to the disk."""


OF_NO_FILE = (
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENODEV, errno.ENOMEM, errno.EMFILE,
    errno.ENFILE,
)  # fmt: skip
"""What a filesystem that is away says, or a machine that has run out of something: of every file alike."""


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a plain path rather than ``scheme://...``."""
    return "://" not in uri


def join(uri: str, *parts: str) -> str:
    """``uri`` with ``parts`` below it, for paths and URIs alike; options behind a URI's ``?`` stay behind it."""
    place, mark, options = (uri, "", "") if is_local(uri) else uri.partition("?")
    return "/".join([place.rstrip("/"), *parts]) + mark + options


def open_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem behind a storage URI or an absolute path, and the path in it.

    Credentials come from the environment.

    Raises:
        ValueError: No filesystem is known for the URI's scheme, or what knows it is not installed.
    """
    try:
        filesystem, name = pyarrow.fs.FileSystem.from_uri(uri)
    except ImportError as error:  # fsspec's and Hugging Face's are in packages of their own
        raise ValueError(" ".join(str(error).split())) from error
    return filesystem, name


_MOST_TEXT = 200
_REFUSALS = ("ACCESS_DENIED", "FORBIDDEN", "CREDENTIAL", "UNAUTHORIZED", "SIGNATURE", "ACCESS_KEY", "PERMISSION")


def problem_of(error: Exception) -> str:
    """Why storage cannot be read, and what to do, in one line."""
    gist = " ".join(str(error).split())[:_MOST_TEXT] or type(error).__name__
    if any(word in gist.upper() for word in _REFUSALS):
        return (
            f"not allowed to read there ({gist}): give the environment credentials that may, such as AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS"
        )
    return f"cannot be reached ({gist}): check its spelling and the network"


def problem_with(filesystem: pyarrow.fs.FileSystem, path: str) -> str | None:
    """Why a file's storage does not answer, as `problem_of` says it; None where it gives the file's first byte."""
    try:
        with filesystem.open_input_file(path) as file:
            file.read(1)
    except OSError as error:
        return problem_of(error)
    return None


def write_bytes(uri: str, *pieces: bytes | memoryview) -> None:
    """Writes a file that appears whole or not at all, of one piece of content or of several.

    A local file is written beside its place and moved there; an object store's put is atomic by itself. A large file
    goes to the disk while the caller goes on: ext4 has whoever moves one over another wait for that, unless its blocks
    are there already (mount option ``auto_da_alloc``).
    """
    if is_local(uri):
        path = Path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        num_bytes = sum(map(len, pieces))
        try:
            with contextlib.ExitStack() as opened:
                written = None
                with temporary.open("wb") as file:
                    if num_bytes >= _LARGE_BYTES:
                        _reserve(file.fileno(), num_bytes)
                        written = os.dup(file.fileno())
                        opened.callback(os.close, written)
                    file.writelines(pieces)
                # Closed before it takes the place of another: a network file system may say only then that it is full.
                if written is None:
                    temporary.replace(path)
                else:
                    _behind().move(temporary, path, written)
        finally:
            temporary.unlink(missing_ok=True)
        return
    filesystem, name = open_filesystem(uri)

    def write(place: str) -> None:
        with filesystem.open_output_stream(place) as stream:
            for piece in pieces:
                stream.write(piece)

    _write_whole(filesystem, name, write)


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Gives a new file its blocks, where the filesystem can do that without writing them."""
    fallocate = _fallocate()
    if fallocate is not None:
        fallocate(descriptor, 0, 0, num_bytes)  # whatever is wrong with it, writing will say so


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """The system call itself: where it is missing, ``os.posix_fallocate`` would write every block instead."""
    if not sys.platform.startswith("linux"):
        return None
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return call


class _Behind:
    """Moves large files to their places; what the disk has to do for that is left to a thread.

    That is forcing the new file out and freeing the one that was in its place. What comes while the thread is busy is
    left to the system.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="storage")
        self._last: Future[None] | None = None
        self._failed: dict[Path, OSError] = {}

    def move(self, temporary: Path, path: Path, descriptor: int) -> None:
        """Moves the file, open under ``descriptor``, which the caller may close, and returns at once."""
        if self._last is not None and not self._last.done():
            temporary.replace(path)
            self._failed.pop(path, None)
            return
        with contextlib.ExitStack() as opened:
            with contextlib.suppress(OSError):
                # Freed when the last who has it open closes it.
                opened.callback(os.close, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            temporary.replace(path)
            self._failed.pop(path, None)
            moved = os.dup(descriptor)
            opened.callback(os.close, moved)
            self._last = self._thread.submit(self._settle, path, moved, opened.pop_all())

    def _settle(self, path: Path, descriptor: int, opened: contextlib.ExitStack) -> None:
        with opened:
            try:
                os.fsync(descriptor)
            except OSError as error:
                self._failed[path] = error

    def check(self, path: Path) -> None:
        """Raises what the disk said of a file that was moved here: it says so once, to the first who asks.

        Raises:
            OSError: It did not take it all.
        """
        if self._last is not None:
            self._last.result()
        if path in self._failed:
            raise self._failed[path]


@functools.cache
def _behind() -> _Behind:
    return _Behind()


def make_durable(uri: str) -> None:
    """Forces a local file to the disk, so that it outlives the machine's crash; object stores do so by themselves.

    Raises:
        OSError: The disk does not take it.
    """
    if not is_local(uri):
        return
    _behind().check(Path(uri))
    for path in (Path(uri), Path(uri).parent):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_file(uri: str) -> None:
    """Removes a file if it is there."""
    if is_local(uri):
        Path(uri).unlink(missing_ok=True)
        return
    filesystem, name = open_filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(name)


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: There is none.
    """
    if is_local(uri):
        return Path(uri).read_bytes()
    filesystem, name = open_filesystem(uri)
    with filesystem.open_input_file(name) as stream:
        return stream.read()


def file_exists(uri: str) -> bool:
    """Whether there is a file at a path or URI."""
    if is_local(uri):
        return Path(uri).is_file()
    return _is_file(*open_filesystem(uri))


def file_size(uri: str) -> int | None:
    """Bytes of a file at a storage URI; None where there is none."""
    filesystem, name = open_filesystem(uri)
    info = filesystem.get_file_info(name)
    return info.size if info.type == pyarrow.fs.FileType.File else None


def publish_files(folder: Path, names: Sequence[str], uri: str) -> bool:
    """Copies files of a local folder to below a storage URI, in order, unless that was done before.

    Args:
        folder: Where they are.
        names: The last one is the manifest: who finds it finds the others too.
        uri: The folder's place in the storage.

    Returns:
        Whether anything was copied. Nothing is where the same manifest lies beside files of the same sizes.
    """
    filesystem, root = open_filesystem(uri)
    places = [join(root, name) for name in names]
    there = filesystem.get_file_info(places)
    sizes = [(folder / name).stat().st_size for name in names]
    if [info.size for info in there] == sizes and read_bytes(join(uri, names[-1])) == (folder / names[-1]).read_bytes():
        return False
    for name, place in zip(names, places, strict=True):
        _write_whole(filesystem, place, _copier(folder / name, filesystem))
    return True


def fetch_file(uri: str, path: Path) -> None:
    """Copies a file from a storage URI to a local path, in pieces.

    Raises:
        FileNotFoundError: There is none.
    """
    filesystem, name = open_filesystem(uri)
    if not _is_file(filesystem, name):
        raise FileNotFoundError(f"{uri}: not there")
    pyarrow.fs.copy_files(
        name, str(path), source_filesystem=filesystem, destination_filesystem=pyarrow.fs.LocalFileSystem()
    )


def list_folder(uri: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files right below a storage URI; none where it does not exist."""
    filesystem, root = open_filesystem(uri)
    infos = filesystem.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True))
    folders, files = (
        sorted(info.base_name for info in infos if info.type == kind)
        for kind in (pyarrow.fs.FileType.Directory, pyarrow.fs.FileType.File)
    )
    return folders, files


def _is_file(filesystem: pyarrow.fs.FileSystem, name: str) -> bool:
    return bool(filesystem.get_file_info(name).type == pyarrow.fs.FileType.File)


def _copier(path: Path, filesystem: pyarrow.fs.FileSystem) -> Callable[[str], None]:
    def copy(place: str) -> None:
        pyarrow.fs.copy_files(
            str(path), place, source_filesystem=pyarrow.fs.LocalFileSystem(), destination_filesystem=filesystem
        )

    return copy


def _write_whole(filesystem: pyarrow.fs.FileSystem, name: str, write: Callable[[str], None]) -> None:
    """Has ``write`` make a file, so that it appears under ``name`` when it is complete."""
    if filesystem.type_name in _OBJECT_STORES:
        write(name)
        return
    parent, _, base = name.rpartition("/")
    filesystem.create_dir(parent, recursive=True)
    temporary = f"{parent}/.{base}.{uuid.uuid4().hex}.tmp"
    write(temporary)
    filesystem.move(temporary, name)
