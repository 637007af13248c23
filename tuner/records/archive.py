"""A sweep in one file: written here, read on another machine or years later.

In: a sweep's folder. Out: a zip file, and back. It holds only formats that outlive Thaw: Parquet (``trials``: one row
per trial; ``metrics``: one row per trial, epoch and name), JSON, YAML, PNG, and the champion as MLflow keeps models.
``manifest.json`` names every file with its SHA-256 and the version of this layout.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from search_spaces.loading import dump_spec, load_kept_spec
from search_spaces.ranges import check_name
from search_spaces.spec import SweepSpec
from trainables.errors import InputError
from trainables.files.half_written import half_written
from trainables.files.storage import read_bytes, write_bytes
from trainables.jobs import BEST_CHECKPOINT
from tuner.paths import HomePaths, SweepPaths
from tuner.records.journal import TrialRecord, champion_record, read_records, trials_of
from tuner.records.trial_rows import trial_rows

_log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_MANIFEST = "manifest.json"
_ABOUT = (
    "A sweep of Thaw. trials.parquet: one row per trial. metrics.parquet: one row per trial, epoch and metric. "
    "journal.jsonl: what happened, the source of both. spec.yaml: what was asked for. data.json: the pictures. "
    "champion/: the best model, an MLflow model (torch.export). report/: pictures and tables."
)


def export_sweep(home: HomePaths, name: str, file: Path) -> int:
    """Writes everything about a sweep into ``file``, whole or not at all; returns its size in bytes.

    Of the trials' checkpoints only the champion's is kept; what of the champion is not there is warned of.

    Raises:
        InputError: There is no such sweep, its journal is damaged, or ``file`` exists.
    """
    paths = home.known_sweep(name, "export-sweep")
    if file.exists():
        raise InputError(f"export-sweep: {file} exists; give another name, or remove it")
    records = read_records(paths.journal)
    trials = trials_of(records)
    spec = load_kept_spec(paths.spec)
    champion = (champion_record(records) or {}).get("number")
    file.parent.mkdir(parents=True, exist_ok=True)
    with half_written(file) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            digests: dict[str, str] = {}
            for inner, content in _contents(home, paths, trials, spec, champion):
                archive.writestr(inner, content)
                digests[inner] = hashlib.sha256(content).hexdigest()
            manifest = {
                "schema_version": SCHEMA_VERSION,
                "about": _ABOUT,
                "thaw": importlib.metadata.version("thaw"),
                "sweep": name,
                "champion": champion,
                "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "sha256": digests,
            }
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=1))
        temporary.replace(file)
    return file.stat().st_size


def import_sweep(home: HomePaths, file: Path, name: str | None = None) -> str:
    """Puts an exported sweep into a home; returns the name that it has there. One that is there already is left alone.

    Args:
        home: Where to.
        file: From `export_sweep`.
        name: Another name for it; None keeps its own.

    Raises:
        InputError: The file is none of these, damaged, of a newer layout; or the name is in use.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = _read_manifest(archive, file)
            target = name or manifest["sweep"]
            try:
                paths = home.sweep(check_name(target))
            except ValueError as error:
                raise InputError(f"import-sweep: {error}; give another by --name") from error
            if paths.root.exists():
                if _is_same(paths, manifest["sha256"]):
                    return target
                raise InputError(f"import-sweep: sweep {target!r} exists in {home.root}; give another by --name")
            folder = home.sweeps / f".import-{uuid.uuid4().hex}"
            try:
                _unpack(archive, manifest["sha256"], folder, file)
                spec = load_kept_spec(SweepPaths(folder).spec)
                # The MLflow that it was told to is the other machine's.
                tracking = spec.tracking.model_copy(update={"uri": None})
                moved = spec.model_copy(update={"name": target, "tracking": tracking})
                if moved != spec:
                    SweepPaths(folder).spec.write_text(dump_spec(moved))
                if home.is_shared:
                    for path in SweepPaths(folder).trials.rglob("*"):
                        if path.is_file():
                            write_bytes(home.uri_of(paths.root / path.relative_to(folder)), path.read_bytes())
                folder.rename(paths.root)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except zipfile.BadZipFile as error:
        raise InputError(f"import-sweep: {file} is damaged or no export of a sweep ({error})") from error
    return target


def _is_same(paths: SweepPaths, digests: dict[str, str]) -> bool:
    """Whether the sweep that is there has the journal of the file."""
    known = digests.get(paths.journal.name)
    return paths.journal.is_file() and hashlib.sha256(paths.journal.read_bytes()).hexdigest() == known


def _contents(
    home: HomePaths, paths: SweepPaths, trials: Sequence[TrialRecord], spec: SweepSpec, champion: int | None
) -> Iterator[tuple[str, bytes]]:
    yield "trials.parquet", _parquet(trial_rows(trials, spec.metric, spec.mode))
    yield (
        "metrics.parquet",
        _parquet(
            [
                {"number": trial.number, "epoch": int(epoch["epoch"]), "name": key, "value": value}
                for trial in trials
                for epoch in trial.epochs
                for key, value in epoch.items()
                if key != "epoch"
            ]
        ),
    )
    files = [paths.spec, paths.data, paths.environment, paths.pretrained, paths.journal]
    files += [path for folder in (paths.report, paths.champion) for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        if path.is_file():
            yield path.relative_to(paths.root).as_posix(), path.read_bytes()
    if champion is None:
        return
    if not paths.champion.is_dir():
        _log.warning("%s: the champion's model is not there, and not in the file", paths.champion)
    best = paths.trial(champion).root / BEST_CHECKPOINT
    try:
        yield best.relative_to(paths.root).as_posix(), read_bytes(home.uri_of(best))  # which a worker wrote
    except FileNotFoundError:
        _log.warning("%s: the champion's weights are not there, and not in the file", home.uri_of(best))


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    # A setting may be a number in one trial and a word in another; then all are text.
    table = pa.table({name: _column(values) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def _column(values: list[Any]) -> Any:
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def _read_manifest(archive: zipfile.ZipFile, file: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(archive.read(_MANIFEST))
        version = manifest["schema_version"]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"import-sweep: {file} is no export of a sweep: it has no {_MANIFEST}") from error
    if version > SCHEMA_VERSION:
        raise InputError(
            f"import-sweep: {file} has layout {version}, the newest this Thaw reads is {SCHEMA_VERSION}; install a "
            "newer Thaw, or read the Parquet and JSON files in it (it is a zip file)"
        )
    return manifest


def _unpack(archive: zipfile.ZipFile, digests: dict[str, str], folder: Path, file: Path) -> None:
    for inner, digest in digests.items():
        place = PurePosixPath(inner)
        if place.is_absolute() or ".." in place.parts:
            raise InputError(f"import-sweep: {file} would write outside its folder ({inner})")
        try:
            content = archive.read(inner)
        except KeyError as error:
            raise InputError(f"import-sweep: {file} is damaged: {inner} is missing") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise InputError(f"import-sweep: {file} is damaged: {inner} is not what was exported")
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
