"""A training process's memory: how the C library hands it out and takes it back."""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed for the next tensor; False where there is no glibc.

    By default every large tensor is a mapping of its own, given back when freed, so that each step of training on a CPU
    takes tens of thousands of page faults: a third of a step of mobilenet_v2 at 128 px in float32. One arena for all
    threads that begin from now on, because those of other threads cannot hold large blocks.
    """
    libc = _glibc()
    if libc is None:
        return False
    options = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, _LARGEST_INT), (_M_ARENA_MAX, 1))
    taken = [libc.mallopt(option, value) for option, value in options]
    return all(taken)


def give_back_freed_memory() -> None:
    """Returns kept memory to the system, as after a job that needed more than the next one may."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
