"""The house keeps its plan: imports point one way, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"trainables": set(), "search_spaces": {"trainables"}, "tuner": {"trainables", "search_spaces"}}

FLOORS = {
    "trainables": ("files", "backbones", "data", "features", "training", "lanes"),
    "tuner": (
        *("records", "progress", "tracking", "models", "pictures", "cluster", "doctor"),
        *("networks", "search", "report", "ending", "sweep", "commands", "cli", "__main__"),
    ),
}
"""The rooms of a folder, and files that stand as one: each stands on those before it alone, and on what all share."""
SHARED = {
    "trainables": ("errors", "wording", "config", "jobs", "frozen_prefix", "memory", "ranks"),
    "tuner": ("paths", "metric_names", "outcomes", "notebook"),
}


def imported_by(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, and every name out of one, dotted from the root."""
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def imports_of(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_by(path)}


def test_names_of_imports_are_found_whoever_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "tuner" / "search").mkdir(parents=True)
    file = tmp_path / "tuner" / "search" / "asha.py"
    file.write_text(
        "import tuner.a.b, os\nfrom tuner import c\nfrom tuner.d import e\nfrom . import f\n"
        "def g():\n    from ..h import i\n    from .j import k\n"
    )
    expected = {"tuner.a.b", "os", "tuner.c", "tuner.d.e", "tuner.search.f", "tuner.h.i", "tuner.search.j.k"}
    assert imported_by(file) == expected


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        foreign = (imports_of(path) & set(ROOMS)) - ROOMS[room] - {room}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def rooms_used(path: Path, folder: str) -> set[str]:
    """What a file takes from a folder: a room, a file beside the rooms, or a name that the folder itself hands out."""
    return {name.split(".")[1] for name in imported_by(path) if name.startswith(f"{folder}.")}


def files_of(folder: str, room: str) -> list[Path]:
    place = ROOT / folder / room
    files = [place.with_suffix(".py")] if place.with_suffix(".py").exists() else list(place.rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize(("folder", "room"), [(folder, room) for folder in FLOORS for room in FLOORS[folder]])
def test_a_room_stands_on_those_below_it(folder: str, room: str) -> None:
    below = {*FLOORS[folder][: FLOORS[folder].index(room) + 1], *SHARED[folder]}
    for path in files_of(folder, room):
        above = rooms_used(path, folder) - below
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize(("folder", "room"), [(folder, room) for folder in SHARED for room in SHARED[folder]])
def test_what_all_share_stands_on_no_room(folder: str, room: str) -> None:
    for path in files_of(folder, room):
        assert rooms_used(path, folder) <= set(SHARED[folder]), path


@pytest.mark.parametrize("folder", FLOORS)
def test_everything_in_a_folder_has_its_floor(folder: str) -> None:
    found = {path.stem for path in (ROOT / folder).iterdir() if path.is_dir() or path.suffix == ".py"}
    assert found - {"__pycache__", "__init__"} == {*FLOORS[folder], *SHARED[folder]}


def test_the_plan_names_every_room() -> None:
    """CONTRIBUTING.md's table of rooms, in the order of their floors."""
    table = re.findall(r"^\| `(trainables|tuner)/(\w+)(?:/|\.py)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    files = {"progress", "cli", "__main__"}
    assert table == [(folder, room) for folder in FLOORS for room in FLOORS[folder] if room not in files]


def test_the_distribution_holds_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    packages = {path.relative_to(ROOT).as_posix().replace("/", ".") for path in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_workers_know_neither_mlflow_nor_optuna_nor_the_command_line() -> None:
    for path in (ROOT / "trainables").rglob("*.py"):
        assert not imports_of(path) & {"mlflow", "optuna", "typer", "rich"}, path


def test_only_the_glue_knows_ray() -> None:
    glue = {ROOT / "trainables" / "lanes" / name for name in ("lane.py", "trial.py")}
    for path in (ROOT / "trainables").rglob("*.py"):
        assert ("ray" in imports_of(path)) == (path in glue), path


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
