"""An undisturbed sweep, to compare with, and a folder per disturbed one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faults_support import SPEC, Sweep


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"))
    sweep.finish()
    return sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    made = Sweep(tmp_path)
    yield made
    made.end()


@pytest.fixture
def patient_sweep(tmp_path: Path) -> Iterator[Sweep]:
    """One in which a lane that waits for a test is not taken for one that hangs."""
    made = Sweep(tmp_path, SPEC.replace("trial_timeout_s: 6", "trial_timeout_s: 300"))
    yield made
    made.end()


@pytest.fixture(autouse=True)
def shared_memory_is_as_before() -> Iterator[None]:
    """What a test puts into /dev/shm it takes away; what some process uses may be another test's."""
    before = set(Path("/dev/shm").iterdir())
    yield
    # A folder is an MLflow server's, which cannot clean up when it is killed.
    left = {str(path) for path in set(Path("/dev/shm").iterdir()) - before if path.is_file()}
    in_use: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps") if left else ():
        with suppress(OSError):
            in_use |= {path for path in left if path in maps.read_text()}
    assert left <= in_use
