"""Locks that the kernel frees when their holder dies: a mutex for short sections, and the mark of use on an entry.

On filesystems without file locks nobody is kept out: then work may be done twice, and nothing is evicted.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_POLL_S = 0.005


@contextmanager
def mutex(path: Path, patience_s: float = 5.0) -> Iterator[bool]:
    """Holds a file's lock for a short section; yields whether it was got in time.

    A holder that is stopped inside its section keeps the lock: who waits for it gives up instead of hanging.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _lock_within(descriptor, patience_s)
    finally:
        os.close(descriptor)


def _lock_within(descriptor: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not try_lock(descriptor, fcntl.LOCK_EX, if_unsupported=True):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def try_lock(descriptor: int, kind: int, *, if_unsupported: bool) -> bool:
    """Whether the lock was got without waiting; ``if_unsupported`` where the filesystem has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return if_unsupported
        raise
    return True


class Use:
    """The mark that an entry is in use by this process; many may hold it at once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Takes the mark away."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def mark_use(path: Path, *, is_created: bool = False, is_used_now: bool = True, patience_s: float = 5.0) -> Use | None:
    """Marks the entry of ``path`` as in use; None while it is being removed or is not there.

    Args:
        path: The entry's file for this purpose.
        is_created: Whether to make it where it is missing.
        is_used_now: Whether it counts as use for who looks for the least recently used entry.
        patience_s: How long to wait for somebody who is about to remove the entry.
    """
    deadline = time.monotonic() + patience_s
    while True:
        descriptor = _open(path, is_created)
        if descriptor is None:
            return None
        if try_lock(descriptor, fcntl.LOCK_SH, if_unsupported=True) and _is_still(path, descriptor):
            try:
                if is_used_now:
                    os.utime(descriptor)
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    os.close(descriptor)
                    raise
            return Use(descriptor)
        os.close(descriptor)
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL_S)


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Yields whether nobody uses the entry of ``path``; nobody can begin to while the section lasts."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        yield False
        return
    try:
        yield try_lock(descriptor, fcntl.LOCK_EX, if_unsupported=False) and _is_still(path, descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path, is_created: bool) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if is_created else 0), 0o666)
    except (FileNotFoundError, NotADirectoryError):
        if is_created:
            raise
        return None
    except OSError as error:
        if is_created or error.errno not in _READ_ONLY:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked is the one that has the name."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


@functools.cache
def this_machine() -> str:
    """The same for all processes under one running kernel, containers included: those see each other's locks."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else f"{socket.gethostname()} {uuid.getnode()}"
