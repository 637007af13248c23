"""A claim on a piece of work, kept as a file: one process does it while others wait, and a dead one blocks nobody.

No wall clock is read. A claim is over when its file's lock is free, on the machine whose kernel knows of the lock;
and anywhere when the file has not changed for a lease's length on the *waiter's* monotonic clock. Its owner changes
it four times in that span. So clocks may jump, differ or stand still without two owners and without an endless wait.

Two owners remain possible after an owner was stopped for longer than the lease, and where a filesystem has no locks.
Work under a lease must therefore come out the same when done twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainables.features.layout import MUTEX_NAME
from trainables.files.locks import mutex, this_machine, try_lock

_BEATS_PER_LEASE = 4
_COUNTER_DIGITS = 12


class Lease:
    """One claim that this process holds."""

    def __init__(self, path: Path, descriptor: int, ends: float) -> None:
        self.path, self._descriptor, self._ends = path, descriptor, ends
        self._count = 0
        self._lock = threading.Lock()
        self._is_held = True

    def beat(self, now: float) -> None:
        """Shows that the owner lives, up to the longest time that one piece of work may take."""
        with self._lock:
            if self._is_held and now < self._ends:
                self._count += 1
                with suppress(OSError):
                    os.pwrite(self._descriptor, _counter(self._count), 0)

    def release(self) -> None:
        """Gives the claim up."""
        with self._lock:
            if not self._is_held:
                return
            self._is_held = False
        with suppress(OSError), mutex(self.path.parent / MUTEX_NAME):
            if self.path.stat().st_ino == os.fstat(self._descriptor).st_ino:
                self.path.unlink()
        os.close(self._descriptor)


class LeaseDesk:
    """Takes leases, keeps them alive, and watches those of others.

    Args:
        lease_s: How long a silent owner keeps a claim.
        hold_limit_s: A claim is not kept alive for longer: its owner lives, but does not get on.
        clock: Monotonic seconds.
        machine: Names the kernel; file locks are believed only between processes that share it.
    """

    def __init__(
        self,
        lease_s: float = 30.0,
        *,
        hold_limit_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        machine: str | None = None,
    ) -> None:
        self._lease_s, self._hold_limit_s, self._clock = lease_s, hold_limit_s, clock
        self._machine = machine
        self._seen: dict[Path, tuple[tuple[int, bytes], float]] = {}
        self._held: set[Lease] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def machine(self) -> str:
        """Name of the kernel that this process runs under."""
        return self._machine or this_machine()

    def try_acquire(self, path: Path) -> Lease | None:
        """The lease on ``path``, or None while another holds it.

        Raises:
            OSError: The file cannot be written.
        """
        if path.exists() and not self._is_over(path):
            return None
        with mutex(path.parent / MUTEX_NAME) as is_alone:
            if not is_alone or not self._is_over(path):
                return None
            descriptor = self._place(path)
        lease = Lease(path, descriptor, self._clock() + self._hold_limit_s)
        with self._lock:
            self._held.add(lease)
            self._seen.pop(path, None)
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_alive, name="leases", daemon=True)
                self._thread.start()
        return lease

    def release(self, lease: Lease) -> None:
        """Gives a lease back."""
        with self._lock:
            self._held.discard(lease)
        lease.release()

    def _place(self, path: Path) -> int:
        """Puts a file with this process's lock in place of what is there; returns its descriptor."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            about = json.dumps({"machine": self.machine, "pid": os.getpid()})
            os.write(descriptor, _counter(0) + about.encode())
            try_lock(descriptor, fcntl.LOCK_EX, if_unsupported=True)
            temporary.replace(path)
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        return descriptor

    def _is_over(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            content = os.pread(descriptor, 4096, 0)
            if self._is_here(content) and try_lock(descriptor, fcntl.LOCK_EX, if_unsupported=False):
                return True
            signature = (os.fstat(descriptor).st_ino, content)
        finally:
            os.close(descriptor)
        now = self._clock()
        with self._lock:
            known, since = self._seen.get(path, (None, now))
            if known != signature or since > now:
                since = now
            self._seen[path] = (signature, since)
        return now - since >= self._lease_s

    def _is_here(self, content: bytes) -> bool:
        try:
            return bool(json.loads(content[_COUNTER_DIGITS:])["machine"] == self.machine)
        except (ValueError, TypeError, KeyError):
            return False

    def _keep_alive(self) -> None:
        while True:
            time.sleep(self._lease_s / _BEATS_PER_LEASE)
            with self._lock:
                held = list(self._held)
                if not held:
                    self._thread = None
                    return
            for lease in held:
                lease.beat(self._clock())


def _counter(count: int) -> bytes:
    return f"{count:0{_COUNTER_DIGITS}d}".encode()
