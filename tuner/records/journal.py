"""A sweep's journal: what happened, one JSON line per event, and the trials read back from it.

In: events of a running sweep. Out: records in order, and `TrialRecord` for each trial of the search. MLflow, the
searcher's memory and the tables that people see are all derived from this file; nothing else is the truth.

Every record has ``event`` and ``time`` (Unix seconds). The events, and their own fields:

=============  ====================================================================================================
sweep          name, params (flat), tags, note: a sweep begins, or goes on when there is an earlier one
extended       changes ``{field: value}``: from here on the spec has these, in a sweep that was to go on longer
probe          probes (by depth, see `trainables.jobs.DepthProbe`; of several backbones also with ``backbone``),
               metrics (seconds), points (what the search begins with), reason (why there are no probes, or not all)
search         first_points: the search begins, or goes on, and its clock runs; the points that it tries first
trial          number, params (flat), metrics (what it should cost): a trial begins, or goes on after an interruption
baseline       number, name, params, champion: the same for a run beside the search (``head_only``...), and beside whom
refit          number, name, params, champion: the same for the training of a model on what folds were made of
epoch          number, epoch (from 1), metrics ``{"val/accuracy": ...}``
end            number, outcome (see `Outcome`), reason, metrics: totals of the trial
exchange       epoch, moves (see `tuner.search.members.Move`): after that epoch trials go on with others' weights
files          number or none for the sweep, paths (of the sweep's folder), folder: artifacts
champion       number, metrics (``val/...``, ``test/...``), note
totals         metrics of the sweep as a whole (``reuse/...``)
finished       outcome ``completed`` or ``failed``, reason
interrupted    reason
=============  ====================================================================================================
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, get_args

from trainables.errors import InputError
from trainables.files.locks import try_lock
from trainables.files.outages import StorageAwayError, patiently

Event = Literal[
    "sweep",
    "extended",
    "probe",
    "search",
    "trial",
    "baseline",
    "refit",
    "epoch",
    "end",
    "exchange",
    "files",
    "champion",
    "totals",
    "finished",
    "interrupted",
]
Outcome = Literal["completed", "stopped_early", "diverged", "failed", "interrupted"]
Record = dict[str, Any]

_EVENTS: tuple[str, ...] = get_args(Event)
_OUTCOMES: tuple[str, ...] = get_args(Outcome)
_COSTS = ("time/", "compute/")


@dataclass(frozen=True)
class Ancestor:
    """Where the weights of a trial of a population come from.

    Attributes:
        number: The trial that trained them.
        until: Its last epoch of which they know.
        params: What it trained them with, since its own ancestors'.
    """

    number: int
    until: int
    params: dict[str, Any]


@dataclass(frozen=True)
class TrialRecord:
    """One trial of the search as the journal tells it.

    Attributes:
        number: The trial's number within the sweep.
        params: The point of the search space; in a population the last one.
        epochs: Metrics of each epoch in order, with ``epoch`` (from 1) among them; one without a finite value is NaN.
            They are those of the weights: what a trial took over counts, not what it gave up.
        outcome: How it ended; None while it is open: running, or cut off by an interruption.
        reason: Why, for an outcome that has a reason.
        metrics: Totals recorded at the end.
        predicted: What it should cost, as reckoned when it first began.
        lineage: Who trained its weights before it did, in order; empty where nobody else did.
    """

    number: int
    params: dict[str, Any]
    epochs: tuple[dict[str, float], ...] = ()
    outcome: str | None = None
    reason: str | None = None
    metrics: Mapping[str, float] | None = None
    predicted: Mapping[str, float] | None = None
    lineage: tuple[Ancestor, ...] = ()


class Journal:
    """The open journal of one sweep; one process at a time writes to it."""

    def __init__(self, path: Path, file: IO[bytes], clock: Callable[[], float], num_bytes: int) -> None:
        self.path = path
        self._file = file
        self._num_bytes = num_bytes  # asking the file would be one more call that a storage may not answer
        self._clock = clock
        self._lost: StorageAwayError | None = None

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float] = time.time) -> Journal:
        """Opens or creates the journal and cuts off a last line that a crash tore.

        Raises:
            InputError: Another process is writing it, or a line before the last is damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = path.open("a+b", buffering=0)
            try:
                _lock(file, path)
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    file.close()  # another machine's records have just taken its place
                    continue
                file.truncate(_whole_bytes(path))
            except (InputError, OSError):
                file.close()
                raise
            return cls(path, file, clock, file.seek(0, os.SEEK_END))

    def append(self, event: Event, **fields: Any) -> Record:
        """Writes one record and returns it as a reader will see it.

        The line goes out in one ``write``. Everything but epochs is also forced to the disk: an epoch that a power cut
        takes is trained again, an outcome is not. A disk that is full or away is waited for.

        Raises:
            ValueError: Unknown event or outcome.
            TypeError: A value that JSON cannot carry.
            StorageAwayError: The disk stayed full or away. The journal takes nothing more: later records without this
                one would tell another story.
        """
        if self._lost is not None:
            raise self._lost
        if event not in _EVENTS:
            raise ValueError(f"event: {event!r} is none of {', '.join(_EVENTS)}")
        if event == "end" and fields.get("outcome") not in _OUTCOMES:
            raise ValueError(f"outcome: {fields.get('outcome')!r} is none of {', '.join(_OUTCOMES)}")
        record = {"event": event, "time": self._clock(), **fields}
        line = json.dumps(_plain(record), allow_nan=False, separators=(",", ":"))
        try:
            # What of an earlier attempt is there, whole or not, goes with the next one: a disk that once failed to take
            # what was written to it does not say so twice.
            content, is_forced = line.encode() + b"\n", event != "epoch"
            patiently(partial(_write_at, self._file, self._num_bytes, content, is_forced), str(self.path))
            self._num_bytes += len(content)
        except StorageAwayError as error:
            self._lost = error
            raise
        return json.loads(line)

    def records(self) -> list[Record]:
        """All records so far."""
        return read_records(self.path)

    def close(self) -> None:
        """Ends writing and lets another process open the journal."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: Path) -> list[Record]:
    """The journal's whole records; a torn last line is left out.

    Raises:
        FileNotFoundError: There is no journal.
        InputError: A line before the last is damaged.
    """
    return [record for record, _ in iterate_from(path, 0)]


def iterate_from(path: Path, offset: int) -> Iterator[tuple[Record, int]]:
    """Whole records that begin at byte ``offset`` or later, each with the offset after it.

    Raises:
        InputError: A line before the last is damaged.
    """
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    lines = content.split(b"\n")[:-1]
    for index, line in enumerate(lines):
        end = offset + len(line) + 1
        record = _parse(line)
        if record is None:
            if index == len(lines) - 1:
                return
            raise InputError(
                f"{path}: the line at byte {offset} is damaged; restore the file or use another sweep name"
            )
        yield record, end
        offset = end


def read_trials(path: Path) -> list[TrialRecord]:
    """The search's trials by number; baselines are not among them.

    An interrupted trial is open again (``outcome`` None). When a resumed trial ran an epoch again, the later report
    counts, because the checkpoint that is left belongs to it.

    Raises:
        FileNotFoundError: There is no journal.
        InputError: The journal is damaged.
    """
    return trials_of(read_records(path))


def trials_of(records: list[Record]) -> list[TrialRecord]:
    """See `read_trials`."""
    trials: dict[int, TrialRecord] = {}
    epochs: dict[int, dict[int, dict[str, float]]] = {}
    for record in records:
        number = record.get("number")
        if record["event"] == "trial":
            old = trials.get(record["number"], TrialRecord(record["number"], {}))
            predicted = old.predicted or record.get("metrics")
            trials[record["number"]] = replace(
                old, params=record["params"], outcome=None, reason=None, predicted=predicted
            )
        elif record["event"] == "exchange":
            for move in record["moves"]:
                _take_over(trials, epochs, move, record["epoch"])
        elif number not in trials:
            continue
        elif record["event"] == "epoch":
            metrics = {name: _number(value) for name, value in record["metrics"].items()}
            epochs.setdefault(number, {})[record["epoch"]] = {**metrics, "epoch": record["epoch"]}
        elif record["event"] == "end":
            outcome = None if record["outcome"] == "interrupted" else record["outcome"]
            totals = {name: _number(value) for name, value in (record.get("metrics") or {}).items()}
            trials[number] = replace(trials[number], outcome=outcome, reason=record.get("reason"), metrics=totals)
    return [
        replace(trial, epochs=tuple(by_epoch for _, by_epoch in sorted(epochs.get(number, {}).items())))
        for number, trial in sorted(trials.items())
    ]


def _take_over(
    trials: dict[int, TrialRecord],
    epochs: dict[int, dict[int, dict[str, float]]],
    move: Mapping[str, Any],
    epoch: int,
) -> None:
    number, donor = move["number"], trials[move["donor"]]
    ancestor = Ancestor(donor.number, epoch, donor.params)
    trials[number] = replace(trials[number], params=move["params"], lineage=(*donor.lineage, ancestor))
    merged = taken_over(list(epochs[number].values()), list(epochs[donor.number].values()), epoch)
    epochs[number] = {int(each["epoch"]): each for each in merged}


def taken_over(
    own: Sequence[Mapping[str, float]], donor: Sequence[Mapping[str, float]], epoch: int
) -> list[dict[str, float]]:
    """The epochs of a trial that took over another's weights: the other's scores, and what its own epochs cost."""
    costs = {each["epoch"]: {name: each[name] for name in each if name.startswith(_COSTS)} for each in own}
    scores = [
        {name: each[name] for name in each if not name.startswith(_COSTS)} for each in donor if each["epoch"] <= epoch
    ]
    return [{**costs.get(each["epoch"], {}), **each} for each in scores]


def champion_record(records: Sequence[Record]) -> Record | None:
    """The last champion that a journal tells of; None before there is one."""
    return next((record for record in reversed(records) if record["event"] == "champion"), None)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _plain(value: Any) -> Any:
    """``value`` as JSON can carry it: NaN and infinities become null, NumPy scalars numbers, paths text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, (bool, int, float, str)) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("event") in _EVENTS and "time" in record else None


