"""A source's pictures to a packed image table: each decoded once, in parallel, in bounded memory.

In: a `Source` and a folder for tables. Out: a table's folder, its fingerprint, and what was set aside and why. A source
that has not changed is not decoded again. No torch: the driver packs while the workers still import it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trainables.config import SPLIT_NAMES
from trainables.data.decoding import decode_picture
from trainables.data.picture import Picture
from trainables.data.sources import Source
from trainables.data.table import ImageTable
from trainables.data.table_file import (
    MANIFEST_NAME,
    NO_SIDE,
    SCHEMA_VERSION,
    Manifest,
    Row,
    TableWriter,
    read_ids,
    read_rows,
)
from trainables.errors import InputError, StorageError
from trainables.files.half_written import half_written, remove_half_written
from trainables.files.storage import OF_NO_FILE, is_local
from trainables.memory import give_back_freed_memory

Read = TypeVar("Read")

PICTURES_IN_FLIGHT_PER_THREAD = 4
REMOTE_READERS = 16
"""Threads that read and decode where a picture comes over a network: most of the time they wait for it."""
ABANDONED_AFTER_S = 24 * 3600.0
"""After so long nobody writes any more to a file of another machine's, whose locks may not be seen here."""
_TABLE = "table"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class BadFile:
    """A file that was set aside, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class _UnreadFile(BadFile):
    """A file that the system could not read; its storage may be to blame."""

    read: Callable[[], bytes]

    def can_be_read(self) -> bool:
        """Whether it can be by now."""
        try:
            self.read()
        except (OSError, InputError):
            return False
        return True


@dataclass(frozen=True)
class PackReport:
    """What packing did.

    Attributes:
        path: The table's folder, for `ImageTable.open`.
        fingerprint: SHA-256 over size, classes, sides, content ids and pixels; no path and no time is in it.
        num_images: Pictures in the table.
        class_names: In label order: sorted.
        bad_files: What was set aside, sorted by name.
        reused: The table was there already.
        seconds: How long it took.
    """

    path: Path
    fingerprint: str
    num_images: int
    class_names: tuple[str, ...]
    bad_files: tuple[BadFile, ...]
    reused: bool
    seconds: float


def pack(
    source: Source,
    root: Path,
    *,
    side_px: int,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[Sequence[Picture]], None] | None = None,
) -> PackReport:
    """Packs a source into a table below `root`, or finds the one that is there.

    Several processes may pack the same source at once: each writes a file of its own, and one of them stays.

    Args:
        source: Where the pictures are.
        root: Folder of all packed tables; created when missing.
        side_px: The shorter side is shrunk to at most this.
        num_threads: Pictures read and decoded at once; default: the CPUs this process may use, and at least
            `REMOTE_READERS` where the source is a storage's.
        progress: Called as (done, total) from the calling thread.
        check: Called with what is to be read before any of it is; what it raises ends packing.

    Raises:
        InputError: The source holds no picture, or none that can be read; its storage stopped answering; or there is no
            room for them.
    """
    started = time.perf_counter()
    folder = root / _table_key(source.signature(), side_px)
    manifest = _find_complete(folder)
    reused = manifest is not None
    _remove_abandoned(folder)
    if manifest is None:
        pictures = source.pictures()
        if check is not None:
            check(pictures)
        num_threads = num_threads or num_readers(source.uri)
        manifest = _write_table(source, pictures, folder, side_px, num_threads, progress)
        del pictures
        give_back_freed_memory()
    return PackReport(
        path=folder,
        fingerprint=manifest.fingerprint,
        num_images=manifest.num_images,
        class_names=manifest.class_names,
        bad_files=tuple(BadFile(name, reason) for name, reason in manifest.bad_files),
        reused=reused,
        seconds=time.perf_counter() - started,
    )


def num_readers(uri: str) -> int:
    """Pictures to read at once: as many as this process may use CPUs, more where reading is waiting."""
    # Some systems only tell how many CPUs there are.
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return num_cpus if is_local(uri) else max(num_cpus, REMOTE_READERS)


def _table_key(signature: str, side_px: int) -> str:
    key = json.dumps({"schema": SCHEMA_VERSION, "side_px": side_px, "source": signature}, sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _find_complete(folder: Path) -> Manifest | None:
    """The manifest of a table that can be opened; a damaged table is packed anew."""
    try:
        ImageTable.open(folder)
        return Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except ValueError:
        return None


def _remove_abandoned(folder: Path) -> None:
    """Unfinished files of packers that were killed, other machines' after a day."""
    remove_half_written(folder / _TABLE)
    with suppress(OSError):
        for path in [*folder.glob(f".{_TABLE}.*.tmp*"), *folder.glob("*.partial")]:  # their former name
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
                path.unlink(missing_ok=True)


