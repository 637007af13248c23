"""A home that is shared storage: whether it can be reached, and the records of sweeps, which are written elsewhere.

In: a home. What only the driver writes, line by line, lies on its own machine; the files of a sweep's folder (spec,
journal, ledger...) are copied below the home's URI now and then, so that they outlive the machine, and back on another
one, so that a sweep can go on there. Nothing is done where the home is a folder.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from trainables.errors import InputError
from trainables.files.storage import file_size, join, list_folder, read_bytes, write_bytes
from tuner.paths import HomePaths, SweepPaths
from tuner.records.journal import journal_at_rest

logger = logging.getLogger(__name__)

PUSH_EVERY_S = 30.0
"""The journal is copied whole: at most so often while a sweep runs, and at its turning points."""


def check_home(home: HomePaths) -> None:
    """Writes to shared storage once, so that what is wrong with it is seen before anything expensive.

    Raises:
        InputError: It cannot be written to.
    """
    if home.is_shared:
        with _reaching(home):
            write_bytes(join(home.root, "home.json"), b'{"version": 1}\n')


def check_local(home: HomePaths) -> None:
    """Writes to the home's folder on this machine once; takes no time.

    Raises:
        InputError: It cannot be written to.
    """
    try:
        home.local.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=home.local):
            pass
    except OSError as error:
        raise InputError(
            f"THAW_HOME: {home.local} cannot be written to ({error.strerror}); name another folder by THAW_HOME, or "
            "see that you may write there"
        ) from error


def pull_sweeps(home: HomePaths, name: str | None = None, *, goes_on: bool = False) -> None:
    """Fetches the records of sweeps that this machine does not know, or that another one has gone on with.

    Those of a sweep that a process of this machine runs stay as they are.

    Args:
        home: The home.
        name: Of one sweep, where this machine knows it; None, or one that it does not know: of all.
        goes_on: Whether that one is to go on here: else what cannot be brought together is only warned of.

    Raises:
        InputError: The storage cannot be read; or its records of a sweep that is to go on, and this machine's, have
            parted.
    """
    if not home.is_shared:
        return
    with _reaching(home):
        names = [name] if name in home.sweep_names() else list_folder(home.uri_of(home.sweeps))[0]
    for each in names:
        paths = SweepPaths(home.sweeps / each)
        with _reaching(home), journal_at_rest(paths.journal) as is_at_rest:
            standing = _compare(home, paths, is_thorough=goes_on and each == name) if is_at_rest else "not behind"
            if standing == "behind":
                for folder in _folders_of(paths):  # what is here is of before; see `pull_results`
                    if any(list_folder(home.uri_of(folder))):
                        shutil.rmtree(folder, ignore_errors=True)
                _, files = list_folder(home.uri_of(paths.root))
                for path in _in_order([paths.root / file for file in files], paths):
                    write_bytes(str(path), read_bytes(home.uri_of(path)))
        if standing == "parted":
            text = (
                f"sweep {each}: its records at {paths.root} and those below {home.root} have parted, since another "
                "machine went on from an older copy; remove the folder here to go on from the others"
            )
            if goes_on and each == name:
                raise InputError(f"resume: {text}")
            logger.warning(text)


def pull_results(home: HomePaths, name: str) -> None:
    """Fetches what this machine lacks of a sweep's report and its champion's model, which few commands need.

    Raises:
        InputError: The storage cannot be read.
    """
    if not home.is_shared:
        return
    waiting = list(_folders_of(home.sweep(name)))
    with _reaching(home):
        while waiting:
            folder = waiting.pop()
            folders, files = list_folder(home.uri_of(folder))
            waiting += [folder / inner for inner in folders]
            for path in (folder / file for file in files):
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_bytes(str(path), read_bytes(home.uri_of(path)))


def _compare(home: HomePaths, paths: SweepPaths, *, is_thorough: bool) -> Literal["behind", "not behind", "parted"]:
    """How this machine's journal of a sweep stands to the storage's: both are only ever added to.

    Unless it is to be thorough, what is no longer there than here is taken for older, and not read.
    """
    if not paths.journal.exists():
        return "behind"
    uri = home.uri_of(paths.journal)
    size = file_size(uri)
    if size is None or (size <= paths.journal.stat().st_size and not is_thorough):
        return "not behind"
    here, there = _whole_lines(paths.journal.read_bytes()), _whole_lines(read_bytes(uri))
    if here.startswith(there):
        return "not behind"
    return "behind" if there.startswith(here) else "parted"


def _whole_lines(content: bytes) -> bytes:
    """Without a last line that a crash has torn."""
    return content[: content.rfind(b"\n") + 1]


class SweepTwin:
    """The copy of one sweep's records.

    Args:
        home: The home.
        name: The sweep's name.
    """

    def __init__(self, home: HomePaths, name: str) -> None:
        self._home, self._paths = home, home.sweep(name)
        self._next_push = 0.0
        self._pushed: dict[Path, tuple[int, int]] = {}

    def push(self, *, at_once: bool = False) -> None:
        """Copies what there is, if the last time is long enough ago. A storage that is away is not the sweep's end."""
        if not self._home.is_shared or not (at_once or time.monotonic() >= self._next_push):
            return
        try:
            for path in _in_order(_files_here(self._paths), self._paths):
                with suppress(FileNotFoundError):  # moved to its place by another thread since
                    stat = path.stat()
                    if self._pushed.get(path) != (stat.st_mtime_ns, stat.st_size):
                        write_bytes(self._home.uri_of(path), path.read_bytes())
                        self._pushed[path] = stat.st_mtime_ns, stat.st_size
        except OSError as error:
            logger.warning("the sweep's records could not be copied to %s: %s", self._home.root, error)
        self._next_push = time.monotonic() + PUSH_EVERY_S


def _folders_of(paths: SweepPaths) -> tuple[Path, ...]:
    """Where the driver alone writes; what lies in others is in the storage already, or of no use elsewhere."""
    return paths.report, paths.champion


def _files_here(paths: SweepPaths) -> list[Path]:
    inner = (path for folder in _folders_of(paths) for path in folder.rglob("*"))
    files = (path for path in (*paths.root.iterdir(), *inner) if path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(paths.root).parts)]


def _in_order(files: list[Path], paths: SweepPaths) -> list[Path]:
    """The journal last: where there is one, the rest is there too."""
    return sorted(files, key=lambda path: (path == paths.journal, path.name))


@contextmanager
def _reaching(home: HomePaths) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"THAW_HOME: {home.root} cannot be reached ({reason}); check its spelling, the bucket's name and region, "
            "and this machine's credentials"
        ) from error