def _whole_bytes(path: Path) -> int:
    return max((end for _, end in iterate_from(path, 0)), default=0)


def _write_at(file: IO[bytes], size: int, content: bytes, is_forced: bool) -> None:
    """Writes all behind ``size`` bytes, or nothing: half a record left in place would spoil the next one."""
    if os.fstat(file.fileno()).st_size > size:
        file.truncate(size)
    if file.write(content) != len(content):
        file.truncate(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))
    if is_forced:
        os.fsync(file.fileno())


@contextmanager
def journal_at_rest(path: Path) -> Iterator[bool]:
    """Yields whether no process of this machine writes a journal; none begins to while the section lasts."""
    with ExitStack() as opened:
        is_at_rest = True
        with suppress(FileNotFoundError):
            file = opened.enter_context(_open_to_lock(path))
            try:
                _lock(file, path)
            except InputError:
                is_at_rest = False
        yield is_at_rest


def _open_to_lock(path: Path) -> IO[bytes]:
    """For writing, where that is allowed: some network file systems lock a file for nobody else."""
    try:
        return path.open("r+b")
    except PermissionError:
        return path.open("rb")


def _lock(file: IO[bytes], path: Path) -> None:
    """Keeps a second driver out; file systems that know no locks are trusted."""
    if not try_lock(file.fileno(), fcntl.LOCK_EX, if_unsupported=True):
        raise InputError(f"{path}: this sweep is running in another process; wait for it or use another name")
