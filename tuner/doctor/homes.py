"""Whether a home is whole: weights, features, and each sweep's journal, checkpoints and untold records.

In: a home, and the name of a sweep to look into. Out: `Finding`s. Fixes remove only what is made again when it is
missed, and nothing that a running process holds.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from trainables.backbones.weights import is_whole as are_whole_weights
from trainables.errors import InputError
from trainables.files.half_written import remove_whole
from trainables.files.locks import try_lock
from trainables.files.node_cache import features_root
from trainables.training.checkpoint import is_whole as is_whole_checkpoint
from tuner.doctor.installation import Finding
from tuner.paths import HomePaths, SweepPaths
from tuner.records.journal import TrialRecord, iterate_from, read_records, trials_of
from tuner.records.resuming import is_finished
from tuner.tracking.access import without_password
from tuner.tracking.ledger import Ledger

_LEFTOVERS = (".*.tmp", "*.partial")
_HALF_SAVED = re.compile(r"\.(champion|model)\..*[0-9a-f]{32}\.tmp")
"""The one kind of folder among them: a sweep, say, may have a name that ends as they do."""
_LEFT_BEHIND_S = 600.0
"""Nothing takes so long to write one file; who was killed in mid-write left it behind."""


def check_weights(home: HomePaths) -> Iterator[Finding]:
    """Compares each kept file of weights with the hash that is its name."""
    files = sorted(home.weights.glob("*.safetensors")) if home.weights.is_dir() else []
    damaged = [path for path in files if not are_whole_weights(str(path), path.stem)]
    for path in damaged:
        remedy = "remove it; the next sweep reads the weights anew from where they came"
        yield Finding("weights", "error", f"{path}: these are not the weights of that name", remedy, _remover([path]))
    if not damaged:
        yield Finding("weights", "ok", f"{len(files)} kept, all whole")


def check_leftovers(home: HomePaths) -> Iterator[Finding]:
    """Temporary files of processes that were killed, and claims on features that nobody holds."""
    features = Path(features_root(home.features))
    old = time.time() - _LEFT_BEHIND_S
    places = [home.local, *([] if features.is_relative_to(home.local) else [features])]
    left = [
        path
        for place in places
        if place.is_dir()
        for pattern in _LEFTOVERS
        for path in place.rglob(pattern)
        if (path.is_file() or _HALF_SAVED.fullmatch(path.name)) and _last_written(path) < old
    ]
    left += [folder for folder in home.sweeps.glob(".import-*") if folder.stat().st_mtime < old]
    if left:
        size = sum(map(_num_bytes, left)) / 1e6
        text = f"{len(left)} temporary files of processes that were killed, {size:.1f} MB, such as {left[0]}"
        yield Finding("leftovers", "warning", text, "remove them", _remover(left))
    claims = [path for path in features.glob("*/*.lease") if path.stat().st_mtime < old and _is_free(path)]
    if claims:
        text = f"{len(claims)} claims on features by processes that have ended, such as {claims[0]}"
        yield Finding("leftovers", "warning", text, "remove them; a sweep would pass over them", _remover(claims))
    if not left and not claims:
        yield Finding("leftovers", "ok", "no temporary file and no claim is left over")


def check_sweeps(home: HomePaths) -> Iterator[Finding]:
    """One line per sweep that needs something."""
    whole = 0
    for name in home.sweep_names():
        paths = home.sweep(name)
        try:
            records = read_records(paths.journal)
        except InputError as error:
            yield Finding("sweeps", "error", str(error), f"restore {paths.journal}, or remove {paths.root}")
            continue
        if is_finished(records) or _is_running(paths):
            whole += 1
        else:
            yield Finding("sweeps", "warning", f"{name} is unfinished", f"thaw resume {name}")
    yield Finding("sweeps", "ok", f"{whole} finished or running")


def check_sweep(home: HomePaths, name: str, tracking_uri: str) -> Iterator[Finding]:
    """A sweep's journal, checkpoints and what MLflow was not told.

    Raises:
        InputError: There is no such sweep, or its journal is damaged.
    """
    paths = home.known_sweep(name, "doctor")
    records = read_records(paths.journal)
    trials = trials_of(records)
    num_ended = sum(trial.outcome is not None for trial in trials)
    text = f"{name}: {len(records)} records, {len(trials)} trials, {num_ended} ended"
    if _is_running(paths):
        yield Finding("journal", "ok", f"{text}; it is running now")
    elif is_finished(records):
        yield Finding("journal", "ok", f"{text}; finished")
    else:
        yield Finding("journal", "warning", f"{text}; unfinished, and nobody runs it", f"thaw resume {name}")
    num_whole = max((end for _, end in iterate_from(paths.journal, 0)), default=0)
    if paths.journal.stat().st_size > num_whole and not _is_running(paths):
        yield Finding(
            "journal", "warning", "its last line is torn", f"`thaw resume {name}` cuts it off; nothing is lost"
        )
    yield from _check_checkpoints(paths, trials)
    ledger, place = Ledger.load(paths.ledger, tracking_uri), without_password(tracking_uri)
    if ledger.tracking_uri != place:
        text = f"{name} was told to {ledger.tracking_uri}, and MLflow is now {place}"
        yield Finding("MLflow", "warning", text, f"`thaw resume {name}` tells it what it does not know")
    num_untold = sum(1 for _ in iterate_from(paths.journal, ledger.offset))
    if num_untold:
        text = f"{num_untold} records of {name} are not in {place}"
        yield Finding("MLflow", "warning", text, f"`thaw resume {name}` tells them")


def _check_checkpoints(paths: SweepPaths, trials: Sequence[TrialRecord]) -> Iterator[Finding]:
    num_whole, is_damaged = 0, False
    for trial in trials:
        for path in sorted(paths.trial(trial.number).root.glob("*.ckpt")):
            if is_whole_checkpoint(str(path)):
                num_whole += 1
            else:
                is_damaged = True
                remedy = "it cannot be the champion any more" if trial.outcome else "the trial will start again"
                yield Finding("checkpoints", "warning", f"trial {trial.number}: {path} is damaged", remedy)
    if not is_damaged:
        yield Finding("checkpoints", "ok", f"{num_whole}, all whole")


def _is_running(paths: SweepPaths) -> bool:
    """Whether a process has the journal open to write."""
    return not _is_lockable(paths.journal, fcntl.LOCK_SH, if_unsupported=True)


def _is_free(claim: Path) -> bool:
    """Whether nobody holds a claim any more."""
    try:
        return _is_lockable(claim, fcntl.LOCK_EX, if_unsupported=False)
    except OSError:
        return False


def _is_lockable(path: Path, kind: int, *, if_unsupported: bool) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return try_lock(descriptor, kind, if_unsupported=if_unsupported)
    finally:
        os.close(descriptor)


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def _last_written(path: Path) -> float:
    return max(file.stat().st_mtime for file in [path, *path.rglob("*")])


def _remover(paths: Sequence[Path]) -> partial[str]:
    return partial(_remove, tuple(paths))


def _remove(paths: Sequence[Path]) -> str:
    removed = 0
    for path in paths:
        if path.exists():
            remove_whole(path)
            removed += 1
    return f"{removed} removed"
