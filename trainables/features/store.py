"""Features that were computed once: opened as memory maps, filled by many, kept within a budget.

In: a ``FeatureKey``. Out: ``Features`` to read, or a ``Writer`` to fill. What is not exactly what was stored is never
read: the caller hears None, and computes. A disk that takes no more turns storing off, never training.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path

from trainables.features.filling import Edge, Writer
from trainables.features.inventory import (
    Entry,
    Holding,
    PruneReport,
    bytes_in_use,
    empty_trash,
    evict,
    list_entries,
    remove_entry,
    summarise,
)
from trainables.features.key import FeatureKey
from trainables.features.layout import (
    IN_USE_NAME,
    MANIFEST_NAME,
    MUTEX_NAME,
    Check,
    DamagedError,
    Manifest,
    Plan,
)
from trainables.features.lease import LeaseDesk
from trainables.features.reading import Features
from trainables.features.shared import SharedError, SharedStore
from trainables.features.switch import Switch
from trainables.features.upkeep import VerifyReport, open_entry, verify_entries, write_plan
from trainables.files.locks import Use, mark_use, mutex

_log = logging.getLogger(__name__)


class FeatureStore:
    """A folder of stored features, for any number of processes.

    Args:
        directory: Where; made when something is stored.
        budget_bytes: What all entries together may take. The least recently used go first.
        shared_uri: A shared store behind this one.
        spare_bytes: Free space that is left to others on the disk.
        desk: Where work is claimed.
        shared_timeout_s: How long the shared store may take to answer.

    Raises:
        InputError: ``shared_uri`` is none.
    """

    def __init__(
        self,
        directory: Path | str,
        budget_bytes: int,
        shared_uri: str | None = None,
        *,
        spare_bytes: int = 1 << 30,
        desk: LeaseDesk | None = None,
        shared_timeout_s: float = 10.0,
    ) -> None:
        self.directory, self.budget_bytes = Path(directory), budget_bytes
        self._spare_bytes, self._desk = spare_bytes, desk or LeaseDesk()
        self._shared = SharedStore(shared_uri, shared_timeout_s) if shared_uri else None
        self._seen: set[str] = set()
        self.waiting: Callable[[], AbstractContextManager[object]] = nullcontext
        """Around what waits for another process or for a far store and is no hang, for whoever watches this one."""
        self.storing = Switch(f"feature cache {directory}: nothing more is stored", "features are computed when needed")
        self._space = Switch(f"feature cache {directory}: not everything is stored", "the rest is computed when needed")

    def has(self, key: FeatureKey) -> bool:
        """Whether there is a complete entry here; whether it is whole, `open` finds out."""
        return (self.directory / key.digest() / MANIFEST_NAME).exists()

    def open(self, key: FeatureKey, *, check: Check = "open") -> Features | None:
        """The features of ``key``, or None when they have to be computed.

        Args:
            key: Which ones.
            check: ``open`` verifies all checksums now, ``touch`` each shard's when it is first read (then reading may
                raise `DamagedError`); either way once per process.
        """
        found = open_entry(self.directory, key, check)
        if self._shared is None or not self._shared.switch.is_on:
            return found
        if found is not None:
            self._share(key.digest())
        elif self._fetch(key, self._shared):
            self._seen.add(key.digest())
            found = open_entry(self.directory, key, check)
        return found

    def fill(
        self, key: FeatureKey, num_rows: int, shape: tuple[int, ...], *, rank: int = 0, world_size: int = 1
    ) -> Writer:
        """A writer for ``key``, to be used as a context manager; it is off when nothing can be stored.

        Args:
            key: Which features; its dtype is what is stored.
            num_rows: Number of pictures of the side.
            shape: Of one picture's features.
            rank: This worker among those that fill together; any number of others may help unasked.
            world_size: Number of those.
        """
        return self._writer(Plan.of(key, num_rows, shape), self._publish, rank, world_size)

    def entries(self) -> list[Entry]:
        """All that is held, one by one."""
        return list_entries(self.directory)

    def status(self) -> list[Holding]:
        """What is held per backbone, cut and policy."""
        return summarise(self.entries())

    def verify(self) -> VerifyReport:
        """Reads every complete entry and compares checksums; what is damaged is taken away."""
        return verify_entries(self.directory)

    def prune(self, budget_bytes: int | None = None) -> PruneReport:
        """Removes the least recently used entries until the budget is kept; none that is in use."""
        if not self.directory.is_dir():
            return PruneReport(0, 0, 0, 0)
        with mutex(self.directory / MUTEX_NAME):
            empty_trash(self.directory)
            return evict(self.directory, self.entries(), self.budget_bytes if budget_bytes is None else budget_bytes)

    def clear(self) -> PruneReport:
        """Removes every entry that is not in use."""
        return self.prune(-1)

    def close(self, timeout_s: float = 60.0) -> bool:
        """Waits until the shared store has its copies; returns whether it has."""
        return self._shared.flush(timeout_s) if self._shared else True

    def _writer(
        self, plan: Plan, on_complete: Callable[[Path, Manifest], None], rank: int = 0, world_size: int = 1
    ) -> Writer:
        share = partial(Writer, plan=plan, desk=self._desk, rank=rank, world_size=world_size)
        if not self.storing.is_on:
            return share(None)
        try:
            use = self._begin(plan)
        except OSError as error:
            self.storing.turn_off(error)
            return share(None)
        if use is None:
            return share(None)
        digest = plan.key.digest()
        return share(self.directory / digest, edge=Edge(partial(self._fail, digest), on_complete, use.release))

    def _begin(self, plan: Plan) -> Use | None:
        """Makes room and the entry's folder; the mark of its use, or None where it does not fit."""
        self.directory.mkdir(parents=True, exist_ok=True)
        digest = plan.key.digest()
        folder = self.directory / digest
        with mutex(self.directory / MUTEX_NAME) as is_alone:
            if not is_alone:
                return None
            if not (folder / MANIFEST_NAME).exists() and not self._make_room(plan, digest):
                return None
            folder.mkdir(exist_ok=True)
            use = mark_use(folder / IN_USE_NAME, is_created=True)
            if use is not None:
                try:
                    write_plan(folder, plan)
                except OSError:
                    use.release()
                    raise
        return use

    def _make_room(self, plan: Plan, digest: str) -> bool:
        entries = self.entries()
        others = [entry for entry in entries if entry.digest != digest]
        room = self.budget_bytes - plan.reserved_bytes
        if room < 0:
            return False
        if sum(entry.reserved_bytes for entry in others) > room:
            # What would not fit even then drives nothing out.
            if bytes_in_use(self.directory, others) > room:
                return False
            evict(self.directory, others, room)
            others = [entry for entry in self.entries() if entry.digest != digest]
            if sum(entry.reserved_bytes for entry in others) > room:
                return False
        held = sum(entry.num_bytes for entry in entries if entry.digest == digest)
        is_room = shutil.disk_usage(self.directory).free + held >= plan.reserved_bytes + self._spare_bytes
        if not is_room:
            self._space.turn_off(OSError(f"less than {self._spare_bytes / 1e9:.1f} GB would stay free"))
        return is_room

    def _fail(self, digest: str, error: OSError) -> None:
        self.storing.turn_off(error)
        # Half an entry on a full disk is of use to nobody.
        with suppress(OSError):
            if not (self.directory / digest / MANIFEST_NAME).exists():
                remove_entry(self.directory, digest)

    def _share(self, digest: str) -> None:
        """Has an entry that is whole here copied, once per process: whoever filled it may have ended before it was."""
        folder = self.directory / digest
        if digest in self._seen:
            return
        with suppress(OSError, DamagedError):
            self._publish(folder, Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8")))

    def _publish(self, folder: Path, manifest: Manifest) -> None:
        self._seen.add(folder.name)
        if self._shared and self._shared.switch.is_on:
            use = mark_use(folder / IN_USE_NAME)
            if use is not None:
                self._shared.publish(folder, manifest, use.release)

    def _fetch(self, key: FeatureKey, shared: SharedStore) -> bool:
        """Copies an entry from the shared store; several processes share the work. Returns whether to look again."""
        text = shared.manifest(key.digest())
        if text is None:
            return False
        try:
            manifest = Manifest.from_json(text)
            if manifest.plan.key != key:
                raise DamagedError("holds another key")
            with self.waiting(), self._writer(manifest.plan, lambda *_: None) as writer:
                for part in writer.parts():
                    shard = manifest.shards[part.number]
                    writer.adopt(part, shard, shared.chunks(key.digest(), shard))
        except DamagedError as error:
            _log.warning("feature cache: shared entry %s is damaged (%s)", key.digest()[:12], error)
            shared.forget(key.digest())
            return False
        except SharedError as error:
            shared.switch.turn_off(error)
            return False
        return self.has(key)
