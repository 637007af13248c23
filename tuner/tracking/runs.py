"""MLflow as a projection of the journal: one parent run per sweep, one child run per trial.

In: the journal's file. Out: runs in MLflow, and a ledger beside the journal: the run ids, and how many records are
told. A daemon thread reads what is new, sends it in batches, and tries again while the server is away; training never
waits for it. Importing this module, and `Tracking` before its `start`, cost nothing: MLflow is imported in the thread.

Telling a record twice changes nothing: runs are found again by tag, and a metric with the journal's time is the same
row. So the ledger is written after the calls, and a crash in between is harmless. An MLflow that does not know the
ledger's run (a new database at the old address, another server) is told everything; one that does, wherever it is now,
what is new.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tuner.paths import HomePaths
from tuner.records.journal import Record, iterate_from
from tuner.tracking.access import without_password
from tuner.tracking.ledger import Ledger
from tuner.tracking.mlflow_client import (
    HOPELESS,
    ensure_experiment,
    gist,
    has_run,
    log_values,
    open_client,
    outages,
    search_runs,
)
from tuner.tracking.projection import SWEEP_KEY, RunUpdate, plan

_log = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""How long the end of a sweep waits for an MLflow that is away."""

_RECORDS_PER_PASS = 500


class Tracking:
    """Tells MLflow what the journal says, from a thread of its own.

    Args:
        journal: The sweep's journal; a relative path in a ``files`` record is of its folder.
        ledger: Where to remember what was told.
        tracking_uri: MLflow's address.
        sweep: The sweep's name; also the experiment's and the parent run's.
        artifact_location: Where a new experiment keeps its files; None lets the server decide.
        poll_s: How often the thread looks for new records.
        retry_s: First and longest wait between attempts.

    Attributes:
        is_away: Whether the last attempt failed.
        failure: What ended the thread, if it should not have.
    """

    def __init__(
        self,
        *,
        journal: Path,
        ledger: Path,
        tracking_uri: str,
        sweep: str,
        artifact_location: str | None = None,
        poll_s: float = 0.5,
        retry_s: tuple[float, float] = (1.0, 60.0),
    ) -> None:
        self.tracking_uri = tracking_uri
        self.failure: BaseException | None = None
        self.is_away = False
        self._journal = journal
        self._ledger_path = ledger
        self._ledger = Ledger.load(ledger, tracking_uri)
        self._ledger.tracking_uri = without_password(tracking_uri)
        self._sweep = sweep
        self._artifact_location = artifact_location
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._client: Any = None
        self._experiment_id = ""
        self._must_look_up = True
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def for_sweep(cls, home: HomePaths, sweep: str, tracking_uri: str) -> Tracking:
        """The tracking of a sweep of that home."""
        paths = home.sweep(sweep)
        return cls(
            journal=paths.journal,
            ledger=paths.ledger,
            tracking_uri=tracking_uri,
            sweep=sweep,
            artifact_location=home.artifact_location(tracking_uri),
        )

    def start(self) -> None:
        """Starts the thread, which imports MLflow; a second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="thaw-mlflow", daemon=True)
            self._thread.start()

    def pending(self) -> int:
        """How many of the journal's records MLflow has not been told."""
        if not self._journal.exists():
            return 0
        return sum(1 for _ in iterate_from(self._journal, self._ledger.offset))

    @property
    def num_sent(self) -> int:
        """How many records MLflow has been told, earlier runs of the sweep included."""
        return self._ledger.num_sent

    def run_id(self, number: int | None = None) -> str | None:
        """MLflow's id of a trial's run, or of the sweep's for None; None while it is not told."""
        return self._ledger.runs.get(SWEEP_KEY if number is None else str(number))

    @property
    def model(self) -> str | None:
        """The registered version of the champion's model, where MLflow is known to have it."""
        return self._ledger.model

    def ask(self, timeout_s: float) -> bool:
        """Whether MLflow answered, before the thread is started; one that forgot the sweep is to be told all.

        Imports MLflow where it was told anything.
        """
        run_id = self.run_id()
        if run_id is None:
            return True
        answers: list[bool] = []

        def look() -> None:
            try:
                answers.append(has_run(open_client(self.tracking_uri), run_id))
            except outages() as error:
                _log.info("MLflow at %s: %s", self._ledger.tracking_uri, gist(error))

        # A call that hangs on a dead server cannot be interrupted; the thread is a daemon and may be left behind.
        thread = threading.Thread(target=look, name="thaw-mlflow-ask", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if not answers:
            return False
        if not answers[0]:
            self._forget()
        self._ledger.save(self._ledger_path)
        return True

    def note_model(self, uri: str) -> None:
        """Remembers, for later runs too, that the champion's model is registered."""
        self._ledger.model = uri
        self._ledger.save(self._ledger_path)

    def flush(self, timeout_s: float) -> int:
        """Waits until all is told, at most ``timeout_s`` seconds; returns what `pending` says then."""
        deadline = time.monotonic() + timeout_s
        next_nudge = 0.0
        while (left := self.pending()) and self._is_alive() and (now := time.monotonic()) < deadline:
            if now >= next_nudge:
                # Cuts a long wait between attempts short, but does not hammer a server that is away.
                self._wake.set()
                next_nudge = now + 1.0
            time.sleep(0.02)
        return left

    def close(self, timeout_s: float) -> int:
        """Sends what is left, at most ``timeout_s`` seconds long, and ends the thread; returns what stays untold.

        What stays untold is in the journal: the next `Tracking` on it goes on from there.
        """
        left = self.flush(timeout_s)
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            # A call that hangs on a dead server cannot be interrupted; the thread is a daemon and may be left behind.
            self._thread.join(timeout=1.0)
        return left

    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop()
        finally:
            self.failure = sys.exception()
            if self.failure is not None:
                # A mistake of ours, not an absent server: `flush` sees it at once, and Python prints the traceback.
                _log.error("telling MLflow ended (%s); the journal keeps all", gist(self.failure))

    def _loop(self) -> None:
        wait_s, self.is_away = self._retry_s[0], False
        while not self._closing.is_set():
            try:
                self._send_new()
            except outages() as error:
                level = logging.DEBUG if self.is_away else logging.WARNING
                _log.log(
                    level,
                    "MLflow at %s: %s; trying again, the journal keeps all",
                    without_password(self.tracking_uri),
                    gist(error),
                )
                self.is_away, self._must_look_up = True, True
                self._wait(wait_s)
                wait_s = min(2 * wait_s, self._retry_s[1])
                continue
            if self.is_away:
                _log.info("MLflow at %s is back", without_password(self.tracking_uri))
            wait_s, self.is_away = self._retry_s[0], False
            self._wait(self._poll_s)

    def _wait(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _send_new(self) -> None:
        """Sends the records that wait, some hundreds at a time."""
        while self._journal.exists() and not self._closing.is_set():
            ledger = self._ledger
            records, offset = _take(iterate_from(self._journal, ledger.offset), _RECORDS_PER_PASS)
            if not records:
                return
            self._connect()
            if self._ledger is not ledger:  # all is to be told
                continue
            updates, states = plan(records, self._ledger.states, self._sweep)
            for update in updates:
                self._send(update)
            self._ledger.states = states
            self._ledger.num_sent += len(records)
            self._ledger.offset = offset
            self._ledger.save(self._ledger_path)

    def _connect(self) -> None:
        """Finds the experiment and, after a start or an outage, runs that were created without our noting it."""
        if self._client is None:
            # The sweep's id is on disk before any run bears it.
            self._ledger.save(self._ledger_path)
            self._client = open_client(self.tracking_uri)
        if self._must_look_up:
            if (run_id := self.run_id()) is not None and not has_run(self._client, run_id):
                self._forget()
            self._experiment_id = ensure_experiment(self._client, self._sweep, self._artifact_location)
            for run in search_runs(self._client, self._experiment_id, self._ledger.sweep_id):
                self._ledger.runs.setdefault(run.data.tags["thaw.run"], run.info.run_id)
            self._must_look_up = False

    def _forget(self) -> None:
        _log.warning("MLflow at %s knows nothing of the sweep: it is told all", self._ledger.tracking_uri)
        self._ledger = self._ledger.forgotten()
        self._ledger.save(self._ledger_path)

    def _send(self, update: RunUpdate) -> None:
        run_id = self._ledger.runs.get(update.key) or self._create(update)
        self._unless_refused(update, lambda: log_values(self._client, run_id, update))
        self._unless_refused(update, lambda: self._log_files(run_id, update))
        if update.status == "RUNNING":
            self._unless_refused(update, lambda: self._client.update_run(run_id, status="RUNNING"))
        elif update.status is not None:
            self._unless_refused(update, lambda: self._client.set_terminated(run_id, update.status, update.end_ms))

    def _unless_refused(self, update: RunUpdate, call: Callable[[], None]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            call()
        except MlflowException as error:
            if error.error_code not in HOPELESS:
                raise
            _log.error("MLflow refuses what belongs to %s, which is left out: %s", update.name, gist(error))

    def _create(self, update: RunUpdate) -> str:
        tags = {
            "thaw.run": update.key,
            "thaw.sweep": self._ledger.sweep_id,
            "mlflow.source.name": "thaw",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": os.environ.get("USER", "thaw"),
        }
        if update.key != SWEEP_KEY:
            parent = RunUpdate(SWEEP_KEY, self._sweep, update.start_ms)
            tags["mlflow.parentRunId"] = self._ledger.runs.get(SWEEP_KEY) or self._create(parent)
        run = self._client.create_run(self._experiment_id, start_time=update.start_ms, tags=tags, run_name=update.name)
        self._ledger.runs[update.key] = run.info.run_id
        return str(run.info.run_id)

    def _log_files(self, run_id: str, update: RunUpdate) -> None:
        for name, folder in update.files:
            path = self._place_of(name)
            if path is not None:
                self._client.log_artifact(run_id, str(path), folder)
            else:
                _log.error("%s of %s is gone and cannot be sent to MLflow", name, update.name)

    def _place_of(self, name: str) -> Path | None:
        """Where a file of the journal lies now, None if nowhere: an imported sweep's paths are of another home."""
        folder, parts = self._journal.parent.resolve(), Path(name).parts
        places = [folder / name, *(folder.joinpath(*parts[start:]) for start in range(1, len(parts)))]
        # A journal may come from somebody else: no file of this machine but the sweep's own is handed out.
        return next((path for path in places if path.resolve().is_relative_to(folder) and path.is_file()), None)


def _take(records: Iterable[tuple[Record, int]], limit: int) -> tuple[list[Record], int]:
    """The first ``limit`` records and the offset after them."""
    taken = list(itertools.islice(records, limit))
    return [record for record, _ in taken], taken[-1][1] if taken else 0
