"""Stored features by position: rows of any order gathered from mapped shards.

In: a complete entry. Out: tensors with the bits that the frozen part gave. While a ``Features`` is open its entry is
marked as in use, in every process's eyes; its maps stay valid even when the files are removed by force.

B rows that are asked for, D values of a row.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from trainables.features.layout import Check, DamagedError, Manifest, Plan, ShardFile
from trainables.features.mapping import RowMap, row_shaper
from trainables.features.shards import from_words, words_of

if TYPE_CHECKING:
    import torch

_MOST_HASHERS = 4


class Features:
    """The features of one side, one view and one cut; close it when the trial ends.

    Args:
        folder: The entry.
        manifest: Of the entry.
        check: When checksums are verified.
        release_use: Called once by `close`.
        on_damage: Called with the shards that are damaged, before `DamagedError` is raised.

    Raises:
        DamagedError: A shard is not what it should be.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        check: Check = "open",
        release_use: Callable[[], None] = lambda: None,
        on_damage: Callable[[list[ShardFile], DamagedError], None] = lambda *_: None,
    ) -> None:
        self.plan: Plan = manifest.plan
        self._folder, self._manifest = folder, manifest
        self._release_use, self._on_damage = release_use, on_damage
        self._is_closed = False
        self._lock = threading.Lock()
        self._map = RowMap(manifest.plan)
        # Asked for with every batch.
        self._words_ND = self._map.words_ND[:, : math.prod(self.plan.shape)]
        self._as_rows = row_shaper(self.plan)
        self._unplaced = set(range(len(manifest.shards)))
        if check == "open":
            self._place_all()
        else:
            missing = [shard for shard in manifest.shards if not (folder / shard.name).exists()]
            if missing:
                self._refuse(missing, DamagedError(f"{missing[0].name}: gone"))

    def __enter__(self) -> Features:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of rows."""
        return self.plan.num_rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return self.plan.shape

    @property
    def num_bytes(self) -> int:
        """Of all rows."""
        return self.plan.num_bytes

    def rows(self, positions: NDArray[np.int64] | torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The features [B, *shape] at some positions, copied from the maps in one pass.

        Args:
            positions: [B], each from 0 to the number of rows; in any order, repeated or not.
            out: Flat memory to write to instead of fresh memory: [at least B * D], of the stored dtype (pinned, say).

        Raises:
            IndexError: A position outside the rows.
            DamagedError: A shard that is read for the first time turns out to be damaged (``check="touch"``).
        """
        wanted = np.asarray(positions, dtype=np.int64)
        # As unsigned numbers negative ones are large: one pass finds both kinds of mistake.
        if wanted.size and wanted.view(np.uint64).max() >= self.plan.num_rows:
            raise IndexError(f"positions {wanted.min()} to {wanted.max()} of {len(self)} rows")
        if self._unplaced:
            for number in np.unique(wanted // self.plan.rows_per_shard).tolist():
                self._place(number)
        if out is None:
            return self._as_rows(from_words(self._words_ND[wanted]))
        values_BD = self._part_of(out, len(wanted))
        words_BD = words_of(values_BD)
        if self._words_ND.flags.c_contiguous:
            # Positions were checked; otherwise NumPy would copy twice.
            np.take(self._words_ND, wanted, axis=0, out=words_BD, mode="clip")
        else:
            words_BD[:] = self._words_ND[wanted]
        return self._as_rows(values_BD)

    def _part_of(self, out: torch.Tensor, num_rows: int) -> torch.Tensor:
        import torch

        size = num_rows * self._words_ND.shape[1]
        dtype = torch.float32 if self.plan.key.dtype == "fp32" else torch.bfloat16
        if out.dtype != dtype or out.numel() < size or not out.is_contiguous():
            raise ValueError(f"out: {out.dtype} of {out.numel()} values: give contiguous {dtype} of at least {size}")
        return out.view(-1)[:size].view(num_rows, -1)

    @property
    def tensor(self) -> torch.Tensor:
        """All rows [N, *shape] without a copy; rows of an odd size have gaps between them.

        Raises:
            DamagedError: See `rows`.
        """
        for number in sorted(self._unplaced):
            self._place(number)
        return self._map.tensor()

    def release(self) -> None:
        """Gives the pages that were read back to the kernel, which would take them itself when short of memory."""
        self._map.release()

    def close(self) -> None:
        """Ends the use: the entry may be evicted. Tensors that were handed out stay valid."""
        if not self._is_closed:
            self._is_closed = True
            self._release_use()

    def _place(self, number: int) -> None:
        with self._lock:
            if number not in self._unplaced:
                return
            shard = self._manifest.shards[number]
            try:
                self._map.place(self._folder / shard.name, shard)
            except DamagedError as error:
                self._refuse([shard], error)
            self._unplaced.discard(number)

    def _place_all(self) -> None:
        def attempt(shard: ShardFile) -> DamagedError | None:
            try:
                self._map.place(self._folder / shard.name, shard)
            except DamagedError as error:
                return error
            return None

        # Hashing lets go of the interpreter's lock.
        with ThreadPoolExecutor(min(_MOST_HASHERS, os.cpu_count() or 1), "checksums") as executor:
            results = list(executor.map(attempt, self._manifest.shards))
        bad = [shard for shard, error in zip(self._manifest.shards, results, strict=True) if error]
        if bad:
            self._refuse(bad, next(error for error in results if error))
        self._unplaced.clear()

    def _refuse(self, shards: list[ShardFile], error: DamagedError) -> NoReturn:
        self._on_damage(shards, error)
        self.close()
        raise error
