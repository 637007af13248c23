"""A home behind a storage URI: the driver publishes tables and weights, every node reads a verified copy of its own."""

from __future__ import annotations

import shutil
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from search_spaces.data_spec import DataSpec
from search_spaces.loading import dump_spec, load_spec
from trainables.backbones.families import build_model
from trainables.backbones.weights import load_tensors, resolve_weights, store_weights
from trainables.config import DataConfig
from trainables.data.digits_source import pgm
from trainables.data.packing import pack
from trainables.data.picture import Picture
from trainables.data.sharing import open_table, publish_table
from trainables.data.sources import open_source
from trainables.data.table import ImageTable
from trainables.data.table_file import MANIFEST_NAME, Manifest, fingerprint_of
from trainables.errors import InputError
from trainables.files.storage import join, read_bytes, write_bytes
from trainables.jobs import BEST_CHECKPOINT
from trainables.training.workbench import Workbench
from tuner.cli import app
from tuner.networks.preparing import prepare_weights
from tuner.paths import HomePaths
from tuner.pictures.dealing import prepare_data
from tuner.records.archive import export_sweep, import_sweep
from tuner.records.journal import Journal, read_records
from tuner.records.shared_home import SweepTwin, check_home, pull_results, pull_sweeps
from tuner.sweep import run_sweep


class Named:
    """Pictures held in memory, as a source."""

    uri = "memory"

    def __init__(self, pictures: list[Picture]) -> None:
        self._pictures = pictures

    def pictures(self) -> list[Picture]:
        return self._pictures

    def signature(self) -> str:
        return " ".join(picture.name for picture in self._pictures)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return ImageTable.open(pack(open_source("digits"), tmp_path_factory.mktemp("tables"), side_px=8).path)


@pytest.fixture
def config(packed: ImageTable, bucket_uri: str) -> DataConfig:
    uri = join(bucket_uri, "tables", packed.path.name)
    publish_table(packed.path, uri)
    return DataConfig(table=uri, fingerprint=packed.fingerprint, class_names=packed.class_names, image_size_px=8)


def arrow_file(folder: Path) -> Path:
    return next(folder.rglob("*.arrow"))


def test_a_fingerprint_is_computed_again_from_the_file(packed: ImageTable) -> None:
    manifest = Manifest.from_json((packed.path / MANIFEST_NAME).read_text())
    assert fingerprint_of(packed.path / manifest.file, manifest) == packed.fingerprint


def test_a_node_maps_its_own_copy_with_the_same_pictures(
    packed: ImageTable, config: DataConfig, bucket: Path, node: Path
) -> None:
    table = Workbench().table(config)
    assert table.path.is_relative_to(node)
    assert np.array_equal(table.ids, packed.ids)
    assert all(torch.equal(table.image(row), packed.image(row)) for row in range(0, len(packed), 100))
    # Another process of the node needs the storage no more.
    shutil.rmtree(bucket)
    assert open_table(config).path == table.path
    assert open_table(config.model_copy(update={"table": str(packed.path)})).path == packed.path


def test_a_damaged_copy_on_the_node_is_fetched_again(config: DataConfig, packed: ImageTable, node: Path) -> None:
    copy = open_table(config).path
    arrow_file(copy).write_bytes(arrow_file(copy).read_bytes()[:-100])
    assert len(open_table(config)) == len(packed)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("gone", "not there; sweep again to publish it anew"),
        ("pixel", r"holds [0-9a-f]{12} instead of [0-9a-f]{12}; remove it and sweep again"),
        ("cut", r"damaged \(.*\); remove it and sweep again"),
        ("manifest", r"damaged \(.*\); remove it and sweep again"),
    ],
)
def test_a_table_that_is_not_what_was_promised_is_refused(
    config: DataConfig, bucket: Path, node: Path, damage: str, message: str
) -> None:
    file = arrow_file(bucket)
    content = bytearray(file.read_bytes())
    match damage:
        case "gone":
            file.unlink()
        case "pixel":
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "manifest":
            (file.parent / MANIFEST_NAME).write_text("{}")
    with pytest.raises(InputError, match=message):
        open_table(config)
    assert [path.name for path in node.glob("tables/[!.]*")] == []


