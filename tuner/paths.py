"""Every name that Thaw gives to a file: one home, and what lies where in it.

In: ``THAW_HOME`` (default ``~/.thaw``). Out: paths, and for the parts that workers on other nodes read, their URIs.
The home may be a storage URI (``s3://bucket/thaw``) for a cluster. What only the driver writes, line by line or by
SQL, then lies in a folder of this machine, and `HomePaths.uri_of` names the shared twin of a path.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trainables.errors import InputError
from trainables.files.storage import is_local, join
from trainables.files.typed_path import expand
from trainables.wording import shorten, shorten_place

ARTIFACTS = "mlartifacts"
"""The folder of MLflow's files, beside its database."""
_NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TRACKING_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks", "databricks-uc")


@dataclass(frozen=True)
class TrialPaths:
    """The files of one trial.

    Attributes:
        root: The trial's folder.
    """

    root: Path


@dataclass(frozen=True)
class SweepPaths:
    """The files of one sweep.

    Attributes:
        root: The sweep's folder.
    """

    root: Path

    @property
    def spec(self) -> Path:
        """The resolved spec."""
        return self.root / "spec.yaml"

    @property
    def data(self) -> Path:
        """The pictures by side and class, and what was set aside."""
        return self.root / "data.json"

    @property
    def environment(self) -> Path:
        """Machine and versions."""
        return self.root / "environment.json"

    @property
    def pretrained(self) -> Path:
        """The weights that its pretraining gave, by network."""
        return self.root / "pretrained.json"

    @property
    def journal(self) -> Path:
        """What happened, one JSON line per event; the truth that all else is derived from."""
        return self.root / "journal.jsonl"

    @property
    def ledger(self) -> Path:
        """How far MLflow has been told, and the run ids."""
        return self.root / "mlflow.json"

    @property
    def ray(self) -> Path:
        """Ray Tune's experiment state."""
        return self.root / "ray"

    @property
    def report(self) -> Path:
        """The champion's confusion matrix and other files for people."""
        return self.root / "report"

    @property
    def champion(self) -> Path:
        """The champion's whole model, before it is handed to MLflow."""
        return self.root / "champion"

    @property
    def trials(self) -> Path:
        """One folder per trial."""
        return self.root / "trials"

    def trial(self, number: int) -> TrialPaths:
        """The files of trial ``number``."""
        return TrialPaths(self.trials / f"{number:04d}")

    def remove_torn(self) -> None:
        """Removes what earlier processes of the sweep were killed in the midst of writing; what cannot go stays.

        For who has the journal: a worker of before that still lives fails at its file, and nobody waits for it.
        """
        with suppress(OSError):
            for path in [*self.root.glob(".*.tmp"), *self.trials.glob("*/.*.tmp")]:
                if path.is_file():  # of the champion's folder its writer takes care
                    path.unlink(missing_ok=True)


