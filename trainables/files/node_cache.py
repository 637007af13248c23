"""Copies of shared files on this node's disk: fetched once, by whichever process of the node needs them first.

In: a name made of a content hash, and how to fetch it. Out: a local path that can be mapped. The folder is
``THAW_CACHE``, else one of this user's own under the system's temporary directory; it may be emptied whenever no
sweep runs.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from trainables.errors import InputError
from trainables.files.half_written import remove_whole
from trainables.files.locks import mutex
from trainables.files.typed_path import expand


def cache_root(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of this node's copies, made when it is missing.

    Raises:
        InputError: The default folder belongs to somebody else.
    """
    environ = os.environ if environ is None else environ
    if named := environ.get("THAW_CACHE"):
        root = expand(named, "THAW_CACHE").absolute()
        root.mkdir(parents=True, exist_ok=True)
        return root
    root = Path(tempfile.gettempdir()) / f"thaw-cache-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    # Anyone may create a folder of that name in a shared temporary directory; then its content is theirs.
    if root.stat().st_uid != os.getuid():
        raise InputError(f"{root} belongs to another user; set THAW_CACHE to a folder of your own on a local disk")
    return root


def features_root(given: str | Path | None) -> Path:
    """Where this node keeps features: the folder given, else one in its cache.

    Raises:
        InputError: See `cache_root`.
    """
    return Path(given) if given else cache_root() / "features"


def fetch_once(
    name: str,
    fetch: Callable[[Path], None],
    *,
    is_usable: Callable[[Path], bool] = Path.exists,
    root: Path | None = None,
) -> Path:
    """The file or folder ``name`` of the cache; fetched when it is not there, or no longer usable.

    Of several processes that ask at once one fetches and the others wait; the kernel frees the lock of one that dies.

    Args:
        name: Relative path, made of a hash of the content: what is there is never replaced by something else.
        fetch: Writes the file or folder to the path it is given, and raises when that does not hold what it should.
        is_usable: Looks at what is there already.
        root: The cache; default `cache_root`.
    """
    place = (cache_root() if root is None else root) / name
    if is_usable(place):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    with mutex(place.with_name(f".{place.name}.lock"), math.inf):
        if is_usable(place):
            return place
        remove_whole(partial)  # left by a process that died
        try:
            fetch(partial)
            remove_whole(place)
            partial.rename(place)
        finally:
            remove_whole(partial)
    return place
