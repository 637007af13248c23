"""The page of mistakes is what the program does: each is made again, and its line compared."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
from mistakes_made import MISTAKES, Mistake, classes, lines_of, locked_mlflow, plan_of, run_thaw
from mistakes_page import DISK_FULL, LOCKED, READ_ONLY, row
from PIL import Image

from trainables.errors import InputError
from tuner.tracking.access import check_access, without_password

PAGE = (Path(__file__).parents[2] / "docs" / "mistakes.md").read_text(encoding="utf-8")
Disk = Callable[[Path, str], None]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.key)
def test_a_mistake_is_said_as_the_page_has_it(mistake: Mistake, tmp_path: Path) -> None:
    code, said = lines_of(mistake, tmp_path)
    assert code == (0 if mistake.goes_on else 2), said
    assert mistake.goes_on or len(said) == 1, said
    assert row(mistake, said) in PAGE.splitlines(), row(mistake, said)
    assert not (tmp_path / "home" / "sweeps").exists(), "a dry run leaves no sweep behind"


def test_the_page_has_no_other_mistakes() -> None:
    titles = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.splitlines() if line.startswith("| ")]
    table = titles[titles.index("---") + 1 :]
    assert table[: len(MISTAKES)] == [mistake.title for mistake in MISTAKES]


def test_no_room_for_the_pictures(mount: Disk, tmp_path: Path) -> None:
    for number, name in enumerate(("bolt", "nut")):
        for each in range(30):
            path = tmp_path / "parts" / name / f"{each}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((200, 200), 50 + number + each).convert("RGB").save(path)
    mount(tmp_path / "home" / "tables", "size=1m")
    mistake = Mistake("full", lambda _: plan_of(tmp_path / "parts", "data.image_size_px=128"))
    code, said = lines_of(mistake, tmp_path)
    assert (code, said) == (2, [DISK_FULL])
    assert DISK_FULL in PAGE
    assert not [path for path in (tmp_path / "home" / "tables").rglob("*") if path.is_file()], "the room is given back"


def test_a_working_directory_that_cannot_be_written_to(mount: Disk, tmp_path: Path) -> None:
    arguments = plan_of(classes(tmp_path / "parts", "bolt", "nut"))
    mount(tmp_path / "cwd", "ro")
    with chdir(tmp_path / "cwd"):
        code, out, err = run_thaw(arguments, tmp_path)
    assert code == 0, err
    assert "bolt" in out


def test_a_home_that_cannot_be_written_to(mount: Disk, tmp_path: Path) -> None:
    root = classes(tmp_path / "parts", "bolt", "nut")
    mount(tmp_path / "home", "ro")
    assert lines_of(Mistake("read-only", lambda _: plan_of(root)), tmp_path) == (2, [READ_ONLY])
    assert READ_ONLY in PAGE


def test_a_wrong_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with locked_mlflow() as place:
        root = classes(tmp_path / "parts", "bolt", "nut")
        wrong = Mistake("locked", lambda _: plan_of(root, f"tracking.uri=http://kim@{place}"))
        assert lines_of(wrong, tmp_path) == (2, [LOCKED])
        assert LOCKED in PAGE
        with pytest.raises(InputError, match="does not take"):
            check_access(f"http://{place}", {"MLFLOW_TRACKING_TOKEN": "wrong"})
        check_access(f"http://kim:right@{place}", {})
        check_access(f"http://{place}", {"MLFLOW_TRACKING_USERNAME": "kim", "MLFLOW_TRACKING_PASSWORD": "right"})
    check_access(f"http://kim:wrong@{place}", {})  # nobody is there now: that is no mistake
    assert without_password("https://kim:wrong@host:5000/a") == "https://host:5000/a"
    assert without_password("mssql+pyodbc://host/a?PWD=wrong") == "mssql+pyodbc://host/a"
    assert without_password("sqlite:////home/kim/mlflow.db") == "sqlite:////home/kim/mlflow.db"


def test_a_database_that_does_not_take_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy

    uri = "postgresql://kim:secret@host/mlflow"
    build = sqlalchemy.create_engine

    def lacks(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'psycopg2'")

    monkeypatch.setattr(sqlalchemy, "create_engine", lacks)
    with pytest.raises(
        InputError, match=r"MLflow at postgresql://host/mlflow needs a driver .*psycopg2'\): install it"
    ):
        check_access(uri)

    def says(text: str) -> None:
        def connect(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError(text)

        monkeypatch.setattr(sqlalchemy, "create_engine", lambda *_, **__: build("sqlite://", creator=connect))

    for text in ('FATAL:  password authentication failed for user "kim"', "(1045, \"Access denied for user 'kim'\")"):
        says(text)
        with pytest.raises(InputError, match=r"the database at postgresql://host/mlflow does not take this user"):
            check_access(uri)
    says("could not connect to server: Connection refused")
    check_access(uri)  # away, which is no mistake
