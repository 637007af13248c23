"""Where things lie, and what a home or an address must look like."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainables.errors import InputError
from trainables.files.typed_path import expand, path_problem
from trainables.wording import printable
from tuner.commands.arguments import file_to_write
from tuner.paths import HomePaths, sqlite_file


def test_home_comes_from_the_environment_or_the_user(tmp_path: Path) -> None:
    assert HomePaths.from_env({"THAW_HOME": str(tmp_path)}).local == tmp_path
    assert HomePaths.from_env({"THAW_HOME": ""}).local == Path("~/.thaw").expanduser()
    assert HomePaths.at((tmp_path / "a b").as_uri()).local == tmp_path / "a b"


def test_what_no_file_can_be_called_is_refused_with_its_place() -> None:
    assert expand("a/~b") == Path("a/~b")
    assert expand("ä" * 127) == Path("ä" * 127)
    with pytest.raises(InputError, match=r"^predict: 'a\\x00b': no path holds a NUL character; take it out$"):
        expand("a\0b", "predict")
    with pytest.raises(InputError, match=r"^'ä+': no path is so long, 256 bytes; give that of a file or folder$"):
        expand("ä" * 128)
    with pytest.raises(InputError, match=r"^'(a/)+[^ ]*\.\.\.[^ ]*': no path is so long, 4096 bytes") as refused:
        expand("a/" * 2048)
    assert len(str(refused.value)) < 500
    with pytest.raises(InputError, match=r"^model.weights: ~nobody-here/a.pth: ~nobody-here would be the home of"):
        expand("~nobody-here/a.pth", "model.weights")


def test_half_a_letter_is_no_path() -> None:
    with pytest.raises(InputError, match="no path holds half a letter"):
        expand("\ud800")
    assert path_problem("s\udcff") is None  # as Python reads a byte of a name that is no UTF-8


def test_a_file_to_write_is_checked_before_any_work(tmp_path: Path) -> None:
    def refusal(name: str, ending: str = "") -> str:
        with pytest.raises(InputError) as refused:
            file_to_write(tmp_path / name, "--out", ending)
        return str(refused.value)

    (tmp_path / "there.yaml").write_text("")
    assert file_to_write(tmp_path / "new.PNG", "--out", ".png") == tmp_path / "new.PNG"
    assert file_to_write(tmp_path / "there.yaml", "--out", replaces=True) == tmp_path / "there.yaml"
    assert refusal("there.yaml").endswith("there.yaml is there already; name another file, or remove it")
    assert refusal("no/such/a.yaml") == f"--out: there is no folder {tmp_path}/no/such; make it first"
    assert refusal("there.yaml/a").startswith(f"--out: there is no folder {tmp_path}/there.yaml")
    assert refusal("").endswith("is a folder; give a file in it")
    assert refusal("a.jpg", ".png").endswith("a.jpg is to be a PNG; end its name in .png")
    assert f"no path is so long, {len(str(tmp_path)) + 257} bytes; give" in refusal("x" * 256)


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert printable("two\nlines of Größe in 部品\u3000a") == "two\nlines of Größe in 部品\u3000a"
    assert printable("\x1b[31m\u202e\t\0") == r"\x1b[31m\u202e\t\x00"


def test_everything_lies_under_the_home(tmp_path: Path) -> None:
    home = HomePaths.at(tmp_path)
    sweep = home.sweep("digits")
    trial = sweep.trial(7)
    for path in (home.tables, home.weights, home.mlflow_db, home.artifacts, sweep.journal, sweep.ledger, sweep.ray):
        assert path.is_relative_to(tmp_path)
    assert trial.root == tmp_path / "sweeps" / "digits" / "trials" / "0007"
    assert list(tmp_path.iterdir()) == []  # naming creates nothing


def test_other_nodes_get_a_path_or_the_place_in_shared_storage(tmp_path: Path) -> None:
    home = HomePaths.at(tmp_path)
    assert home.uri_of(home.weights / "abc.safetensors") == str(tmp_path / "weights" / "abc.safetensors")
    shared = HomePaths.at("s3://bucket/thaw/")
    assert shared.is_shared
    assert shared.uri_of(shared.weights / "abc.safetensors") == "s3://bucket/thaw/weights/abc.safetensors"
    assert shared.local != HomePaths.at("s3://bucket/other").local
    with pytest.raises(ValueError, match="not in the subpath"):
        home.uri_of(tmp_path.parent / "elsewhere")


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "white space", "x" * 101])
def test_a_sweep_name_must_make_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a sweep; use letters"):
        HomePaths.at(tmp_path).sweep(name)


def test_sweep_names_are_those_with_a_journal(tmp_path: Path) -> None:
    home = HomePaths.at(tmp_path)
    assert home.sweep_names() == []
    for name in ("b", "a", "empty"):
        home.sweep(name).root.mkdir(parents=True)
    for name in ("b", "a"):
        home.sweep(name).journal.write_text("{}\n")
    assert home.sweep_names() == ["a", "b"]


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_records_are_not_kept_in_memory(tmp_path: Path, uri: str) -> None:
    with pytest.raises(
        InputError, match=r"^tracking.uri: '.*' is a database in memory, which ends with its process; give"
    ):
        HomePaths.at(tmp_path).tracking_uri(uri, {})


def test_the_specs_address_wins_over_the_environment_over_sqlite(tmp_path: Path) -> None:
    home = HomePaths.at(tmp_path)
    environ = {"MLFLOW_TRACKING_URI": "http://host:5000"}
    assert home.tracking_uri("https://other:1", environ) == "https://other:1"
    assert home.tracking_uri(None, environ) == "http://host:5000"
    uri = home.tracking_uri(None, {})
    assert sqlite_file(uri) == home.mlflow_db
    assert home.artifact_location(uri) == home.artifacts.as_uri()
    assert sqlite_file("http://host:5000") is None
    assert home.artifact_location("http://host:5000") is None


@pytest.mark.parametrize("uri", ["/some/folder", "mlruns", "file:///some/folder"])
def test_a_folder_is_no_tracking_address(tmp_path: Path, uri: str) -> None:
    with pytest.raises(InputError, match="not an address that MLflow takes; give http"):
        HomePaths.at(tmp_path).tracking_uri(uri, {})
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        HomePaths.at(tmp_path).tracking_uri(None, {"MLFLOW_TRACKING_URI": uri})


def test_options_of_a_database_are_no_part_of_its_file() -> None:
    assert sqlite_file("sqlite:////home/kim/mlflow.db?timeout=60") == Path("/home/kim/mlflow.db")
