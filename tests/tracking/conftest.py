"""One MLflow database for these tests: creating one takes more than a second, so they share it by experiments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuner.tracking.mlflow_client import open_client


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def client(tracking_uri: str) -> Any:
    return open_client(tracking_uri)


@pytest.fixture(autouse=True)
def _mlflow_global_state_is_left_alone() -> Iterator[None]:
    """MLflow's own default address would send a user's other work elsewhere."""
    before = _addresses()
    yield
    assert _addresses() == before
    assert not Path("mlruns").exists()
    assert not Path("mlflow.db").exists()


def _addresses() -> list[str | None]:
    return [os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """MLflow 3.17 uses what SQLAlchemy 2.1 calls outdated; neither is ours to change."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"))
