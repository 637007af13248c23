"""Names for what is written beside its place and moved there when it is whole, of which nothing stays of the killed.

In: the place. Out: a name of this writer's own. Several may write for one place at once. Each holds a mark that the
kernel takes away with its process: who finds nobody's mark removes what is there. A machine judges its own writers
only, because not every shared filesystem shows one machine the locks of another; without locks nothing is removed.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.files.locks import mark_use, this_machine, unused


@contextmanager
def half_written(place: Path) -> Iterator[Path]:
    """A name beside ``place`` for a file or folder, and for what else begins with it; at the end all that is removed.

    Args:
        place: Where the whole is to be moved; its folder must be there.
    """
    remove_half_written(place)
    use = mark_use(_mark(place), is_created=True)
    # Without a mark somebody may take this for a dead process's: then it has a name that nobody removes.
    owner = "unmarked" if use is None else _machine()
    temporary = place.with_name(f".{place.name}.{owner}-{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        _remove(place.parent, temporary.name)
        if use is not None:
            use.release()
        remove_half_written(place)


def remove_half_written(place: Path) -> None:
    """Removes what processes of this machine were writing for ``place`` when they were killed; what cannot go stays."""
    mark, beginning = _mark(place), f".{place.name}.{_machine()}-"
    # In a folder that may only be read, or whose disk is away, the place itself may serve.
    with suppress(OSError):
        if not mark.exists() and not any(_beginning(place.parent, beginning)):
            return
        with unused(mark) as is_alone:
            if is_alone:
                _remove(place.parent, beginning)
                mark.unlink(missing_ok=True)


def remove_whole(path: Path) -> None:
    """Removes a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _mark(place: Path) -> Path:
    return place.with_name(f".{place.name}.{_machine()}.writing")


@functools.cache
def _machine() -> str:
    return hashlib.sha256(this_machine().encode()).hexdigest()[:8]


def _beginning(folder: Path, beginning: str) -> Iterator[Path]:
    return folder.glob(f"{glob.escape(beginning)}*")


def _remove(folder: Path, beginning: str) -> None:
    with suppress(OSError):
        for path in list(_beginning(folder, beginning)):
            with suppress(OSError):
                remove_whole(path)
