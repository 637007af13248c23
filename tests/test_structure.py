"""The house keeps its plan: imports point one way, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"trainables": set(), "search_spaces": {"trainables"}, "tuner": {"trainables", "search_spaces"}}

FLOORS = {
    "trainables": ("files", "backbones", "data", "features", "training", "lanes"),
    "tuner": (
        *("records", "tracking", "models", "pictures", "cluster", "doctor"),
        *("networks", "search", "report", "ending", "sweep", "commands"),
    ),
}
"""The rooms of a folder: each stands on those before it alone, and on what lies beside them that all share."""
SHARED = {
    "trainables": {"config", "errors", "jobs", "frozen_prefix", "memory", "ranks"},
    "tuner": {"paths", "outcomes", "notebook", "interrupts", "progress"},
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        foreign = (imports_of(path) & set(ROOMS)) - ROOMS[room] - {room}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def rooms_used(path: Path, folder: str) -> set[str]:
    """What a file takes from a folder: a room, or a file beside the rooms."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {node.module.split(".")[1] for node in nodes if (node.module or "").startswith(f"{folder}.")}


@pytest.mark.parametrize(("folder", "room"), [(folder, room) for folder in FLOORS for room in FLOORS[folder]])
def test_a_room_stands_on_those_below_it(folder: str, room: str) -> None:
    below = {*FLOORS[folder][: FLOORS[folder].index(room) + 1], *SHARED[folder]}
    place = ROOT / folder / room
    files = list(place.glob("*.py")) or [place.with_suffix(".py")]
    for path in files:
        above = rooms_used(path, folder) - below
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize("folder", FLOORS)
def test_every_folder_is_a_room(folder: str) -> None:
    rooms = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    assert rooms == set(FLOORS[folder]) - {"sweep"}


def test_workers_know_neither_mlflow_nor_optuna_nor_the_command_line() -> None:
    for path in (ROOT / "trainables").rglob("*.py"):
        assert not imports_of(path) & {"mlflow", "optuna", "typer", "rich"}, path


def test_only_the_glue_knows_ray() -> None:
    glue = {"lane.py", "trial.py"}
    for path in (ROOT / "trainables").rglob("*.py"):
        assert ("ray" in imports_of(path)) == (path.name in glue), path


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import tuner.cli", {"torch", "ray", "mlflow", "optuna", "pandas", "pydantic", "numpy"}),
        ("import trainables.lanes.trial", {"torch", "mlflow", "optuna"}),
        ("import trainables.lanes.switchboard", {"torch", "ray", "mlflow", "optuna", "pandas"}),
        ("import tuner", {"torch", "ray", "mlflow", "optuna", "pandas"}),
        (
            "import tuner.networks.preparing, tuner.tracking.runs, tuner.cluster.lanes, tuner.networks.pretraining",
            {"torch", "mlflow", "optuna"},
        ),
    ],
)
def test_heavy_packages_stay_out(statement: str, forbidden: set[str]) -> None:
    assert not modules_after(statement) & forbidden


def test_what_a_benchmark_takes_out_is_there_to_be_taken() -> None:
    """`versus_plain_ray.py --ablation` patches modules as they are imported, by name."""
    statement = (
        "import trainables.lanes.lane, trainables.data.table as table, trainables.data.kept_views as kept; "
        "assert kept.ViewCache.slot() is None; assert table.ImageTable.image.__module__ == 'sitecustomize'; "
        "assert trainables.lanes.lane._Line.next_order.__module__ == 'sitecustomize'"
    )
    folder = ROOT / "benchmarks" / "ablations"
    environment = os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "THAW_ABLATIONS": "lanes,packed_images",
        "THAW_ABLATION_IMAGES": "pictures",
    }
    done = subprocess.run(
        [sys.executable, "-c", statement], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
