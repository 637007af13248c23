"""The store behind the store: entries on a shared filesystem, read through and written behind.

In: a storage URI. Out: manifests and shards of other nodes, and copies of this node's for them. The first failure turns
it off with one warning; the local store goes on alone. Nothing is ever evicted there.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs

from trainables.errors import InputError
from trainables.features.layout import MANIFEST_NAME, Manifest, ShardFile
from trainables.features.switch import Switch
from trainables.files.locks import mutex
from trainables.files.storage import is_local, join, open_filesystem, publish_files, read_bytes

_PUBLISHING_NAME = "publishing.lock"
_CHUNK_BYTES = 4 << 20
# What pyarrow raises for a host that is away, a bucket that is closed, a disk that is full.
_TROUBLE = (OSError, pa.ArrowException)

_T = TypeVar("_T")


class SharedError(Exception):
    """The shared storage does not answer, or not in time."""


class SharedStore:
    """Entries below a storage URI.

    Args:
        uri: Any that pyarrow knows, or a path.
        timeout_s: How long the first answer for an entry may take.

    Raises:
        InputError: No filesystem is known for the URI's scheme.
    """

    def __init__(self, uri: str, timeout_s: float = 10.0) -> None:
        self._uri = Path(uri).absolute().as_uri() if is_local(uri) else uri
        self._timeout_s = timeout_s
        place = _without_secrets(uri)
        self.switch = Switch(f"feature cache: shared storage {place} cannot be used", "the local cache goes on alone")
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        try:
            self._answer(lambda: open_filesystem(self._uri))
        except ValueError as error:
            why = str(error).replace(uri, place)  # pyarrow says the whole of it, keys too
            raise InputError(f"cache.shared_uri: {place}: {why}; give a URI such as s3://bucket/folder") from error
        except SharedError as error:
            self.switch.turn_off(error)

    def manifest(self, digest: str) -> str | None:
        """The manifest of an entry; None where there is none, or the storage is off."""
        if not self.switch.is_on:
            return None
        try:
            return self._answer(lambda: read_bytes(join(self._uri, digest, MANIFEST_NAME))).decode(errors="replace")
        except FileNotFoundError:
            return None
        except SharedError as error:
            self.switch.turn_off(error)
            return None

    def chunks(self, digest: str, shard: ShardFile) -> Iterator[bytes]:
        """The bytes of a shard, in pieces.

        Raises:
            SharedError: They could not be read.
        """
        try:
            with _open_input(join(self._uri, digest, shard.name)) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
        except _TROUBLE as error:
            raise SharedError(str(error)) from error

    def forget(self, digest: str) -> None:
        """Takes the manifest of a damaged entry away, so that the next copy replaces it."""
        with suppress(*_TROUBLE):
            filesystem, root = open_filesystem(join(self._uri, digest))
            shards = pyarrow.fs.FileSelector(root, allow_not_found=True)
            with suppress(FileNotFoundError):
                filesystem.delete_file(f"{root}/{MANIFEST_NAME}")
            for info in filesystem.get_file_info(shards):
                filesystem.delete_file(info.path)

    def publish(self, folder: Path, manifest: Manifest, on_done: Callable[[], None]) -> None:
        """Copies a complete entry there, later; ``on_done`` is called when that is over, well or not."""

        def copy() -> None:
            try:
                # One process of a machine is enough; who comes meanwhile leaves it to that one.
                with mutex(folder / _PUBLISHING_NAME, 0.0) as is_alone:
                    if is_alone and self.switch.is_on:
                        names = [*(shard.name for shard in manifest.shards), MANIFEST_NAME]
                        publish_files(folder, names, join(self._uri, folder.name))
            except _TROUBLE as error:
                self.switch.turn_off(error)
            finally:
                on_done()

        with self._lock:
            self._jobs.put(copy)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="shared features", daemon=True)
                self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Waits until all copies are made; returns whether they were in time."""
        done = threading.Event()
        with self._lock:
            if self._thread is None:
                return True
            self._jobs.put(done.set)
        return done.wait(timeout_s)

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def _answer(self, ask: Callable[[], _T]) -> _T:
        """What ``ask`` returns, in time.

        Raises:
            SharedError: It fails or takes too long.
            FileNotFoundError: From ``ask``.
            ValueError: From ``ask``.
        """
        answers: queue.Queue[_T | Exception] = queue.Queue()

        def run() -> None:
            try:
                answers.put(ask())
            except (ValueError, *_TROUBLE) as error:
                answers.put(error)

        # A thread of its own, because a host that swallows packets is only noticed after minutes.
        threading.Thread(target=run, name="shared features", daemon=True).start()
        try:
            answer = answers.get(timeout=self._timeout_s)
        except queue.Empty:
            raise SharedError(f"no answer within {self._timeout_s:.0f} s") from None
        if isinstance(answer, (ValueError, FileNotFoundError)):
            raise answer
        if isinstance(answer, Exception):
            raise SharedError(str(answer)) from answer
        return answer


def _open_input(uri: str) -> pa.NativeFile:
    filesystem, name = open_filesystem(uri)
    return filesystem.open_input_stream(name)


def _without_secrets(uri: str) -> str:
    """A URI fit to be logged: pyarrow takes access keys before the host and among the options."""
    if is_local(uri):
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
