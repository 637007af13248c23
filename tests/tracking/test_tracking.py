"""The journal's projection onto a real MLflow: complete, without repetition, and never in the way."""

from __future__ import annotations

import itertools
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.paths import HomePaths
from tuner.records.journal import Journal, iterate_from, read_records
from tuner.tracking.ledger import Ledger
from tuner.tracking.mlflow_client import ensure_experiment, open_client, outages
from tuner.tracking.runs import Tracking

pytestmark = pytest.mark.usefixtures("client")
_TIMEOUT_S = 60.0


def _tracking(folder: Path, uri: str, **options: Any) -> Tracking:
    settings: dict[str, Any] = {
        "journal": folder / "journal.jsonl",
        "ledger": folder / "mlflow.json",
        "tracking_uri": uri,
        "sweep": folder.name,
        "artifact_location": (folder / "artifacts").as_uri(),
        "poll_s": 0.02,
        "retry_s": (0.02, 0.1),
    }
    return Tracking(**(settings | options))


def _send(folder: Path, uri: str) -> None:
    tracking = _tracking(folder, uri)
    tracking.start()
    assert tracking.close(_TIMEOUT_S) == 0
    assert tracking.failure is None


def _journal(folder: Path) -> Journal:
    clock = map(float, itertools.count(1_700_000_000)).__next__
    return Journal.open(folder / "journal.jsonl", clock)


def _small_sweep(journal: Journal, folder: Path) -> None:
    (folder / "spec.yaml").write_text("name: s\n")
    journal.append("sweep", name="s", params={"backbone": "lenet", "trials": 2}, note="a sweep")
    journal.append("files", paths=["spec.yaml"])
    for number in (0, 1):
        journal.append("trial", number=number, params={"freeze_depth": number, "lr": 0.1, "grad_clip_norm": None})
    for epoch, number in itertools.product((1, 2, 3), (0, 1)):
        metrics = {"val/accuracy": epoch / 10 + number / 100, "train/loss": float("nan"), "compute/flops": 2.5e12}
        journal.append("epoch", number=number, epoch=epoch, metrics=metrics)
    journal.append("end", number=0, outcome="completed", metrics={"time/trial_s": 3.0})
    journal.append("end", number=1, outcome="diverged", reason="loss is not finite")


