"""A sweep that goes to another machine: its runs and its champion arrive at that one's MLflow, all of them, once."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults_support import NAME, Sweep
from running_thaw import numbers_of, start_thaw
from servers import Server, reported, rows, told

from tuner.paths import HomePaths
from tuner.records.journal import read_trials

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


class Machine:
    """Another machine: a home and an MLflow server of its own, and nothing of where the sweep ran."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.home = HomePaths.at(folder / "there" / "home")
        self.database = folder / "mlflow.db"
        self._environment = {"MLFLOW_TRACKING_URI": server.uri, "HOME": str(folder / "there")}
        Path(self.home.root).mkdir(parents=True)

    def run(self, *arguments: str) -> str:
        out, err = self.start(*arguments).communicate(timeout=240)
        return out + err

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return start_thaw(Path(self.home.root), *arguments, **self._environment)

    def contents(self) -> dict[str, list[tuple[object, ...]]]:
        """All that must be there once, and the same whatever is repeated."""
        return {
            "runs": rows(self.database, "SELECT name, status FROM runs ORDER BY name"),
            "metrics": rows(
                self.database, "SELECT run_uuid, key, step, timestamp, value FROM metrics ORDER BY 1, 2, 3"
            ),
            "params": rows(self.database, "SELECT run_uuid, key, value FROM params ORDER BY 1, 2"),
            "versions": rows(self.database, "SELECT name, version, run_id FROM model_versions"),
            "aliases": rows(self.database, "SELECT name, alias, version FROM registered_model_aliases"),
        }


def kill_when(process: subprocess.Popen[str], database: Path, query: str) -> None:
    """kill -9 as soon as the database has an answer."""
    while process.poll() is None and not rows(database, query):
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)


def test_everything_arrives_once_however_often_the_import_is_cut_off(
    undisturbed: Sweep, server: Server, tmp_path: Path
) -> None:
    file, machine = tmp_path / "faulty.zip", Machine(tmp_path, server)
    undisturbed.finish("export-sweep", NAME, str(file))
    server.await_answer()
    importing = ("import-sweep", str(file))
    kill_when(machine.start(*importing), machine.database, "SELECT * FROM params WHERE key = 'lr' LIMIT 1 OFFSET 2")
    assert len(rows(machine.database, "SELECT name FROM runs")) < 1 + len(undisturbed.trials()), "killed in mid-way"
    kill_when(machine.start(*importing), machine.database, "SELECT * FROM logged_models")
    assert not rows(machine.database, "SELECT * FROM registered_model_aliases"), "killed before the champion was one"
    # Whoever does not know the file any more resumes.
    assert "registered: models:/faulty/1, champion" in machine.run("resume", NAME)

    there = read_trials(machine.home.sweep(NAME).journal)
    assert numbers_of(there) == undisturbed.numbers()
    found = machine.contents()
    runs = told(machine.database)
    assert {name: points for name, points in runs.items() if name.startswith("trial")} == reported(there)
    names = sorted(name for name, _ in found["runs"])
    assert names == sorted([NAME, *reported(there)])
    assert {status for _, status in found["runs"]} == {"FINISHED"}
    assert [version[:2] for version in found["versions"]] == [("faulty", 1)]
    assert found["aliases"] == [("faulty", "champion", 1)]
    for wanted in ("lr", "batch_size", "freeze_depth"):
        assert sum(key == wanted for _, key, _ in found["params"]) == len(there)
    for artifact in ("spec.yaml", "sweep.png", "data.json"):
        assert len(list((tmp_path / "artifacts").rglob(artifact))) == 1, "sent from where it lies now"

    assert "Sweep faulty is here" in machine.run(*importing)
    assert "is finished" in machine.run("resume", NAME)
    assert machine.contents() == found
