"""Putting features into the store, shard by shard, by any number of workers at once.

In: a plan, and the features of one shard's rows at a time. Out: shard files and, from whoever sees that all are
there, the manifest. Each shard is claimed before it is computed, so that one worker computes it; when that worker dies
another takes its place. Nothing here raises when the disk does not take a shard: storing ends and the caller goes on.

R rows of a shard.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainables.config import Precision
from trainables.features.layout import MANIFEST_NAME, Manifest, Plan, ShardFile, find_numbers, find_shards, lease_name
from trainables.features.lease import Lease, LeaseDesk
from trainables.features.shards import copy_shard, to_words, write_shard
from trainables.files.storage import write_bytes

if TYPE_CHECKING:
    import torch

_POLL_S = (0.02, 0.5)
_DTYPE_NAMES: dict[Precision, str] = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}


class Part(NamedTuple):
    """The rows of one shard: positions ``first`` to ``stop``, the latter not included."""

    number: int
    first: int
    stop: int

    @property
    def positions(self) -> NDArray[np.int64]:
        """[R], in order."""
        return np.arange(self.first, self.stop)


@dataclass(frozen=True)
class Edge:
    """What a writer tells the store.

    Attributes:
        on_failure: The disk does not take it.
        on_complete: The manifest was written by this writer.
        on_close: The entry is no longer in use by this writer.
    """

    on_failure: Callable[[OSError], None] = lambda _: None
    on_complete: Callable[[Path, Manifest], None] = lambda *_: None
    on_close: Callable[[], None] = lambda: None


class Writer:
    """Fills one entry. Without a folder it is off: it has no parts and takes nothing.

    Args:
        folder: The entry, or None.
        plan: What it will hold.
        desk: Where shards are claimed.
        edge: See `Edge`.
        rank: This worker among those that fill together; it begins with its own share.
        world_size: Number of those.
    """

    def __init__(
        self,
        folder: Path | None,
        plan: Plan,
        desk: LeaseDesk,
        edge: Edge | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.plan = plan
        self._folder, self._desk, self._edge = folder, desk, edge or Edge()
        self._order = sorted(range(plan.num_shards), key=lambda number: (number - rank) % world_size)
        self._leases: dict[int, Lease] = {}
        self._done: set[int] = set()
        self._thread: ThreadPoolExecutor | None = None
        self._behind: tuple[int, Future[bool]] | None = None
        self._ending = threading.Lock()
        self.rows_written = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def is_on(self) -> bool:
        """Whether this writer still takes features."""
        return self._folder is not None

    def parts(self, *, is_waiting: bool = True) -> Iterator[Part]:
        """The parts that this worker has to compute and `put`, until the entry is complete.

        Args:
            is_waiting: Whether to wait for parts that others are computing, and take over from those that die.
        """
        return (part for part, _ in parts_together([self], is_waiting=is_waiting))

    def put(self, part: Part, rows: torch.Tensor) -> bool:
        """Stores the features [R, *shape] of a part; returns whether the store took them.

        Raises:
            ValueError: Another number of rows, shape or dtype than planned.
        """
        words = self._words(part, rows)
        return self._store(part, lambda folder: write_shard(folder, self.plan, part.number, words))

    def put_behind(self, part: Part, rows: torch.Tensor) -> None:
        """``put`` beside the caller's next computation; waits for the part before, so two are in memory at most.

        Args:
            part: Claimed by this writer.
            rows: Not to be changed any more.

        Raises:
            ValueError: See `put`.
        """
        words = self._words(part, rows)
        self._settle()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="features")
        write = partial(write_shard, plan=self.plan, number=part.number, words_RD=words)
        self._behind = (part.number, self._thread.submit(self._store, part, write))

    def is_writing(self, number: int) -> bool:
        """Whether a shard is under way to the disk."""
        return self._behind is not None and self._behind[0] == number and not self._behind[1].done()

    def _settle(self) -> None:
        if self._behind is not None:
            behind, self._behind = self._behind, None
            behind[1].result()

    def _words(self, part: Part, rows: torch.Tensor) -> NDArray[Any]:
        # Always in the caller's thread: torch would start threads of its own in another.
        wanted = (part.stop - part.first, *self.plan.shape)
        if tuple(rows.shape) != wanted or str(rows.dtype) != _DTYPE_NAMES[self.plan.key.dtype]:
            raise ValueError(
                f"features of part {part.number}: {rows.dtype} {tuple(rows.shape)}: the store was promised "
                f"{_DTYPE_NAMES[self.plan.key.dtype]} {wanted}"
            )
        return to_words(rows, self.plan)

    def adopt(self, part: Part, shard: ShardFile, chunks: Iterable[bytes]) -> bool:
        """Stores a shard that comes as a file; returns whether the store took it.

        Raises:
            DamagedError: Its bytes do not hash to what its name says.
        """
        return self._store(part, lambda folder: copy_shard(folder, shard, chunks))

    def _store(self, part: Part, write: Callable[[Path], object]) -> bool:
        folder = self._folder
        if folder is None:
            return False
        try:
            write(folder)
        except OSError as error:
            self._give_up(error)
            return False
        self._done.add(part.number)
        self.rows_written += part.stop - part.first
        self.let_go(part.number)
        return True

    def try_claim(self, number: int) -> bool:
        """Whether this worker is to compute a shard: it is missing, and nobody else does."""
        folder = self._folder
        if folder is None or number in self._done or number in self._leases:
            return False
        try:
            lease = self._desk.try_acquire(folder / lease_name(number))
        except OSError as error:
            self._give_up(error)
            return False
        if lease is None:
            return False
        self._leases[number] = lease
        if number in self.missing():
            return True
        self.let_go(number)
        return False

    def let_go(self, number: int) -> None:
        """Gives up the claim on a shard, if there is one."""
        lease = self._leases.pop(number, None)
        if lease is not None:
            self._desk.release(lease)

    def missing(self) -> list[int]:
        """Shards that are not there yet, this worker's own share first."""
        folder = self._folder
        if folder is None:
            return []
        if len(self._done) < self.plan.num_shards:
            with suppress(FileNotFoundError):  # somebody removed the entry; the next write finds out
                self._done |= find_numbers(folder)
        return [number for number in self._order if number not in self._done]

    def lacks(self, number: int) -> bool:
        """Whether a shard was not there when this writer last looked."""
        return self._folder is not None and number not in self._done

    def close(self) -> None:
        """Writes the manifest if all shards are there, and ends the use of the entry."""
        try:
            self._settle()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None
            self._end()

    def _end(self) -> None:
        for number in list(self._leases):
            self.let_go(number)
        if self._folder is None:
            return
        try:
            self._complete(self._folder)
        except OSError as error:
            self._give_up(error)
        else:
            self._folder = None
            self._edge.on_close()

    def _complete(self, folder: Path) -> None:
        shards = find_shards(folder)
        if (folder / MANIFEST_NAME).exists() or set(shards) != set(range(self.plan.num_shards)):
            return
        manifest = Manifest(self.plan, tuple(shards[number] for number in sorted(shards)))
        # Before the manifest: nobody looks for leftovers in a complete entry.
        for left in [*folder.glob(".*.tmp"), *folder.glob("*.lease")]:
            with suppress(OSError):
                left.unlink()
        write_bytes(str(folder / MANIFEST_NAME), manifest.to_json().encode())
        self._edge.on_complete(folder, manifest)

    def _give_up(self, error: OSError) -> None:
        with self._ending:  # what is written behind may fail at the same time
            was_on, self._folder = self._folder is not None, None
        if not was_on:
            return
        for number in list(self._leases):
            self.let_go(number)
        self._edge.on_close()
        # That somebody removed or completed the entry meanwhile says nothing about the disk.
        if not isinstance(error, FileNotFoundError):
            self._edge.on_failure(error)


