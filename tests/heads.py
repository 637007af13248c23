"""A Ray cluster of the test's own: its folder, its ports, its password; ended by its processes' numbers, and no others.

`ray stop` would end every Ray on this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 120
STORE = "--object-store-memory=100000000"
"""An option of heads and nodes: enough for what a small sweep puts there."""


@dataclass(frozen=True)
class RayHead:
    """A running head.

    Attributes:
        gcs: Its address for drivers, host and port.
        dashboard: Its address for jobs, a URL.
        environ: What a client needs: the token, and this Python's folder first on the PATH.
    """

    gcs: str
    dashboard: str
    environ: dict[str, str]


@dataclass(frozen=True)
class RayNode:
    """A running node beside a head.

    Attributes:
        name: A resource that it alone has.
        process: What was started.
    """

    name: str
    process: subprocess.Popen[bytes]

    def has(self, pids: Iterable[int]) -> bool:
        """Whether any of the processes is this node's."""
        return not set(pids).isdisjoint(_descendants(self.process.pid))

    @property
    def is_up(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """Ends it as a machine ends that loses its power."""
        _end(self.process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_head(num_cpus: int, *options: str, port: int | None = None, **environ: str) -> Iterator[RayHead]:
    """Starts `ray start --head --block` with token authentication and ends exactly what that started."""
    # Sockets lie in it, and their paths may not be longer than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="thaw-", dir="/tmp"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "THAW_", "MLFLOW_"))}
    clean |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    command = ["ray", "start", "--head", "--block", f"--temp-dir={folder}", f"--num-cpus={num_cpus}"]
    # Another Ray on this machine may hold the ports that are fixed by default.
    ports = {"--port": port or free_port(), "--ray-client-server-port": free_port(), "--dashboard-port": 0}
    ports["--dashboard-agent-listen-port"] = free_port()
    command += [f"{name}={number}" for name, number in ports.items()]
    command += ["--dashboard-host=127.0.0.1", "--include-dashboard=true", "--disable-usage-stats", *options]
    log = folder / "head.log"
    with log.open("w") as output:
        # A session of its own: none of the signals that reach pytest reach Ray, and one number ends most of it.
        process = subprocess.Popen(
            command, env=clean | environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder
        )
    try:
        yield RayHead(*_addresses(process, log), environ=clean)
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_node(
    head: RayHead, name: str, num_cpus: int, *options: str, within: Sequence[str] = (), **environ: str
) -> Iterator[RayNode]:
    """Starts `ray start --address` and ends exactly what that started.

    Args:
        head: Whom it joins.
        name: Of the resource that tells it from others.
        num_cpus: What it offers.
        options: More of `ray start`'s.
        within: A command that runs another one, as ``ip netns exec NAME`` does.
        environ: Added to its environment and that of its workers.
    """
    command = [*within, "ray", "start", f"--address={head.gcs}", "--block", f"--num-cpus={num_cpus}"]
    command += [f'--resources={{"{name}": 1}}', f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, *options], env=head.environ | environ, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while b"Ray runtime started" not in (text := _text_of(log)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"the node did not start:\n{text.decode()}")
                time.sleep(0.2)
            yield RayNode(name, process)
        finally:
            _end(process)


def _text_of(log: IO[bytes]) -> bytes:
    return os.pread(log.fileno(), 1 << 20, 0)


def _addresses(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        text = log.read_text()
        gcs = re.search(r"ray start --address='([^']+)'", text)
        dashboard = re.search(r"RAY_API_SERVER_ADDRESS='([^']+)'", text)
        if gcs and dashboard:
            return gcs[1], dashboard[1]
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise AssertionError(f"the head did not start:\n{log.read_text()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the head, what it started, and what that started: Ray's workers leave their parents' group."""
    family = _descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    table = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in table.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, waiting = [], [pid]
    while waiting:
        waiting += (born := children.get(waiting.pop(), []))
        found += born
    return found
