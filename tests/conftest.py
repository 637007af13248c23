"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pictures and weights: the folder named by THAW_SHARED_DATA, else `shared/data` beside the checkout."""
    root = Path(os.environ.get("THAW_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / "weights").is_dir():
        pytest.skip(f"no real pictures and weights at {root}: set THAW_SHARED_DATA")
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where Ray runs in the tests' process, what it deprecates in itself is no error of ours."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray on this machine for every test that needs one."""
    import ray

    from tuner.cluster import start_ray

    is_ours = start_ray()
    yield
    if is_ours:
        ray.shutdown()
