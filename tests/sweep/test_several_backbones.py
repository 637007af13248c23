"""A whole sweep over two networks, one of them at two sizes: interrupted or not, its champion trained again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from running_thaw import numbers_of, run_sweep_to_its_end, start_thaw
from test_end_to_end import await_epochs

from search_spaces.loading import load_spec
from search_spaces.naming import network_of
from tuner.models.classifier import Classifier
from tuner.networks.probing import probe_record
from tuner.paths import HomePaths
from tuner.records.journal import champion_record, read_records, read_trials

NAMES = ("lenet-16px", "lenet-24px", "shufflenet_v2_x0_5")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

# Their sizes differ, and with them the pictures that each sees, their stages, and the depths that are searched.
SPEC = """
version: 1
name: two
data:
  source: digits
  exclude_classes: [0, 1, 2, 3, 4]
  image_size_px: 32
  split: {train: 0.3, val: 0.3, test: 0.4}
model:
  backbones:
    - {backbone: lenet, weights: none, image_size_px: [16, 24]}
    - {backbone: shufflenet_v2_x0_5, weights: none, freeze_depth: [2, all]}
search:
  num_trials: 10
  probe: on
  lr: {low: 1.0e-3, high: 3.0e-2, log: true}
  augmentation: [none, flip_crop]
  batch_size: [16, 32]
budget: {epochs: 3, threads_per_worker: 1}
early_stopping: {grace_period: 1, reduction_factor: 2}
baselines: [head_only]
seed: 15 # of the trials drawn before any result is known, two have the second network, one at each depth
"""


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "two.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="module")
def whole(spec_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[HomePaths, str, str]:
    """One sweep to its end: its home and what it printed."""
    return run_sweep_to_its_end(tmp_path_factory.mktemp("whole") / "home", spec_file, 300)


def test_both_networks_are_probed_searched_and_told_apart(whole: tuple[HomePaths, str, str]) -> None:
    home, out, err = whole
    paths = home.sweep("two")
    trials = read_trials(paths.journal)
    depths = {
        name: {trial.params["freeze_depth"] for trial in trials if trial.params["backbone"] == name} for name in NAMES
    }
    assert depths["lenet-16px"] | depths["lenet-24px"] <= set(range(5))
    assert all(depths.values())
    assert depths["shufflenet_v2_x0_5"] == {2, 5}
    probed = {(row["backbone"], row["depth"]) for row in (probe_record(read_records(paths.journal)) or {})["probes"]}
    assert len(probed) == 4 + 4 + 5
    assert "probe: lenet-24px: depth" in err
    assert "backbone lenet-" in out
    report = {path.name for path in paths.report.iterdir()}
    assert {"probe-lenet-16px.png", "probe-lenet-24px.png", "probe-shufflenet_v2_x0_5.png", "sweep.png"} <= report
    # What was predicted is what its own network computes.
    for trial in trials:
        if trial.outcome == "completed":
            computed = (trial.metrics or {})["compute/trial_gflops"]
            assert computed <= (trial.predicted or {})["compute/predicted_gflops"] * (1 + 1e-9)


def test_mlflow_holds_the_network_of_each_trial(whole: tuple[HomePaths, str, str]) -> None:
    from tuner.tracking.mlflow_client import open_client

    home, _, _ = whole
    client = open_client(home.tracking_uri(None, {}))
    experiment = client.get_experiment_by_name("two")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.data.params["backbone"] == ", ".join(NAMES)
    assert {"probe/lenet-16px/accuracy", "probe/shufflenet_v2_x0_5/log_me"} <= parent.data.metrics.keys()
    children = [run.data.params for run in runs if run is not parent]
    assert all("freeze_depth" in params for params in children)
    assert {params["backbone"] for params in children} == set(NAMES)


def test_the_models_pictures_are_those_of_its_network(whole: tuple[HomePaths, str, str]) -> None:
    home, _, _ = whole
    champion = champion_record(read_records(home.sweep("two").journal)) or {}
    (trial,) = (each for each in read_trials(home.sweep("two").journal) if each.number == champion["number"])
    uri = home.tracking_uri(None, {})
    card = Classifier.load("models:/two/1", uri).card
    sizes = {"lenet-16px": 16, "lenet-24px": 24, "shufflenet_v2_x0_5": 32}
    assert card.backbone == network_of(trial.params["backbone"])
    assert card.image_size_px == sizes[trial.params["backbone"]]
    assert card.stored_side_px == 48, "pictures are kept once, for the largest size"


def test_interrupted_and_resumed_equals_uninterrupted(
    whole: tuple[HomePaths, str, str], spec_file: Path, tmp_path: Path
) -> None:
    home = HomePaths.at(tmp_path / "home")
    journal = home.sweep("two").journal
    process = start_thaw(Path(home.root), "sweep", str(spec_file))
    await_epochs(process, journal, 8)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len([trial for trial in read_trials(journal) if trial.outcome]) < 10
    process = start_thaw(Path(home.root), "resume", "two")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert numbers_of(read_trials(journal)) == numbers_of(read_trials(whole[0].sweep("two").journal))


def test_the_champions_spec_trains_the_champion_again(whole: tuple[HomePaths, str, str], tmp_path: Path) -> None:
    home, _, _ = whole
    root, file = Path(home.root), tmp_path / "best.yaml"
    found, err = start_thaw(root, "best", "two", "--spec", str(file)).communicate(timeout=60)
    assert "thaw train" in found, err
    assert len(load_spec(file).model.named) == 1
    process = start_thaw(root, "train", str(file))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    champion = champion_record(read_records(home.sweep("two").journal)) or {}
    there = numbers_of(read_trials(home.sweep("two").journal))[champion["number"]]
    (again,) = numbers_of(read_trials(home.sweep("two-best").journal)).values()
    assert again[1:] == there[1:]
