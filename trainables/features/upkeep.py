"""Telling whole entries from damaged ones, and taking the damaged away.

In: an entry's folder. Out: its features, or None after what was damaged is gone. Removing a file never harms who reads
it already: maps outlive names.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainables.features.inventory import list_entries
from trainables.features.key import FeatureKey
from trainables.features.layout import (
    IN_USE_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    Check,
    DamagedError,
    Manifest,
    Plan,
    ShardFile,
    plan_from_json,
    plan_to_json,
)
from trainables.features.reading import Features
from trainables.features.shards import verify_file
from trainables.files.locks import Use, mark_use
from trainables.files.storage import write_bytes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        num_entries: Complete ones that were read.
        num_bytes: Of those.
        damaged: One line for each fault; what had it is gone, and will be computed anew.
    """

    num_entries: int
    num_bytes: int
    damaged: tuple[str, ...]


def open_entry(root: Path, key: FeatureKey, check: Check) -> Features | None:
    """The features of ``key`` if they are all there and whole."""
    folder = root / key.digest()
    use = mark_use(folder / IN_USE_NAME)
    if use is None:
        return None
    features = None
    try:
        features = _open_marked(folder, key, check, use)
    except OSError as error:
        _log.warning("feature cache: entry %s cannot be read (%s)", folder.name[:12], error)
    finally:
        if features is None:
            use.release()
    return features


def _open_marked(folder: Path, key: FeatureKey, check: Check, use: Use) -> Features | None:
    try:
        manifest = read_manifest(folder)
        if manifest.plan.key != key:
            raise DamagedError("holds another key")
    except FileNotFoundError:
        return None
    except DamagedError as error:
        discard(folder, None, error)
        return None
    try:
        on_damage = partial(discard, folder)
        return Features(folder, manifest, check=check, release_use=use.release, on_damage=on_damage)
    except DamagedError:  # discarded by then
        return None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an entry.

    Raises:
        FileNotFoundError: The entry is not complete.
        DamagedError: Altered, or of another version.
    """
    return Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8", errors="replace"))


def discard(folder: Path, shards: Sequence[ShardFile] | None, error: DamagedError) -> None:
    """Takes away what is damaged: some shards, or with None all of them; never read, computed anew."""
    _log.warning("feature cache: entry %s is damaged (%s); it is computed anew", folder.name[:12], error)
    if shards is None:
        names = [MANIFEST_NAME, PLAN_NAME, *(path.name for path in folder.glob("*.arrow"))]
    else:
        names = [MANIFEST_NAME, *(shard.name for shard in shards)]
    for name in names:
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def write_plan(folder: Path, plan: Plan) -> None:
    """Notes what an entry will hold; shards of another plan are taken away."""
    path = folder / PLAN_NAME
    if (folder / MANIFEST_NAME).exists():
        return
    try:
        if plan_from_json(path.read_text(encoding="utf-8", errors="replace")) == plan:
            return
        discard(folder, None, DamagedError("begun with another plan"))
    except FileNotFoundError:
        pass
    except DamagedError as error:
        discard(folder, None, error)
    write_bytes(str(path), plan_to_json(plan).encode())


def verify_entries(root: Path) -> VerifyReport:
    """Reads every complete entry and compares checksums; what is damaged is taken away."""
    num_entries = num_bytes = 0
    damaged: list[str] = []
    for entry in list_entries(root):
        if not entry.is_complete:
            continue
        # A verification is no use: it does not make an entry worth keeping.
        use = mark_use(root / entry.digest / IN_USE_NAME, is_used_now=False)
        if use is None:
            continue
        num_entries += 1
        num_bytes += entry.num_bytes
        try:
            damaged += [f"{entry.digest[:12]}: {error}" for error in _verify_entry(root / entry.digest)]
        finally:
            use.release()
    return VerifyReport(num_entries, num_bytes, tuple(damaged))


def _verify_entry(folder: Path) -> list[DamagedError]:
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return []
    except DamagedError as error:
        discard(folder, None, error)
        return [error]
    errors = []
    for shard in manifest.shards:
        try:
            verify_file(folder / shard.name, shard)
        except DamagedError as error:
            discard(folder, [shard], error)
            errors.append(error)
    return errors