def test_weights_are_stored_once_and_mapped_from_the_node(bucket: Path, bucket_uri: str, node: Path) -> None:
    state = build_model("lenet").state_dict()
    file = store_weights(state, "lenet", join(bucket_uri, "weights"))
    assert file.uri == join(bucket_uri, "weights", f"{file.sha256}.safetensors")
    stored = bucket / "weights" / f"{file.sha256}.safetensors"
    before = stored.stat().st_mtime_ns
    assert store_weights(state, "lenet", join(bucket_uri, "weights")) == file
    assert stored.stat().st_mtime_ns == before
    tensors = load_tensors(file)
    assert tensors
    assert all(torch.equal(tensor, state[name]) for name, tensor in tensors.items())
    stored.unlink()
    assert load_tensors(file).keys() == tensors.keys()
    shutil.rmtree(node)
    with pytest.raises(InputError, match="weights are gone"):
        load_tensors(file)


def test_damaged_weights_are_refused_and_stored_anew(bucket: Path, bucket_uri: str, node: Path) -> None:
    state = {name: tensor + 1 for name, tensor in build_model("lenet").state_dict().items()}
    file = store_weights(state, "lenet", bucket_uri)
    stored = bucket / f"{file.sha256}.safetensors"
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(InputError, match=r"fsspec\+file:.* are damaged; start the sweep again"):
        load_tensors(file)
    assert store_weights(state, "lenet", bucket_uri) == file
    load_tensors(file)
    # A cleaner of temporary folders, or a bad disk, at work on the node.
    copy = node / "weights" / f"{file.sha256}.safetensors"
    copy.unlink()
    assert load_tensors(file)


def test_the_driver_publishes_what_it_prepares(
    bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "driver"))
    home = HomePaths.at(bucket_uri)
    data = prepare_data(DataSpec(source="digits", image_size_px=16), home, lambda *_: None)
    assert data.config.table.startswith(bucket_uri)
    assert Manifest.from_json(read_bytes(join(data.config.table, MANIFEST_NAME)).decode()).num_images == 1797
    torch.save(build_model("lenet").state_dict(), tmp_path / "lenet.pth")
    weights = prepare_weights(str(tmp_path / "lenet.pth"), "lenet", home, "sqlite:///unused.db")
    assert weights == resolve_weights(str(tmp_path / "lenet.pth"), "lenet", join(bucket_uri, "weights"))
    # Another machine, which has nothing but the configuration, reads both.
    shutil.rmtree(tmp_path / "driver")
    assert len(open_table(data.config)) == 1797
    assert load_tensors(weights)


@pytest.mark.parametrize("root", ["nosuch://bucket/thaw", "fsspec+nosuch://bucket/thaw", "fsspec+file:///proc/thaw"])
def test_a_home_that_cannot_be_written_to_is_refused_before_anything_is_packed(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"THAW_HOME: .* cannot be reached \(.*\); check its spelling"):
        prepare_data(DataSpec(source="digits", image_size_px=16), HomePaths.at(root), lambda *_: None)
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_sweeps_records_outlive_the_machine_that_wrote_them(
    bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "first"))
    first = HomePaths.at(bucket_uri)
    twin = SweepTwin(first, "digits")
    first.sweep("digits").root.mkdir(parents=True)
    first.sweep("digits").spec.write_text("name: digits\n")
    (first.sweep("digits").root / ".spec.yaml.tmp").touch()
    with Journal.open(first.sweep("digits").journal) as journal:
        journal.append("trial", number=0, params={"lr": 0.1})
        twin.push()
        journal.append("end", number=0, outcome="completed", reason=None)
        twin.push()  # too soon after the last time
        assert len(read_bytes(first.uri_of(first.sweep("digits").journal)).splitlines()) == 1
        journal.append("finished", outcome="completed", reason=None)
        twin.push(at_once=True)
    monkeypatch.setenv("HOME", str(tmp_path / "second"))
    second = HomePaths.at(bucket_uri)
    assert second.sweep_names() == []
    pull_sweeps(second)
    assert second.sweep_names() == ["digits"]
    assert read_records(second.sweep("digits").journal) == read_records(first.sweep("digits").journal)
    assert second.sweep("digits").spec.read_text() == "name: digits\n"
    assert sorted(path.name for path in second.sweep("digits").root.iterdir()) == ["journal.jsonl", "spec.yaml"]
    with pytest.raises(InputError, match="sweep 'digits' exists and is finished"):
        run_sweep(load_spec("digits", ["tracking.uri=http://127.0.0.1:1"]), home=second)


