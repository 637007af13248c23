"""Image tables on a cluster: published to shared storage by the driver, copied once to each node that reads them.

Pixels are read from a local disk, never read over the network one by one. No torch.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from trainables.config import DataConfig
from trainables.data.table import ImageTable
from trainables.data.table_file import MANIFEST_NAME, Manifest, fingerprint_of
from trainables.errors import InputError
from trainables.files.node_cache import fetch_once
from trainables.files.storage import fetch_file, is_local, join, publish_files


def publish_table(folder: Path, uri: str) -> bool:
    """Copies a packed table to shared storage, its manifest last; returns False where it is there already."""
    manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    return publish_files(folder, [manifest.file, MANIFEST_NAME], uri)


def open_table(config: DataConfig) -> ImageTable:
    """The table that a trial reads: where it lies, or this node's verified copy of it.

    Raises:
        InputError: It is not there, or is not the table that the configuration names.
    """
    if is_local(config.table):
        return ImageTable.open(config.table)
    # The same pixels may lie in two tables under other names, by which groups are dealt.
    place = hashlib.sha256(config.table.rpartition("/")[2].encode()).hexdigest()[:16]
    folder = fetch_once(
        f"tables/{config.fingerprint}-{place}",
        partial(_fetch_table, config),
        is_usable=partial(_is_usable, fingerprint=config.fingerprint),
    )
    return ImageTable.open(folder)


def _fetch_table(config: DataConfig, folder: Path) -> None:
    folder.mkdir()
    try:
        fetch_file(join(config.table, MANIFEST_NAME), folder / MANIFEST_NAME)
        manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        fetch_file(join(config.table, manifest.file), folder / manifest.file)
        found = fingerprint_of(folder / manifest.file, manifest)
    except FileNotFoundError as error:
        raise InputError(f"image table {config.table}: not there; sweep again to publish it anew") from error
    except ValueError as error:
        raise InputError(f"image table {config.table}: damaged ({error}); remove it and sweep again") from error
    if found != config.fingerprint:
        raise InputError(
            f"image table {config.table}: holds {found[:12]} instead of {config.fingerprint[:12]}; "
            "remove it and sweep again"
        )


def _is_usable(folder: Path, fingerprint: str) -> bool:
    try:
        return ImageTable.open(folder).fingerprint == fingerprint
    except InputError:
        return False
