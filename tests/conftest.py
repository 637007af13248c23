"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile(
    "thaw", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("thaw")

LONG_TESTS_UNTIL = float(os.environ.get("THAW_LONG_TESTS_UNTIL") or 0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pictures and weights: the folder named by THAW_SHARED_DATA, else `shared/data` beside the checkout."""
    root = Path(os.environ.get("THAW_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / "weights").is_dir():
        pytest.skip(f"no real pictures and weights at {root}: set THAW_SHARED_DATA")
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What many tests have in common.

    Where Ray runs in the tests' process, what it deprecates in itself is no error of ours. And what trains large
    networks in both precisions takes minutes: bf16 ten times as long on a processor without units for it.
    """
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"))
        parameters = getattr(item, "callspec", None)
        if item.get_closest_marker("slow") and parameters and "precision" in parameters.params:
            item.add_marker(pytest.mark.long)
    if LONG_TESTS_UNTIL:
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if not item.get_closest_marker("long")] + _begun_elsewhere(long)


def _begun_elsewhere(items: list[pytest.Item]) -> list[pytest.Item]:
    """Another module first in each run, so that when time runs out it is not always the same ones that are left."""
    modules = list(dict.fromkeys(item.nodeid.partition("::")[0] for item in items))
    first = int(LONG_TESTS_UNTIL) % max(1, len(modules))
    place = {module: number for number, module in enumerate(modules[first:] + modules[:first])}
    return sorted(items, key=lambda item: place[item.nodeid.partition("::")[0]])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where time is bounded (``THAW_LONG_TESTS_UNTIL``, seconds since 1970), no long test begins after its end."""
    if LONG_TESTS_UNTIL and item.get_closest_marker("long") and time.time() > LONG_TESTS_UNTIL:
        pytest.skip("the time for long tests is over; `make long-tests` takes as long as they need")


@pytest.fixture
def mount() -> Iterator[Callable[[Path, str], None]]:
    """Makes a folder a disk of its own, or changes the options of one."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    mounted: list[Path] = []

    def mount_at(folder: Path, options: str) -> None:
        if folder in mounted:
            subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if made.returncode:
            pytest.skip(f"no disk of its own may be mounted here: {made.stderr.strip()}")
        mounted.append(folder)

    yield mount_at
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray on this machine for every test that needs one."""
    import ray

    from tuner.cluster.ray_cluster import start_ray

    is_ours = start_ray()
    yield
    if is_ours:
        ray.shutdown()
