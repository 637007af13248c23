"""A sweep in one file: all of it comes back, others can read it, and what is damaged is refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from search_spaces.loading import dump_spec, load_spec
from trainables.errors import InputError
from trainables.jobs import BEST_CHECKPOINT
from tuner.paths import HomePaths
from tuner.records.archive import export_sweep, import_sweep
from tuner.records.journal import Journal, read_records, read_trials
from tuner.records.resuming import find_left


@pytest.fixture
def home(tmp_path: Path, tiny_spec: Path) -> HomePaths:
    """A home with one sweep: two trials of different fields, a champion, a report."""
    home = HomePaths.at(tmp_path / "home")
    paths = home.sweep("tiny")
    with Journal.open(paths.journal) as journal:
        journal.append("sweep", name="tiny", params={})
        for number, params in enumerate([{"lr": 0.1, "grad_clip_norm": None}, {"lr": 0.01, "num_views": "unlimited"}]):
            journal.append("trial", number=number, params=params)
            for epoch in (1, 2):
                metrics = {"val/accuracy": 0.1 * epoch + number, "val/loss": float("nan")}
                journal.append("epoch", number=number, epoch=epoch, metrics=metrics)
            journal.append("end", number=number, outcome="completed", metrics={"time/trial_s": 2.0})
        journal.append("champion", number=1, metrics={"test/accuracy": 0.9})
        journal.append("finished", outcome="completed")
    paths.spec.write_text(dump_spec(load_spec(tiny_spec)))
    for path, content in [
        (paths.data, b"{}"),
        (paths.report / "sweep.png", b"picture"),
        (paths.champion / "data" / "model.pt2", b"model"),
        (paths.trial(0).root / BEST_CHECKPOINT, b"loser"),
        (paths.trial(1).root / BEST_CHECKPOINT, b"winner"),
        (paths.ledger, b"of another machine"),
    ]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return home


def test_a_sweep_comes_back_whole_on_another_machine(home: HomePaths, tmp_path: Path) -> None:
    file, other = tmp_path / "out" / "tiny.zip", HomePaths.at(tmp_path / "other")
    assert export_sweep(home, "tiny", file) == file.stat().st_size
    assert import_sweep(other, file) == "tiny"
    there, here = other.sweep("tiny"), home.sweep("tiny")
    assert read_records(there.journal) == read_records(here.journal)
    assert load_spec(there.spec) == load_spec(here.spec)
    assert (there.champion / "data" / "model.pt2").read_bytes() == b"model"
    assert (there.trial(1).root / BEST_CHECKPOINT).read_bytes() == b"winner"
    assert not there.trial(0).root.exists(), "of the trials only the champion's weights travel"
    assert not there.ledger.exists(), "what MLflow knows there is another machine's business"
    assert import_sweep(other, file, "twin") == "twin"
    assert load_spec(other.sweep("twin").spec).name == "twin"
    assert sorted(other.sweep_names()) == ["tiny", "twin"]


def test_the_tables_are_readable_without_thaw(home: HomePaths, tmp_path: Path) -> None:
    export_sweep(home, "tiny", tmp_path / "tiny.zip")
    with zipfile.ZipFile(tmp_path / "tiny.zip") as archive:
        trials, metrics = (
            pq.read_table(io.BytesIO(archive.read(f"{name}.parquet"))).to_pandas() for name in ("trials", "metrics")
        )
        manifest = json.loads(archive.read("manifest.json"))
    assert list(trials["number"]) == [0, 1]
    assert list(trials["lr"]) == [0.1, 0.01]
    assert list(trials["val/accuracy"]) == pytest.approx([0.2, 1.2])
    assert len(metrics) == 8
    assert set(metrics["name"]) == {"val/accuracy", "val/loss"}
    assert (manifest["schema_version"], manifest["champion"]) == (1, 1)


def test_damage_and_strangers_are_refused_and_leave_nothing(home: HomePaths, tmp_path: Path) -> None:
    file, other = tmp_path / "tiny.zip", HomePaths.at(tmp_path / "other")
    export_sweep(home, "tiny", file)

    def altered(name: str, **changes: object) -> Path:
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(file) as source, zipfile.ZipFile(path, "w") as target:
            manifest = json.loads(source.read("manifest.json"))
            for inner in source.namelist():
                if inner != "manifest.json" and inner != changes.get("without"):
                    target.writestr(inner, b"x" if inner == changes.get("wrong") else source.read(inner))
            if "escape" in changes:
                manifest["sha256"]["../escaped"] = "0"
            manifest["schema_version"] = changes.get("version", 1)
            target.writestr("manifest.json", json.dumps(manifest))
        return path

    text = tmp_path / "text.zip"
    text.write_text("nothing of the kind")
    torn = tmp_path / "torn.zip"
    torn.write_bytes(file.read_bytes()[:-300])
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    for path, words in [
        (text, "damaged or no export"),
        (torn, "damaged or no export"),
        (empty, "no manifest.json"),
        (altered("wrong", wrong="journal.jsonl"), "journal.jsonl is not what was exported"),
        (altered("missing", without="spec.yaml"), "spec.yaml is missing"),
        (altered("newer", version=2), "layout 2, the newest this Thaw reads is 1"),
        (altered("escape", escape=True), "outside its folder"),
    ]:
        with pytest.raises(InputError, match=words):
            import_sweep(other, path)
    assert not other.sweeps.exists() or not list(other.sweeps.iterdir())


def test_nothing_is_overwritten(home: HomePaths, tmp_path: Path) -> None:
    file = tmp_path / "tiny.zip"
    export_sweep(home, "tiny", file)
    with pytest.raises(InputError, match=r"tiny\.zip exists"):
        export_sweep(home, "tiny", file)
    with pytest.raises(InputError, match=r"no sweep 'other' .* there are: tiny"):
        export_sweep(home, "other", tmp_path / "other.zip")
    assert import_sweep(home, file) == "tiny", "the very same: nothing to do"
    with Journal.open(home.sweep("tiny").journal) as journal:
        journal.append("sweep", name="tiny", params={})
    with pytest.raises(InputError, match=r"'tiny' exists .* --name"):
        import_sweep(home, file)
    assert len(read_trials(home.sweep("tiny").journal)) == 2
    with pytest.raises(InputError, match=r"at most 64; give another by --name"):
        import_sweep(home, file, "a" * 65)


def test_an_imported_sweep_owes_its_records_to_the_mlflow_of_its_new_machine(home: HomePaths, tmp_path: Path) -> None:
    spec = load_spec(home.sweep("tiny").spec, ["tracking.uri=http://of-the-old-machine:5000"])
    home.sweep("tiny").spec.write_text(dump_spec(spec))
    with Journal.open(home.sweep("tiny").journal) as journal:  # as a resume that named it leaves it
        journal.append("extended", changes={"tracking.uri": "http://of-the-old-machine:5000", "search.num_trials": 7})
    other = HomePaths.at(tmp_path / "other")
    export_sweep(home, "tiny", tmp_path / "tiny.zip")
    import_sweep(other, tmp_path / "tiny.zip")
    assert load_spec(other.sweep("tiny").spec).tracking.uri is None
    left = find_left(other, "tiny")
    assert (left.spec.tracking.uri, left.spec.search.num_trials) == (None, 7)
