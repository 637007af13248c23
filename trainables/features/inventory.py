"""What a store holds, and what must go when there is too much: entries, least recently used first.

In: the store's folder and a budget. Out: what is held, and what was removed. An entry that any process reads or fills
is never removed.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainables.features.layout import (
    IN_USE_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    DamagedError,
    Manifest,
    Plan,
    is_digest,
    plan_from_json,
)
from trainables.files.locks import unused

TRASH_NAME = "trash"


@dataclass(frozen=True)
class Entry:
    """One key's features as they are on disk.

    Attributes:
        digest: Name of the folder.
        plan: None where it was written by another version, or altered.
        is_complete: Whether there is a manifest.
        num_bytes: On disk now.
        reserved_bytes: The same, or for an incomplete entry what it is going to take, if that is more.
        last_used: Seconds since 1970, by the file system's clock.
    """

    digest: str
    plan: Plan | None
    is_complete: bool
    num_bytes: int
    reserved_bytes: int
    last_used: float


@dataclass(frozen=True)
class Holding:
    """What is held for one backbone, cut and policy.

    Attributes:
        backbone: Its name, or ``(unreadable)``.
        cut: Name of the last frozen stage.
        depth: Number of frozen stages.
        policy: As in ``AugmentationConfig``.
        num_entries: Sides and views together.
        num_complete: Those that can be read.
        num_rows: Over all entries.
        num_bytes: Over all entries.
        last_used: Of the most recent, seconds since 1970.
    """

    backbone: str
    cut: str
    depth: int
    policy: str
    num_entries: int
    num_complete: int
    num_rows: int
    num_bytes: int
    last_used: float


@dataclass(frozen=True)
class PruneReport:
    """What was removed and what stayed.

    Attributes:
        num_removed: Entries.
        freed_bytes: Of those.
        kept_bytes: Of the others.
        num_in_use: Entries that should have gone, but somebody reads or fills them.
    """

    num_removed: int
    freed_bytes: int
    kept_bytes: int
    num_in_use: int


def list_entries(root: Path) -> list[Entry]:
    """All entries, complete or not, of this version or another."""
    folders = [path for path in root.iterdir() if is_digest(path.name)] if root.is_dir() else []
    entries = (_inspect(folder) for folder in sorted(folders))
    return [entry for entry in entries if entry is not None]


def _inspect(folder: Path) -> Entry | None:
    held, last_used = 0, 0.0
    try:
        last_used = folder.stat().st_mtime
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # removed or finished meanwhile
                state = path.stat()
                held += state.st_size
                last_used = state.st_mtime if path.name == IN_USE_NAME else last_used
    except FileNotFoundError:
        return None
    plan, is_complete = _read_plan(folder)
    reserved = held if is_complete or plan is None else max(held, plan.reserved_bytes)
    return Entry(folder.name, plan, is_complete, held, reserved, last_used)


def _read_plan(folder: Path) -> tuple[Plan | None, bool]:
    try:
        return Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8")).plan, True
    except FileNotFoundError:
        pass
    except (DamagedError, UnicodeDecodeError):
        return None, False
    try:
        return plan_from_json((folder / PLAN_NAME).read_text(encoding="utf-8")), False
    except (FileNotFoundError, DamagedError, UnicodeDecodeError):
        return None, False


def summarise(entries: Iterable[Entry]) -> list[Holding]:
    """What is held per backbone, cut and policy, most bytes first."""
    groups: dict[tuple[str, tuple[str, ...], str], list[Entry]] = {}
    for entry in entries:
        key = entry.plan.key if entry.plan else None
        name = (key.frozen.backbone, key.frozen.cut, key.view.policy) if key else ("(unreadable)", (), "")
        groups.setdefault(name, []).append(entry)
    holdings = [
        Holding(
            backbone=backbone,
            cut=cut[-1] if cut else "",
            depth=len(cut),
            policy=policy,
            num_entries=len(group),
            num_complete=sum(entry.is_complete for entry in group),
            num_rows=sum(entry.plan.num_rows for entry in group if entry.plan),
            num_bytes=sum(entry.num_bytes for entry in group),
            last_used=max(entry.last_used for entry in group),
        )
        for (backbone, cut, policy), group in groups.items()
    ]
    return sorted(holdings, key=lambda holding: (-holding.num_bytes, holding.backbone, holding.depth, holding.policy))


def removal_order(entries: Sequence[Entry]) -> list[Entry]:
    """Which entry goes first: unreadable ones, then the least recently used."""
    return sorted(entries, key=lambda entry: (entry.plan is not None, entry.last_used, entry.digest))


def evict(root: Path, entries: Sequence[Entry], budget_bytes: int) -> PruneReport:
    """Removes entries until what is left fits the budget, or only entries in use are left."""
    held = sum(entry.reserved_bytes for entry in entries)
    num_removed = freed = num_in_use = 0
    for entry in removal_order(entries):
        if held <= budget_bytes:
            break
        if remove_entry(root, entry.digest):
            num_removed += 1
            freed += entry.num_bytes
            held -= entry.reserved_bytes
        else:
            num_in_use += 1
    return PruneReport(num_removed, freed, sum(entry.num_bytes for entry in entries) - freed, num_in_use)


def bytes_in_use(root: Path, entries: Iterable[Entry]) -> int:
    """What those take that somebody uses and that therefore stay."""
    num_bytes = 0
    for entry in entries:
        with unused(root / entry.digest / IN_USE_NAME) as is_unused:
            num_bytes += 0 if is_unused else entry.reserved_bytes
    return num_bytes


def remove_entry(root: Path, digest: str) -> bool:
    """Removes one entry unless somebody uses it; it vanishes in one step."""
    folder = root / digest
    with unused(folder / IN_USE_NAME) as is_unused:
        if not is_unused:
            return not folder.exists()
        trash = root / TRASH_NAME
        trash.mkdir(exist_ok=True)
        grave = trash / uuid.uuid4().hex
        folder.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)
    return True


def empty_trash(root: Path) -> None:
    """Removes what a process that died was about to remove."""
    shutil.rmtree(root / TRASH_NAME, ignore_errors=True)