def _claim_together(writers: Sequence[Writer], number: int) -> list[Writer]:
    """Claims a part for as many writers as possible, unless another process has it for the first that lacks it.

    That one is about to claim it for the others too, and two would compute the same.
    """
    claimed: list[Writer] = []
    for writer in writers:
        if writer.try_claim(number):
            claimed.append(writer)
        elif not claimed and writer.lacks(number):
            break
    return claimed


def parts_together(
    writers: Sequence[Writer],
    *,
    is_waiting: bool = True,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[tuple[Part, list[Writer]]]:
    """Parts that one pass over the pictures fills in several entries, say one per cut.

    Args:
        writers: Of the same rows, the same canonical batch.
        is_waiting: See `Writer.parts`.
        waiting: Around each wait for another process's part.

    Returns:
        Each part with the writers that want it. What is not put before the next part is asked for is left to others.

    Raises:
        ValueError: The writers' shards do not cover the same rows.
    """
    if len({(writer.plan.num_rows, writer.plan.rows_per_shard, writer.plan.key.rows) for writer in writers}) > 1:
        raise ValueError("writers that fill together must have the same rows and the same canonical batch")
    declined: set[tuple[int, int]] = set()
    pause_s = _POLL_S[0]
    while True:
        is_idle, num_waiting = True, 0
        for number in dict.fromkeys(number for writer in writers for number in writer.missing()):
            wanting = [writer for writer in writers if (id(writer), number) not in declined]
            claimed = _claim_together(wanting, number)
            num_waiting += any(writer.lacks(number) for writer in wanting if writer not in claimed)
            if not claimed:
                continue
            is_idle, pause_s = False, _POLL_S[0]
            try:
                yield Part(number, *writers[0].plan.bounds(number)), claimed
            finally:
                for writer in claimed:
                    if not writer.is_writing(number):
                        writer.let_go(number)
            declined |= {(id(w), number) for w in claimed if w.lacks(number) and not w.is_writing(number)}
        if not num_waiting or not is_waiting:
            return
        if is_idle:
            with waiting():
                time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S[1])