@dataclass(frozen=True)
class HomePaths:
    """Where everything that Thaw writes lies.

    Attributes:
        root: The home: an absolute path, or a storage URI.
        local: The home's folder on this machine; for a path the home itself.
    """

    root: str
    local: Path

    @classmethod
    def at(cls, root: str | Path) -> HomePaths:
        """The home at a path (``~`` and ``file://`` are understood) or a storage URI."""
        text = str(root)
        if text.startswith("file://"):
            text = unquote(urlsplit(text).path)
        if is_local(text):
            local = expand(text, "home").absolute()
            return cls(root=str(local), local=local)
        text = text.rstrip("/")
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return cls(root=text, local=expand("~/.thaw") / "remote" / digest)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> HomePaths:
        """The home that ``THAW_HOME`` names, else ``~/.thaw``."""
        environ = os.environ if environ is None else environ
        return cls.at(environ.get("THAW_HOME") or "~/.thaw")

    @classmethod
    def resolve(cls, home: str | Path | HomePaths | None) -> HomePaths:
        """The home that a caller names in any of these ways; None takes it from the environment."""
        if isinstance(home, HomePaths):
            return home
        return cls.from_env() if home is None else cls.at(home)

    @property
    def is_shared(self) -> bool:
        """Whether the home is storage that every node reaches, rather than a folder."""
        return not is_local(self.root)

    @property
    def tables(self) -> Path:
        """Packed image tables."""
        return self.local / "tables"

    @property
    def weights(self) -> Path:
        """Pretrained tensors, by content."""
        return self.local / "weights"

    @property
    def features(self) -> str | None:
        """What frozen layers computed; None where the home is shared: then each machine has a cache of its own."""
        return None if self.is_shared else str(self.local / "features")

    @property
    def measured(self) -> Path:
        """How long networks took, in steps and for a single picture, by network and machine."""
        return self.local / "measured"

    @property
    def mlflow_db(self) -> Path:
        """MLflow's SQLite file, used when no server is named."""
        return self.local / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts beside `mlflow_db`."""
        return self.local / ARTIFACTS

    @property
    def sweeps(self) -> Path:
        """One folder per sweep."""
        return self.local / "sweeps"

    def sweep(self, name: str) -> SweepPaths:
        """The files of the sweep ``name``.

        Raises:
            InputError: The name does not make a folder's name.
        """
        if not _NAME_RULE.fullmatch(name):
            raise InputError(
                f"name: {shorten(name)} cannot name a sweep; use letters, digits, '.', '_' and '-', up to 100, "
                "beginning with a letter or digit"
            )
        return SweepPaths(self.sweeps / name)

    def sweep_names(self) -> list[str]:
        """The sweeps that there are, by name."""
        if not self.sweeps.is_dir():
            return []
        # An empty journal is of a sweep that has not begun, and leaves its name to another.
        folders = [path for path in self.sweeps.iterdir() if not path.name.startswith(".")]
        journals = {path.name: path / "journal.jsonl" for path in folders}
        return sorted(name for name, path in journals.items() if path.is_file() and path.stat().st_size)

    def known_sweep(self, name: str, asker: str) -> SweepPaths:
        """The files of a sweep that there is.

        Raises:
            InputError: There is none of that name; the message begins with who asks.
        """
        names = self.sweep_names()
        if name not in names:
            raise InputError(
                f"{asker}: there is no sweep {name!r} in {self.root}; there are: {', '.join(names) or 'none'}"
            )
        return self.sweep(name)

    def uri_of(self, path: Path) -> str:
        """How another node names a file of this home: its path, or its place in the shared storage.

        Raises:
            ValueError: The path lies outside the home.
        """
        relative = path.absolute().relative_to(self.local)
        return join(self.root, *relative.parts) if self.is_shared else str(self.local / relative)

    def tracking_uri(self, explicit: str | None = None, environ: Mapping[str, str] | None = None) -> str:
        """Where MLflow's records go: the spec's choice, else ``MLFLOW_TRACKING_URI``, else SQLite in the home.

        Raises:
            InputError: The address is not one that MLflow 3 takes, or there is none and the home is shared storage.
        """
        environ = os.environ if environ is None else environ
        place, uri = "tracking.uri", explicit
        if not uri:
            place, uri = "MLFLOW_TRACKING_URI", environ.get("MLFLOW_TRACKING_URI")
        if not uri and self.is_shared:
            raise InputError(
                f"THAW_HOME: {self.root} is shared storage, where MLflow's SQLite cannot lie; set MLFLOW_TRACKING_URI "
                "(or tracking.uri in the spec) to a server such as http://127.0.0.1:5000"
            )
        if not uri:
            return f"sqlite:///{self.mlflow_db}"
        scheme = uri.split(":", 1)[0].split("+", 1)[0]
        if scheme not in _TRACKING_SCHEMES:
            raise InputError(
                f"{place}: {shorten_place(uri)} is not an address that MLflow takes; "
                "give http(s)://HOST:PORT of a server, or sqlite:////PATH/mlflow.db"
            )
        if scheme == "sqlite" and (":memory:" in uri or not uri.partition(":")[2].strip("/")):
            raise InputError(
                f"{place}: {shorten_place(uri)} is a database in memory, which ends with its process; give "
                "sqlite:////PATH/mlflow.db"
            )
        return uri

    def artifact_location(self, tracking_uri: str) -> str | None:
        """Where new experiments keep their files: in the home beside a local SQLite, else as the server decides."""
        return self.artifacts.as_uri() if tracking_uri.startswith("sqlite:") else None


def sqlite_file(tracking_uri: str) -> Path | None:
    """The database file behind a SQLite tracking URI, or None for any other."""
    prefix = "sqlite:///"
    return Path(tracking_uri.removeprefix(prefix).partition("?")[0]) if tracking_uri.startswith(prefix) else None