def _runs(client: Any, folder: Path) -> dict[str, Any]:
    experiment = client.get_experiment_by_name(folder.name)
    runs = client.search_runs([experiment.experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs), "a run exists twice"
    return by_name


def _history(client: Any, run: Any, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A sweep's folder; its name is the experiment's, and no other test has it."""
    path = tmp_path / request.node.name[:60]
    path.mkdir()
    return path


def test_a_sweep_is_one_parent_with_its_trials_beneath(folder: Path, tracking_uri: str, client: Any) -> None:
    with _journal(folder) as journal:
        _small_sweep(journal, folder)
        journal.append(
            "champion", number=0, metrics={"val/accuracy": 0.3, "test/accuracy": 0.25}, note="trial 0000 won"
        )
        journal.append("finished", outcome="completed")
    _send(folder, tracking_uri)

    runs = _runs(client, folder)
    assert sorted(runs) == sorted([folder.name, "trial 0000", "trial 0001"])
    parent, first, second = runs[folder.name], runs["trial 0000"], runs["trial 0001"]
    assert (parent.info.status, first.info.status, second.info.status) == ("FINISHED", "FINISHED", "FAILED")
    assert parent.data.params == {"backbone": "lenet", "trials": "2"}
    assert first.data.params == {"freeze_depth": "0", "lr": "0.1", "grad_clip_norm": "none"}
    assert {run.data.tags["mlflow.parentRunId"] for run in (first, second)} == {parent.info.run_id}
    assert second.data.tags["thaw.outcome"] == "diverged"
    assert second.data.tags["thaw.reason"] == "loss is not finite"
    assert parent.data.tags["thaw.champion"] == "trial 0000"
    assert parent.data.metrics == {"val/accuracy": 0.3, "test/accuracy": 0.25}
    assert _history(client, first, "val/accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert set(first.data.metrics) == {"val/accuracy", "train/loss", "compute/flops", "time/trial_s"}
    assert first.info.start_time == 1_700_000_002_000
    assert first.info.end_time == 1_700_000_010_000
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["spec.yaml"]
    assert client.get_experiment_by_name(folder.name).artifact_location == (folder / "artifacts").as_uri()


def test_a_crash_before_the_ledger_is_written_repeats_nothing(folder: Path, tracking_uri: str, client: Any) -> None:
    """Everything is sent, then the ledger is put back to how each crash could have left it."""
    ledger = folder / "mlflow.json"
    with _journal(folder) as journal:
        _small_sweep(journal, folder)
    _send(folder, tracking_uri)
    complete = Ledger.load(ledger, tracking_uri)
    before = {name: _history(client, run, "compute/flops") for name, run in _runs(client, folder).items()}
    _, offset = list(iterate_from(folder / "journal.jsonl", 0))[5]
    fresh = Ledger(tracking_uri, sweep_id=complete.sweep_id)
    partial = Ledger(tracking_uri, sweep_id=complete.sweep_id, num_sent=6, offset=offset, runs=dict(complete.runs))
    for crashed in (fresh, partial):
        crashed.save(ledger)
        _send(folder, tracking_uri)
        runs = _runs(client, folder)
        assert {name: _history(client, run, "compute/flops") for name, run in runs.items()} == before
        assert len(_history(client, runs["trial 0001"], "train/loss")) == 3  # NaN rows are equal rows too
        assert Ledger.load(ledger, tracking_uri).num_sent == complete.num_sent


def test_a_resumed_sweep_goes_on_in_the_same_runs(folder: Path, tracking_uri: str, client: Any) -> None:
    with _journal(folder) as journal:
        journal.append("sweep", name="s", params={"trials": 2})
        journal.append("trial", number=0, params={"lr": 0.1})
        for epoch in (1, 2):
            journal.append("epoch", number=0, epoch=epoch, metrics={"val/accuracy": epoch / 10})
        journal.append("interrupted", reason="Ctrl-C")
    _send(folder, tracking_uri)
    runs = _runs(client, folder)
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    assert runs["trial 0000"].data.tags["thaw.outcome"] == "interrupted"

    with Journal.open(folder / "journal.jsonl", lambda: 1_800_000_000.0) as journal:
        journal.append("sweep", name="s", params={"trials": 40})  # MLflow would refuse to change a parameter
        journal.append("trial", number=0, params={"lr": 0.1})
        for epoch in (2, 3):
            journal.append("epoch", number=0, epoch=epoch, metrics={"val/accuracy": epoch / 10})
        tracking = _tracking(folder, tracking_uri)
        assert tracking.pending() == 4
        tracking.start()
        assert tracking.flush(_TIMEOUT_S) == 0
        assert {run.info.status for run in _runs(client, folder).values()} == {"RUNNING"}
        journal.append("end", number=0, outcome="completed")
        journal.append("finished")
        assert tracking.close(_TIMEOUT_S) == 0
    runs = _runs(client, folder)
    trial = runs["trial 0000"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert trial.info.run_id == tracking.run_id(0)
    assert runs[folder.name].info.run_id == tracking.run_id()
    assert (trial.data.tags["thaw.outcome"], trial.data.tags["thaw.reason"]) == ("completed", "")
    assert _history(client, trial, "val/accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_records_wait_while_mlflow_is_away(
    tmp_path: Path, folder: Path, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The database's folder is a file at first, so opening it fails as on a lost mount."""
    away = tmp_path / "mount"
    away.write_text("")
    tracking = _tracking(folder, f"sqlite:///{away}/mlflow.db")
    with _journal(folder) as journal, caplog.at_level(logging.INFO, logger="tuner.tracking.runs"):
        tracking.start()
        _small_sweep(journal, folder)
        assert tracking.flush(0.5) == 12
        assert tracking.run_id() is None
        away.unlink()
        assert tracking.close(_TIMEOUT_S) == 0
    assert tracking.failure is None
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1, "an outage is said once"
    assert "trying again, the journal keeps all" in warnings[0]
    assert "is back" in caplog.text


def test_a_dead_server_delays_nobody_and_loses_nothing(
    folder: Path, tracking_uri: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking = _tracking(folder, "http://127.0.0.1:9")  # the discard port: refused at once
    with _journal(folder) as journal:
        tracking.start()
        _small_sweep(journal, folder)
        begin = time.monotonic()
        assert tracking.close(0.3) == 12
        assert time.monotonic() - begin < 5.0
    _send(folder, tracking_uri)  # another address: all is told there
    assert len(_runs(client, folder)) == 3


def test_what_mlflow_refuses_is_said_and_does_not_hold_up_the_rest(
    folder: Path, tracking_uri: str, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with _journal(folder) as journal:
        journal.append("sweep", name="s", params={})
        journal.append("trial", number=0, params={})
        journal.append("epoch", number=0, epoch=1, metrics={"what?!": 1.0})
        journal.append("end", number=0, outcome="completed")
        journal.append("files", paths=["gone.txt"])
        journal.append("trial", number=1, params={"lr": 0.1})
    _send(folder, tracking_uri)
    runs = _runs(client, folder)
    assert runs["trial 0000"].info.status == "FINISHED"
    assert runs["trial 0001"].data.params == {"lr": "0.1"}
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert any("gone.txt" in error and "cannot be sent" in error for error in errors)
    assert any("trial 0000" in error and "Names may only contain" in error for error in errors)


def test_a_run_that_people_deleted_does_not_hold_up_the_rest(folder: Path, tracking_uri: str, client: Any) -> None:
    with _journal(folder) as journal:
        _small_sweep(journal, folder)
        _send(folder, tracking_uri)
        client.delete_run(_runs(client, folder)["trial 0000"].info.run_id)
        journal.append("epoch", number=0, epoch=4, metrics={"val/accuracy": 0.5})
        journal.append("trial", number=2, params={})
    _send(folder, tracking_uri)
    assert "trial 0002" in _runs(client, folder)


def test_a_backlog_larger_than_one_call_arrives_whole(folder: Path, tracking_uri: str, client: Any) -> None:
    with _journal(folder) as journal:
        journal.append("sweep", name="s", params={f"p{i:03d}": i for i in range(120)})
        journal.append("trial", number=0, params={})
        for epoch in range(1, 601):
            journal.append("epoch", number=0, epoch=epoch, metrics={"a": epoch, "b": -epoch})
    _send(folder, tracking_uri)
    runs = _runs(client, folder)
    assert len(runs[folder.name].data.params) == 120
    assert _history(client, runs["trial 0000"], "b") == [(epoch, -epoch) for epoch in range(1, 601)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_says_so(folder: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    with _journal(folder) as journal:
        journal.append("sweep", name="s", params={})
        journal.append("epoch", number=0, epoch="one", metrics={})
    tracking = _tracking(folder, tracking_uri)
    begin = time.monotonic()
    tracking.start()
    assert tracking.close(_TIMEOUT_S) == 2
    assert time.monotonic() - begin < _TIMEOUT_S / 2
    assert isinstance(tracking.failure, TypeError)
    assert "telling MLflow ended (TypeError" in caplog.text


def test_who_knows_the_runs_is_told_what_is_new_and_who_does_not_everything(
    folder: Path, tracking_uri: str, client: Any
) -> None:
    """Another server, a new database in the old one's place, and the same one under another address."""
    with _journal(folder) as journal:
        _small_sweep(journal, folder)
    _send(folder, tracking_uri)
    other, moved = (f"sqlite:///{folder / name}.db" for name in ("other", "moved"))
    tracking = _tracking(folder, other)
    tracking.note_model("models:/s/1")
    assert tracking.pending() == 0
    tracking.ask(_TIMEOUT_S)
    assert tracking.pending() == len(read_records(folder / "journal.jsonl"))
    assert tracking.model is None
    _send(folder, other)
    assert sorted(_runs(open_client(other), folder)) == sorted(_runs(client, folder))
    shutil.copy(folder / "other.db", folder / "moved.db")
    with _journal(folder) as journal:
        journal.append("finished", outcome="completed")
    tracking = _tracking(folder, moved)
    tracking.ask(_TIMEOUT_S)
    assert tracking.pending() == 1
    _send(folder, moved)
    assert _runs(open_client(moved), folder)[folder.name].info.status == "FINISHED"
    tracking = _tracking(folder, tracking_uri)
    tracking.ask(_TIMEOUT_S)
    tracking.start()
    assert tracking.close(_TIMEOUT_S) == 0
    assert _runs(client, folder)[folder.name].info.status == "FINISHED", "and each run is there once"


def test_no_file_but_the_sweeps_own_is_handed_out(
    folder: Path, tracking_uri: str, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "spec.yaml").write_text("name: s\n")
    with _journal(folder) as journal:
        journal.append("sweep", name="s", params={})
        journal.append(
            "files", paths=["/etc/hostname", str(folder.parent / "secret.txt"), "../secret.txt", "/gone/home/spec.yaml"]
        )
    _send(folder, tracking_uri)
    run = _runs(client, folder)[folder.name]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["spec.yaml"]
    assert caplog.text.count("is gone and cannot be sent") == 3


def test_a_damaged_ledger_is_begun_anew(folder: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "mlflow.json").write_text('{"tracking_uri": 3')
    ledger = Ledger.load(folder / "mlflow.json", tracking_uri)
    assert (ledger.num_sent, ledger.offset, ledger.runs) == (0, 0, {})
    assert "is damaged" in caplog.text


def test_nothing_imports_mlflow_before_the_start(tmp_path: Path) -> None:
    """The wait before a sweep's first epoch has no seconds to spare for it."""
    program = """
import sys
from pathlib import Path
import tuner.models.model_file, tuner.models.registry, tuner.paths, tuner.records.journal, tuner.report.confusion
import tuner.tracking.ledger, tuner.tracking.mlflow_client, tuner.tracking.projection
from tuner.tracking.runs import Tracking
home = tuner.paths.HomePaths.at(sys.argv[1])
with tuner.records.journal.Journal.open(home.sweep("s").journal) as journal:
    tracking = Tracking.for_sweep(home, "s", home.tracking_uri(None, {}))
    journal.append("sweep", name="s", params={})
    assert tracking.pending() == 1
    assert tracking.close(1.0) == 1
heavy = {"mlflow", "torch", "pandas", "matplotlib", "sqlalchemy", "requests", "ray"} & set(sys.modules)
assert not heavy, heavy
assert not home.mlflow_db.exists()
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_home_names_the_trackings_files(tmp_path: Path) -> None:
    home = HomePaths.at(tmp_path)
    tracking = Tracking.for_sweep(home, "digits", home.tracking_uri(None, {}))
    assert tracking.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking.pending() == 0
    assert tracking.run_id() is None


def test_a_database_is_there_whole_or_not_at_all(tmp_path: Path, mount: Callable[[Path, str], None]) -> None:
    """MLflow refuses for ever one in which some tables are missing because there was no room for them."""
    place = tmp_path / "disk"
    mount(place, "size=200k")
    uri = f"sqlite:///{place / 'mlflow.db'}"
    with pytest.raises(outages()):
        open_client(uri)
    assert list(place.iterdir()) == []
    mount(place, "size=8m")
    assert ensure_experiment(open_client(uri), "parts", None)
    assert [path.name for path in place.iterdir()] == ["mlflow.db"]


def test_what_a_killed_maker_of_a_database_left_goes_with_the_next(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    program = f"""
import os, signal, time
from pathlib import Path
from threading import Thread
def kill():
    while not any(path.stat().st_size for path in Path({str(tmp_path)!r}).glob(".mlflow.db.*.tmp")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
Thread(target=kill).start()
from tuner.tracking.mlflow_client import open_client
open_client({uri!r})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".mlflow.db.*.tmp"))
    assert not (tmp_path / "mlflow.db").exists()
    assert ensure_experiment(open_client(uri), "parts", None)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_database_without_room_is_an_error_and_no_traceback(
    tmp_path: Path, mount: Callable[[Path, str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """MLflow prints one before it raises: on a terminal that would look as if the sweep had failed."""
    place = tmp_path / "disk"
    mount(place, "size=8m")
    client = open_client(f"sqlite:///{place / 'mlflow.db'}")
    with pytest.raises(OSError, match="No space left"), (place / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    with pytest.raises(outages()):
        for number in range(1000):
            ensure_experiment(client, f"{number} {'long name ' * 40}", None)
    assert "Traceback" not in capfd.readouterr().err
