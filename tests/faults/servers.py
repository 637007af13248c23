"""An MLflow server that can be killed, and a gate before it that can be shut in several ways."""

from __future__ import annotations

import http.client
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from heads import free_port

from tuner.records.journal import TrialRecord

START_TIMEOUT_S = 90
SLOW_S = 5.0
_NOT_PASSED_ON = {"connection", "transfer-encoding", "content-length", "server", "date"}


class Server:
    """An MLflow server that can be killed and started again on the same files.

    Args:
        folder: Where its database and artifacts lie.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
            "--artifacts-destination", str(folder / "artifacts"),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and does not wait for it."""
        # Its runner of jobs takes eight processes and half a minute of a core to start, and nothing here uses it.
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self._process = subprocess.Popen(
            self._command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def await_answer(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.2)
        raise AssertionError("the MLflow server did not start")

    def kill(self) -> None:
        """kill -9 of all its processes."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()

    def ended(self) -> int | None:
        """The exit code of a server that has ended by itself, or was killed; None while it runs."""
        return None if self._process is None else self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all its processes: SIGSTOP has it accept connections and answer none, until SIGCONT."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    """What MLflow's database answers; nothing while it has no tables."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []


def told(database: Path) -> dict[str, list[tuple[int, float]]]:
    """Every validation loss of every run that MLflow has, by step; step 0 is a sweep's own, its champion's."""
    query = "SELECT name, step, value FROM metrics JOIN runs USING (run_uuid)"
    query += " WHERE key = 'val/loss' AND step > 0 ORDER BY step"
    found: dict[str, list[tuple[int, float]]] = {}
    for name, step, value in rows(database, query):
        found.setdefault(name, []).append((step, value))
    return found


def reported(trials: Sequence[TrialRecord]) -> dict[str, list[tuple[int, float]]]:
    """What `told` has to say of the journal's trials."""
    return {
        f"trial {trial.number:04d}": [(number, epoch["val/loss"]) for number, epoch in enumerate(trial.epochs, start=1)]
        for trial in trials
    }


class Gate:
    """Passes requests on to a server, or does not.

    Args:
        port: The server's.

    Attributes:
        mode: ``open``; ``refuse`` answers 500; ``slow`` takes five seconds for each request; ``hold`` lets requests
            wait until the mode is another.
        uri: Where it listens.
        num_asked: Requests that came in the current mode.
    """

    def __init__(self, port: int) -> None:
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gate.pass_on(self, body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

            def log_message(self, *_: Any) -> None:
                pass

        self._port = port
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self.num_asked = 0
        self.mode: Literal["open", "refuse", "slow", "hold"] = "open"
        self._changed = threading.Condition()

    def set(self, mode: Literal["open", "refuse", "slow", "hold"]) -> None:
        """Changes the mode, and counts anew."""
        with self._changed:
            self.mode, self.num_asked = mode, 0
            self._changed.notify_all()

    def await_asked(self, timeout_s: float = 60) -> None:
        """Until a request came in the current mode."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.num_asked, timeout_s), f"nobody asked in mode {self.mode}"

    def pass_on(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Answers one request."""
        with self._changed:
            self.num_asked += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.mode != "hold")
            if self.mode == "slow":
                self._changed.wait_for(lambda: self.mode == "refuse", SLOW_S)
            mode = self.mode
        if mode == "refuse":
            _answer(handler, 500, {"Content-Type": "text/plain"}, b"something broke")
            return
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() != "host"}
            connection.request(handler.command, handler.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            handler.close_connection = True  # as a server does that is killed: no answer at all
            return
        finally:
            connection.close()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in _NOT_PASSED_ON}
        _answer(handler, response.status, kept, content)

    @contextmanager
    def serving(self) -> Iterator[Gate]:
        """Listens meanwhile."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.set("refuse")
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def _answer(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    with suppress(OSError):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
