"""A storage URI without a cloud: pyarrow reaches this folder through fsspec, in any process, and never as a path."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """The folder behind `bucket_uri`, to look into or to damage."""
    return tmp_path / "bucket"


@pytest.fixture
def bucket_uri(bucket: Path) -> str:
    return f"fsspec+{bucket.as_uri()}"


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This node's cache, empty."""
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "node"))
    return tmp_path / "node"
