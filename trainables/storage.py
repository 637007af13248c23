"""Small files in a folder or behind a storage URI: read whole, written whole or not at all."""

from __future__ import annotations

import uuid
from pathlib import Path

import pyarrow.fs


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a plain path rather than ``scheme://...``."""
    return "://" not in uri


def join(uri: str, *parts: str) -> str:
    """``uri`` with ``parts`` below it, for paths and URIs alike."""
    return "/".join([uri.rstrip("/"), *parts])


def write_bytes(uri: str, content: bytes) -> None:
    """Writes a file that appears whole or not at all.

    A local file is written beside its place and moved there; an object store's put is atomic by itself.
    """
    if is_local(uri):
        path = Path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return
    filesystem, name = pyarrow.fs.FileSystem.from_uri(uri)
    filesystem.create_dir(name.rsplit("/", 1)[0], recursive=True)
    with filesystem.open_output_stream(name) as stream:
        stream.write(content)


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: There is none.
    """
    if is_local(uri):
        return Path(uri).read_bytes()
    filesystem, name = pyarrow.fs.FileSystem.from_uri(uri)
    with filesystem.open_input_file(name) as stream:
        return stream.read()