def _write_table(
    source: Source,
    pictures: Sequence[Picture],
    folder: Path,
    side_px: int,
    num_threads: int,
    progress: Callable[[int, int], None] | None,
) -> Manifest:
    give_back_freed_memory()  # what listing them took, before decoding takes its own
    class_names = tuple(sorted({picture.class_name for picture in pictures}))
    labels = {name: label for label, name in enumerate(class_names)}

    def report(done: int) -> None:
        if progress is not None:
            progress(done, len(pictures))

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with half_written(folder / _TABLE) as path:
            with warnings.catch_warnings():
                # What Pillow warns of is either decoded all the same or set aside with its reason.
                warnings.filterwarnings("ignore", module=r"PIL\.")
                rows = in_order(partial(_read_row, labels=labels, side_px=side_px), pictures, num_threads)
                packed = _write_rows(rows, class_names, path, side_px, report)
            _check_storage(source, packed.bad)
            if packed.num_rows == 0:
                first = packed.bad[0]
                raise InputError(
                    f"{source.uri}: none of its {len(pictures)} files is a usable picture: {first.name}: {first.reason}"
                )
            manifest = Manifest(
                file=f"images-{packed.fingerprint[:16]}.arrow",
                file_bytes=path.stat().st_size,
                fingerprint=packed.fingerprint,
                side_px=side_px,
                num_images=packed.num_rows,
                class_names=class_names,
                bad_files=tuple((bad.name, bad.reason) for bad in packed.bad),
            )
            path.replace(folder / manifest.file)
            path.write_text(manifest.to_json(), encoding="utf-8")
            path.replace(folder / MANIFEST_NAME)
            return manifest
    except OSError as error:
        if error.errno is None or error.errno not in _NO_ROOM:
            raise
        raise InputError(
            f"{folder}: no room for the packed pictures ({os.strerror(error.errno)}): free some, or name a folder on a "
            "larger disk by THAW_HOME"
        ) from error


def _check_storage(source: Source, bad_files: Sequence[BadFile]) -> None:
    """Tells files that cannot be read from a disk that was away: a table without them would be used when it is back.

    Raises:
        InputError: The source is not there any more, or one of them can be read by now.
    """
    unread = [bad for bad in bad_files if isinstance(bad, _UnreadFile)]
    if unread:
        source.pictures()
    if back := next((bad for bad in unread if bad.can_be_read()), None):
        raise StorageError(
            f"{source.uri}: {back.name} could not be read ({back.reason}) and now it can: its storage was away for a "
            "while; start again"
        )


@dataclass(frozen=True)
class _Packed:
    """What went into a file, and what was set aside."""

    num_rows: int
    fingerprint: str
    bad: list[BadFile]


def _write_rows(
    rows: Iterator[Row | BadFile], class_names: tuple[str, ...], path: Path, side_px: int, report: Callable[[int], None]
) -> _Packed:
    bad: list[BadFile] = []
    with TableWriter(path, class_names, side_px) as writer:
        for done, row in enumerate(rows, start=1):
            if isinstance(row, BadFile):
                bad.append(row)
            else:
                writer.append(row)
            report(done)
    packed = _Packed(writer.num_rows, writer.fingerprint, [])
    if disputed := _under_two_labels(*read_ids(path)):
        packed = _drop_disputed(path, class_names, side_px, disputed)
    return replace(packed, bad=sorted(bad + packed.bad, key=lambda bad: bad.name))


def _under_two_labels(ids: NDArray[np.bytes_], labels: NDArray[np.int32]) -> set[str]:
    """Content ids [N] that stand there with different labels [N]."""
    order = np.lexsort((labels, ids))
    beginnings = ids.view("S8")[:: ids.itemsize // 8]  # few are the same in these: only those are compared whole
    near = np.flatnonzero(beginnings[order[1:]] == beginnings[order[:-1]])
    first, second = order[near], order[near + 1]
    disputed = ids[second[(ids[first] == ids[second]) & (labels[first] != labels[second])]]
    return {bytes(image_id).decode("ascii") for image_id in disputed}


def in_order(read: Callable[[Picture], Read], pictures: Sequence[Picture], num_threads: int) -> Iterator[Read]:
    """`read` of each picture, in order, with a bounded number of them under way."""
    waiting = iter(pictures)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="pack") as pool:
        first = islice(waiting, num_threads * PICTURES_IN_FLIGHT_PER_THREAD)
        coming: deque[Future[Read]] = deque(pool.submit(read, picture) for picture in first)
        try:
            while coming:
                row = coming.popleft().result()
                coming.extend(pool.submit(read, picture) for picture in islice(waiting, 1))
                yield row
        finally:
            pool.shutdown(cancel_futures=True)


def _read_row(picture: Picture, *, labels: dict[str, int], side_px: int) -> Row | BadFile:
    try:
        data = picture.read()
        pixels_HWC = decode_picture(data, side_px)
    except StorageError:
        raise
    except OSError as error:
        if error.errno in OF_NO_FILE:
            raise StorageError(
                f"{picture.name}: cannot be read ({error.strerror}), which says nothing of the picture: mend that, and "
                "start again"
            ) from error
        return _UnreadFile(picture.name, f"cannot be read: {error.strerror or type(error).__name__}", picture.read)
    except InputError as error:
        return BadFile(picture.name, str(error))
    return Row(
        id=hashlib.sha256(data).hexdigest(),
        label=labels[picture.class_name],
        side=NO_SIDE if picture.side is None else SPLIT_NAMES.index(picture.side),
        name=picture.name,
        height=pixels_HWC.shape[0],
        width=pixels_HWC.shape[1],
        pixels=pixels_HWC.tobytes(),
        group=picture.group,
    )


def _drop_disputed(path: Path, class_names: tuple[str, ...], side_px: int, disputed: set[str]) -> _Packed:
    """Copies the table without the pictures that stand under two labels: nobody knows which one is right."""
    kept_path = path.with_name(f"{path.name}.kept")
    places: dict[str, list[tuple[str, str]]] = {}
    with TableWriter(kept_path, class_names, side_px) as writer:
        for row in read_rows(path):
            if row.id in disputed:
                places.setdefault(row.id, []).append((row.name, class_names[row.label]))
            else:
                writer.append(row)
    kept_path.replace(path)
    bad = [
        BadFile(name, f"the same picture stands under class {other[1]!r} too: {other[0]}")
        for same in places.values()
        for name, class_name in same
        for other in [next(place for place in same if place[1] != class_name)]
    ]
    return _Packed(writer.num_rows, writer.fingerprint, bad)
