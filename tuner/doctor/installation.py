"""What may keep sweeps from running here: the installation, Ray, MLflow, disks and devices, each with its remedy.

In: this machine, its environment, a home. Out: `Finding`s. Nothing is changed: what can be mended carries a ``fix`` for
the caller to call. What belongs to files of the home is in `tuner.doctor.homes`.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import shutil
import socket
import sqlite3
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from packaging.requirements import Requirement

from trainables.files.node_cache import cache_root
from tuner.paths import HomePaths, sqlite_file
from tuner.tracking.access import without_password

Level = Literal["ok", "warning", "error"]
_DISTRIBUTION = "thaw"
_LITTLE_DISK_BYTES, _NO_DISK_BYTES = 5 << 30, 200 << 20
_LITTLE_MEMORY_BYTES = 64 << 20
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: ``Ray``, ``disk``...
        level: ``error`` keeps sweeps from running or has lost something; ``warning`` may.
        text: What was found.
        remedy: What to do about it.
        fix: Does it, and says what was done; None where a person has to.
    """

    area: str
    level: Level
    text: str
    remedy: str = ""
    fix: Callable[[], str] | None = None


def check_installation() -> Iterator[Finding]:
    """Python, and every package that Thaw asks for at a version that it asks for."""
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires(_DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "installation",
            "warning",
            "Thaw runs from its source and is not installed, so versions cannot be compared",
            "pip install --constraint constraints.txt .",
        )
        return
    problems = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed (wanted: {requirement.specifier})")
            continue
        # A build's local part, as in 2.15.0+cu128, says nothing about fitness.
        if not requirement.specifier.contains(version.split("+")[0], prereleases=True):
            problems.append(f"{requirement.name} is {version} (wanted: {requirement.specifier})")
    for problem in problems:
        yield Finding("installation", "error", problem, "install again: pip install --constraint constraints.txt .")
    if not problems:
        version = importlib.metadata.version(_DISTRIBUTION)
        yield Finding("installation", "ok", f"Thaw {version}, Python {platform.python_version()}, all packages fit")


def check_ray(environ: Mapping[str, str] | None = None, proc: Path = Path("/proc")) -> Iterator[Finding]:
    """How many Ray instances run here, whether the one that is named answers, and whether there is a token for it."""
    environ = os.environ if environ is None else environ
    if address := environ.get("RAY_ADDRESS", ""):
        yield from _check_address(address, environ)
        return
    num_instances = _count_processes(proc, "gcs_server")
    running = f"{num_instances or 'no'} other instance{'' if num_instances == 1 else 's'} here"
    hint = "; RAY_ADDRESS=HOST:PORT would have it join one" if num_instances else ""
    yield Finding("Ray", "ok", f"{running}; a sweep starts its own{hint}")