def test_a_sweep_is_exported_whole_from_storage(
    bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What workers wrote into the storage, and on another machine than the one that drove it."""
    monkeypatch.setenv("HOME", str(tmp_path / "first"))
    first = HomePaths.at(bucket_uri)
    paths = first.sweep("whole")
    for path in (paths.report / "sweep.png", paths.champion / "data" / "model.pt2", paths.champion / ".torn.tmp"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())
    paths.spec.write_text(dump_spec(load_spec("digits", ["name=whole"])))
    with Journal.open(paths.journal) as journal:
        journal.append("champion", number=0, metrics={})
    write_bytes(first.uri_of(paths.trial(0).root / BEST_CHECKPOINT), b"weights")
    SweepTwin(first, "whole").push(at_once=True)
    monkeypatch.setenv("HOME", str(tmp_path / "second"))
    second = HomePaths.at(bucket_uri)
    pull_sweeps(second)
    assert not second.sweep("whole").champion.exists(), "not for every command"
    pull_results(second, "whole")
    export_sweep(second, "whole", tmp_path / "whole.zip")
    with zipfile.ZipFile(tmp_path / "whole.zip") as archive:
        inner = {"report/sweep.png": b"sweep.png", "champion/data/model.pt2": b"model.pt2"}
        for name, content in {**inner, f"trials/0000/{BEST_CHECKPOINT}": b"weights"}.items():
            assert archive.read(name) == content
        assert not [name for name in archive.namelist() if "torn" in name]
    assert not caplog.text
    shutil.rmtree(second.sweep("whole").champion)
    export_sweep(second, "whole", tmp_path / "less.zip")
    assert "the champion's model is not there" in caplog.text


def test_a_machine_sees_what_another_one_has_gone_on_with(
    bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def home_of(machine: str) -> HomePaths:
        monkeypatch.setenv("HOME", str(tmp_path / machine))
        return HomePaths.at(bucket_uri)

    def go_on(home: HomePaths, number: int, *, is_copied: bool = True) -> None:
        home.sweep("digits").root.mkdir(parents=True, exist_ok=True)
        with Journal.open(home.sweep("digits").journal) as journal:
            journal.append("trial", number=number, params={"lr": 0.1})
        if is_copied:
            SweepTwin(home, "digits").push(at_once=True)

    def numbers(home: HomePaths) -> list[int]:
        return [record["number"] for record in read_records(home.sweep("digits").journal)]

    first, second = home_of("first"), home_of("second")
    go_on(first, 0)
    pull_sweeps(second)
    go_on(second, 1)
    with first.sweep("digits").journal.open("a") as journal:
        journal.write('{"torn')
    pull_sweeps(first)
    assert numbers(first) == [0, 1]
    # What is not copied yet stays.
    go_on(first, 2, is_copied=False)
    pull_sweeps(first, "digits", goes_on=True)
    assert numbers(first) == [0, 1, 2]
    # The other machine did not know of it, and went another way: nothing is overwritten, and nobody goes on from it.
    go_on(second, 3)
    pull_sweeps(first)
    with pytest.raises(InputError, match="have parted"):
        pull_sweeps(first, "digits", goes_on=True)
    go_on(second, 4)
    pull_sweeps(first)
    assert "have parted" in caplog.text
    assert numbers(first) == [0, 1, 2]
    with pytest.raises(InputError, match=r"resume: sweep digits: its records .* have parted.*; remove the folder here"):
        pull_sweeps(first, "digits", goes_on=True)
    # Who runs the sweep here is not disturbed.
    with Journal.open(second.sweep("digits").journal) as journal:
        go_on_elsewhere = read_bytes(second.uri_of(second.sweep("digits").journal)) + b'{"event":"search","time":1}\n'
        write_bytes(second.uri_of(second.sweep("digits").journal), go_on_elsewhere)
        pull_sweeps(second)
        journal.append("trial", number=5, params={})
    assert numbers(second) == [0, 1, 3, 4, 5]
    SweepTwin(second, "digits").push(at_once=True)
    shutil.rmtree(first.sweep("digits").root)
    pull_sweeps(first, "digits", goes_on=True)
    assert numbers(first) == [0, 1, 3, 4, 5]


def test_a_storage_that_goes_away_does_not_end_the_sweep(
    bucket: Path, bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "driver"))
    home = HomePaths.at(bucket_uri)
    home.sweep("digits").root.mkdir(parents=True)
    home.sweep("digits").journal.write_text("{}\n")
    bucket.write_text("a file where the bucket was")
    SweepTwin(home, "digits").push(at_once=True)
    assert "could not be copied" in caplog.text
    with pytest.raises(InputError, match=r"THAW_HOME: .* cannot be reached"):
        check_home(home)


def test_sqlite_is_refused_where_the_home_is_shared_storage() -> None:
    home = HomePaths.at("s3://bucket/thaw")
    with pytest.raises(
        InputError, match="is shared storage, where MLflow's SQLite cannot lie; set MLFLOW_TRACKING_URI"
    ):
        home.tracking_uri(None, {})
    assert home.tracking_uri(None, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}) == "http://127.0.0.1:5000"
    assert home.tracking_uri("sqlite:////home/me/mlflow.db", {}) == "sqlite:////home/me/mlflow.db"


def test_the_same_pixels_under_other_names_are_another_copy(
    tmp_path: Path, bucket: Path, bucket_uri: str, node: Path
) -> None:
    """Groups go by names, of which a fingerprint knows nothing."""
    configs = []
    for kind in ("shot", "part"):
        pictures = [
            Picture(f"a/{kind}{n // 2}_{n}.png", "ab"[n % 2], None, partial(pgm, bytes([n * 9] * 64), 8, 8))
            for n in range(6)
        ]
        report = pack(Named(pictures), tmp_path / "t", side_px=8)
        publish_table(report.path, uri := join(bucket_uri, report.path.name))
        configs.append(DataConfig(table=uri, fingerprint=report.fingerprint, class_names=("a", "b"), image_size_px=8))
    assert configs[0].fingerprint == configs[1].fingerprint
    shots, parts = (open_table(config) for config in configs)
    assert shots.groups_of(np.arange(6), r"shot(\d)") == ["0", "0", "1", "1", "2", "2"]
    assert parts.groups_of(np.arange(6), r"part(\d)") == ["0", "0", "1", "1", "2", "2"]


def test_an_import_writes_over_nothing_that_another_machine_has_there_and_brings_the_weights(
    bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(home: HomePaths, seed: int) -> None:
        paths = home.sweep("nightly")
        paths.root.mkdir(parents=True)
        paths.spec.write_text(dump_spec(load_spec("digits", ["name=nightly", f"seed={seed}"])))
        with Journal.open(paths.journal) as journal:
            journal.append("champion", number=0, metrics={})
        write_bytes(home.uri_of(paths.trial(0).root / BEST_CHECKPOINT), f"weights {seed}".encode())

    elsewhere = HomePaths.at(tmp_path / "elsewhere")
    put(elsewhere, 1)
    export_sweep(elsewhere, "nightly", tmp_path / "nightly.zip")
    monkeypatch.setenv("HOME", str(tmp_path / "head"))
    put(HomePaths.at(bucket_uri), 2)
    SweepTwin(HomePaths.at(bucket_uri), "nightly").push(at_once=True)
    monkeypatch.setenv("HOME", str(tmp_path / "laptop"))
    monkeypatch.setenv("THAW_HOME", bucket_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    laptop = HomePaths.at(bucket_uri)
    refused = CliRunner().invoke(app, ["import-sweep", str(tmp_path / "nightly.zip")])
    assert "sweep 'nightly' exists" in str(refused.exception)
    assert b"seed: 2" in read_bytes(laptop.uri_of(laptop.sweep("nightly").spec))
    import_sweep(laptop, tmp_path / "nightly.zip", "mine")
    assert read_bytes(laptop.uri_of(laptop.sweep("mine").trial(0).root / BEST_CHECKPOINT)) == b"weights 1"
