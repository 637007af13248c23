"""What the doctor finds, each made for real: damage, leftovers, an absent server, a disk that cannot be written."""

from __future__ import annotations

import fcntl
import http.server
import importlib.metadata
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from search_spaces.loading import dump_spec, load_spec
from trainables.errors import InputError
from trainables.jobs import BEST_CHECKPOINT, LAST_CHECKPOINT
from trainables.training.checkpoint import Checkpoint, save_checkpoint
from tuner.cli import app
from tuner.doctor import installation, leaks
from tuner.doctor.homes import check_leftovers, check_sweep, check_sweeps, check_weights
from tuner.doctor.installation import Finding, check_disk, check_installation, check_mlflow, check_ray
from tuner.paths import HomePaths
from tuner.records.journal import Journal

LONG_AGO = time.time() - 3600


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HomePaths:
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    made = HomePaths.from_env()
    made.local.mkdir(parents=True)
    return made


def levels(findings: Iterator[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_groups_of_ended_drivers_are_found_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def group(name: str, job: str, state: str = "CREATED", *, is_detached: bool = False) -> SimpleNamespace:
        bundles = [{"bundle_id": {}, "unit_resources": {"CPU": 1.0}}, {"unit_resources": {"CPU": 0.5, "GPU": 1.0}}]
        return SimpleNamespace(
            placement_group_id=name, creator_job_id=job, state=state, is_detached=is_detached, bundles=bundles
        )

    groups = [
        group("aa", "01"),
        group("bb", "01", "PENDING"),
        group("cc", "01", "REMOVED"),
        group("dd", "01", is_detached=True),
        group("ee", "02"),
    ]
    cluster = {"RAY_ADDRESS": "head:6379"}
    monkeypatch.setattr(leaks, "_groups_and_ended_jobs", lambda address: (groups, {"01"}))
    removed: list[object] = []
    monkeypatch.setattr(leaks, "_remove", lambda address, ids: removed.extend([address, *ids]) or "2 removed")
    (found,) = leaks.check_placement_groups(cluster)
    assert found.level == "warning"
    assert found.text == "2 placement groups of drivers that have ended hold 3 CPU, 2 GPU"
    assert found.fix is not None
    assert found.fix() == "2 removed"
    assert removed == ["head:6379", "aa", "bb"]
    monkeypatch.setattr(leaks, "_groups_and_ended_jobs", lambda address: (groups[2:], {"01"}))
    (fine,) = leaks.check_placement_groups(cluster)
    assert (fine.level, fine.fix) == ("ok", None)
    assert list(leaks.check_placement_groups({})) == []


def test_this_installation_fits_and_a_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (fine,) = check_installation()
    assert fine.level == "ok", fine.text
    wanted = ["numpy>=99", "pillow>=1", "no-such-package>=1", "sphinx; extra == 'docs'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    numpy, missing = check_installation()
    assert (numpy.level, missing.level) == ("error", "error")
    assert "wanted: >=99" in numpy.text
    assert "no-such-package is not installed" in missing.text


def test_without_an_address_other_ray_instances_are_left_alone(tmp_path: Path) -> None:
    for number, name in enumerate(["gcs_server", "raylet", "gcs_server"], start=100):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "comm").write_text(f"{name}\n")
    (found,) = check_ray({}, tmp_path)
    hint = "RAY_ADDRESS=HOST:PORT would have it join one"
    assert (found.level, found.text) == ("ok", f"2 other instances here; a sweep starts its own; {hint}")
    (tmp_path / "102" / "comm").write_text("python\n")
    (one,) = check_ray({}, tmp_path)
    assert one.text.startswith("1 other instance here; a sweep starts its own")
    (tmp_path / "100" / "comm").write_text("python\n")
    assert [found.text for found in check_ray({}, tmp_path)] == ["no other instances here; a sweep starts its own"]


def test_an_address_must_answer_and_wants_a_token(tmp_path: Path) -> None:
    token = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    closed, no_token = check_ray({"RAY_ADDRESS": "127.0.0.1:1", **token}, tmp_path)
    assert "nothing answers there" in closed.text
    assert "token" in no_token.text
    assert levels(iter([closed, no_token])) == ["error", "error"]
    (still,) = check_ray({"RAY_ADDRESS": "127.0.0.1:1", "RAY_AUTH_TOKEN": "abc"}, tmp_path)
    assert "nothing answers" in still.text
    (auto,) = check_ray({"RAY_ADDRESS": "auto"}, tmp_path)
    assert auto.level == "ok"


def test_a_database_is_checked_for_damage_and_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_PATIENCE_S", 0.1)
    database = tmp_path / "mlflow.db"
    uri = f"sqlite:///{database}"
    assert levels(check_mlflow(uri)) == ["ok"]
    assert not database.exists(), "looking makes nothing"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
        connection.executemany("INSERT INTO runs VALUES (?)", [("x" * 500,)] * 200)
    assert levels(check_mlflow(uri)) == ["ok"]
    connection.execute("BEGIN IMMEDIATE")
    (locked,) = check_mlflow(uri)
    assert "locked" in locked.text
    connection.rollback()
    connection.close()
    content = bytearray(database.read_bytes())
    content[4096:9000] = b"\xff" * (9000 - 4096)
    database.write_bytes(content)
    (damaged,) = check_mlflow(uri)
    assert (damaged.level, "mlflow.db" in damaged.text) == ("error", True)


class _Answer(http.server.BaseHTTPRequestHandler):
    version: bytes | None = b""

    def do_GET(self) -> None:
        self.send_response(500 if self.version is None else 200)
        self.end_headers()
        self.wfile.write(self.version or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("version", "level"), [("ours", "ok"), ("3.0.0", "warning"), ("1.9.0", "error"), (None, "error")]
)
def test_a_server_must_answer_with_our_version(version: str | None, level: str) -> None:
    text = importlib.metadata.version("mlflow") if version == "ours" else version
    handler = type("Handler", (_Answer,), {"version": None if text is None else text.encode()})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert levels(check_mlflow(f"http://127.0.0.1:{server.server_port}")) == [level]
        server.shutdown()
    (gone,) = check_mlflow(f"http://127.0.0.1:{server.server_port}")
    assert (gone.level, "does not answer" in gone.text) == ("error", True)


def test_room_and_permission_to_write(home: HomePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "error" not in levels(check_disk(home))
    usage = installation.shutil.disk_usage(home.local)
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda _: usage._replace(free=1 << 30))
    assert levels(check_disk(home))[:3] == ["warning"] * 3
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    assert levels(check_disk(home))[:3] == ["error"] * 3
    assert not list(home.local.iterdir()), "the attempt leaves nothing"


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/sys").is_dir(), reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_an_error() -> None:
    (first, *_) = check_disk(HomePaths.at("/proc/sys/thaw"))
    assert (first.level, "cannot be written" in first.text) == ("error", True)


def test_leftovers_are_found_and_fixed_and_what_is_in_use_stays(home: HomePaths) -> None:
    entry = home.local / "features" / "ab12"
    entry.mkdir(parents=True)
    dead, held = entry / "000001.lease", entry / "000002.lease"
    torn, fresh, kept = entry / ".000001.x.tmp", home.local / ".new.y.tmp", home.local / "spec.yaml"
    partial = home.local / "tables" / "abc.partial"
    partial.parent.mkdir()
    half_imported, half_saved = home.sweeps / ".import-0", home.sweeps / "one" / f".champion.{32 * 'a'}.tmp"
    (half_imported / "report").mkdir(parents=True)
    half_saved.mkdir(parents=True)
    saving, badly_named = home.sweeps / "two" / f".champion.{32 * 'a'}.tmp", home.sweeps / "three.partial"
    for folder in (saving, badly_named):
        folder.mkdir(parents=True)
        (folder / "growing").touch()
    (half_saved / "network").write_bytes(bytes(1_500_000))
    for path in (half_saved / "network", badly_named / "growing", badly_named, saving):
        os.utime(path, (LONG_AGO, LONG_AGO))
    for path in (dead, held, torn, fresh, kept, partial):
        path.write_text("x")
    for path in (dead, held, torn, kept, partial, half_imported, half_saved):
        os.utime(path, (LONG_AGO, LONG_AGO))
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        files, claims = check_leftovers(home)
        assert "4 temporary files of processes that were killed, 1.5 MB" in files.text
        assert "1 claims" in claims.text
        assert files.fix is not None
        assert claims.fix is not None
        assert (files.fix(), claims.fix()) == ("4 removed", "1 removed")
        assert sorted(path.name for path in home.local.rglob("*") if path.is_file()) == [
            ".new.y.tmp", "000002.lease", "growing", "growing", "spec.yaml"
        ]  # fmt: skip
        assert not half_imported.exists()
        assert levels(check_leftovers(home)) == ["ok"]


def test_damaged_weights_are_found_and_removed(home: HomePaths) -> None:
    from safetensors.torch import save_file

    from trainables.backbones.weights import hash_tensors

    home.weights.mkdir()
    tensors = {"a": torch.arange(5.0)}
    whole = home.weights / f"{hash_tensors(tensors)}.safetensors"
    save_file(tensors, whole)
    assert levels(check_weights(home)) == ["ok"]
    content = bytearray(whole.read_bytes())
    content[-1] ^= 1
    whole.write_bytes(content)
    (found,) = check_weights(home)
    assert found.level == "error"
    assert found.fix is not None
    assert found.fix() == "1 removed"
    assert not whole.exists()


@pytest.fixture
def swept(home: HomePaths, tiny_spec: Path) -> HomePaths:
    """A sweep with an ended trial and one under way, both with checkpoints."""
    paths = home.sweep("tiny")
    with Journal.open(paths.journal) as journal:
        journal.append("sweep", name="tiny", params={})
        for number in range(2):
            journal.append("trial", number=number, params={"lr": 0.1})
            journal.append("epoch", number=number, epoch=1, metrics={"val/accuracy": 0.5})
        journal.append("end", number=0, outcome="completed")
    paths.spec.write_text(dump_spec(load_spec(tiny_spec)))
    for number in range(2):
        for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
            save_checkpoint(str(paths.trial(number).root / name), Checkpoint("abc", {"w": torch.ones(3)}))
    return home


def test_a_sweep_is_looked_into(swept: HomePaths) -> None:
    uri = swept.tracking_uri()
    journal, checkpoints, untold = check_sweep(swept, "tiny", uri)
    assert (journal.level, journal.remedy) == ("warning", "thaw resume tiny")
    assert (checkpoints.level, checkpoints.text) == ("ok", "4, all whole")
    assert "6 records" in untold.text
    path = swept.sweep("tiny").trial(1).root / LAST_CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1])
    with swept.sweep("tiny").journal.open("ab") as file:
        file.write(b'{"event": "ep')
    _, torn, damaged, _ = check_sweep(swept, "tiny", uri)
    assert "torn" in torn.text
    assert ("trial 1" in damaged.text, damaged.remedy) == (True, "the trial will start again")
    with Journal.open(swept.sweep("tiny").journal):
        running, *_ = check_sweep(swept, "tiny", uri)
        assert (running.level, "running now" in running.text) == ("ok", True)
        assert levels(check_sweeps(swept)) == ["ok"]
    assert levels(check_sweeps(swept)) == ["warning", "ok"]
    with pytest.raises(InputError, match="there are: tiny"):
        list(check_sweep(swept, "other", uri))


def test_the_command_fails_on_an_error_and_mends_what_it_can(swept: HomePaths) -> None:
    old = swept.local / ".x.tmp"
    old.write_text("x")
    os.utime(old, (LONG_AGO, LONG_AGO))
    runner = CliRunner()
    looked = runner.invoke(app, ["doctor", "tiny"])
    assert looked.exit_code == 0, looked.output
    for words in ("thaw resume tiny", "installation", "devices", "--fix does it", "torch 2."):
        assert words in looked.output
    assert old.exists()
    assert "1 removed" in runner.invoke(app, ["doctor", "--fix"]).output
    assert not old.exists()
    swept.mlflow_db.write_bytes(b"not a database, and long enough to be read as one " * 10)
    failed = runner.invoke(app, ["doctor"])
    assert failed.exit_code == 1
    assert "mlflow.db" in failed.output