def _check_address(address: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        yield Finding("Ray", "ok", f"RAY_ADDRESS is {address}")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()
        yield Finding("Ray", "ok", f"{address} answers")
    except OSError as error:
        yield Finding(
            "Ray",
            "error",
            f"RAY_ADDRESS is {address}, and nothing answers there ({error.strerror or error})",
            "start the cluster (`ray up cluster.yaml`, or `ray start --head`), or unset RAY_ADDRESS",
        )
    token = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if environ.get("RAY_AUTH_MODE") != "disabled" and not environ.get("RAY_AUTH_TOKEN") and not token.is_file():
        yield Finding(
            "Ray",
            "error",
            f"clusters ask for a token, and there is none in RAY_AUTH_TOKEN or at {token}",
            "copy the head's ~/.ray/auth_token to this machine",
        )


def _count_processes(proc: Path, name: str) -> int:
    count = 0
    for comm in proc.glob("[0-9]*/comm"):
        try:
            count += comm.read_text().strip() == name
        except OSError:  # it ended meanwhile
            continue
    return count


def check_mlflow(tracking_uri: str) -> Iterator[Finding]:
    """Whether MLflow's store or server can be reached and written to, and is of this client's version."""
    database = sqlite_file(tracking_uri)
    if database is not None:
        yield from _check_database(database)
    elif tracking_uri.startswith(("http://", "https://")):
        yield from _check_server(tracking_uri.rstrip("/"))
    else:
        yield Finding("MLflow", "ok", f"records go to {urlsplit(tracking_uri).scheme}; it is tried by the first sweep")


def _check_database(database: Path) -> Iterator[Finding]:
    if not database.exists():
        yield Finding("MLflow", "ok", f"{database} will be made by the first sweep")
        return
    try:
        with closing(sqlite3.connect(database, timeout=_PATIENCE_S)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.Error as error:
        remedy = "end what holds it, or wait" if "locked" in str(error) else "make it writable, or restore it"
        yield Finding("MLflow", "error", f"{database}: {error}", f"{remedy}; journals keep what it was not told")
        return
    if verdict != "ok":
        remedy = f"move it away; `thaw resume NAME` tells a new one what each sweep's journal has: mv {database} ..."
        yield Finding("MLflow", "error", f"{database} is damaged: {verdict}", remedy)
        return
    yield Finding("MLflow", "ok", f"{database} is whole and takes records")


def _check_server(uri: str) -> Iterator[Finding]:
    place = without_password(uri)
    try:
        with urlopen(Request(f"{uri}/version"), timeout=_PATIENCE_S) as answer:
            theirs = answer.read(100).decode(errors="replace").strip()
    except HTTPError as error:
        yield Finding("MLflow", "error", f"{place} answers {error.code} {error.reason}", "look at the server's log")
        return
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield Finding(
            "MLflow",
            "error",
            f"{place} does not answer ({reason})",
            "start the server, or correct MLFLOW_TRACKING_URI; sweeps run meanwhile and tell it later",
        )
        return
    ours = importlib.metadata.version("mlflow")
    if theirs.split(".")[:1] != ours.split(".")[:1]:
        yield Finding("MLflow", "error", f"{place} is MLflow {theirs}, here is {ours}", "use one major version on both")
    elif theirs.split(".")[:2] != ours.split(".")[:2]:
        yield Finding("MLflow", "warning", f"{place} is MLflow {theirs}, here is {ours}", "use one version on both")
    else:
        yield Finding("MLflow", "ok", f"{place} answers, version {theirs}")


def check_disk(home: HomePaths) -> Iterator[Finding]:
    """Room and permission to write where sweeps write."""
    places = {"home": home.local, "cache": cache_root(), "temporary files": Path(tempfile.gettempdir())}
    for name, place in places.items():
        there = _nearest_existing(place)
        if problem := _write_problem(there):
            yield Finding("disk", "error", f"{name}: {there} cannot be written to: {problem}", "mend its permissions")
            continue
        free = shutil.disk_usage(there).free
        text = f"{name}: {free / 1e9:.1f} GB free at {there}"
        if free < _LITTLE_DISK_BYTES:
            level: Level = "error" if free < _NO_DISK_BYTES else "warning"
            yield Finding(
                "disk",
                level,
                text,
                "free some (`thaw cache prune --budget-gb 1`), or move THAW_HOME, with a link at its old place",
            )
        else:
            yield Finding("disk", "ok", text)
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free) < _LITTLE_MEMORY_BYTES:
        text = f"{free / 1e6:.0f} MB free in {shared}, through which Ray's processes share objects"
        yield Finding("disk", "warning", text, "give the container more (docker run --shm-size=2g)")


def _nearest_existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _write_problem(folder: Path) -> str | None:
    probe = folder / f".thaw-doctor-{uuid.uuid4().hex}.tmp"
    try:
        probe.write_bytes(b"\0" * 4096)
    except OSError as error:
        return None if error.errno == errno.ENOSPC else (error.strerror or str(error))  # no room is said by its figure
    finally:
        probe.unlink(missing_ok=True)
    return None


def check_devices() -> Iterator[Finding]:
    """What training would run on."""
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "install the pair again: pip install --constraint constraints.txt torch torchvision"
        yield Finding("devices", "error", f"torch and torchvision cannot be loaded together: {error}", remedy)
        return
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        yield Finding("devices", "ok", f"{names}; {versions}")
        return
    num_cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    yield Finding("devices", "ok", f"{num_cpus} CPU cores, no CUDA device; {versions}")
    if shutil.which("nvidia-smi"):
        yield Finding(
            "devices",
            "warning",
            "there is an NVIDIA driver, but torch finds no device",
            "compare the driver with the CUDA version torch was built for (python -m torch.utils.collect_env)",
        )
