"""A whole sweep in folds and seeds as a user would run it: scored by means, refitted, interrupted or not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from running_thaw import TINY_DATA, numbers_of, run_sweep_to_its_end, start_thaw
from test_end_to_end import await_epochs

from search_spaces.loading import load_spec
from tuner.ending.refitting import FIRST_REFIT
from tuner.paths import HomePaths
from tuner.records.journal import champion_record, read_records, read_trials
from tuner.report.spread import standard_error

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

DATA = TINY_DATA.replace("  split:", "  folds: 3\n  split:")
SPEC = f"""
version: 1
name: folded
{DATA}
search:
  num_trials: 3
  repeats: 2
  head_init: [probe, random]
  freeze_depth: [1, 4]
  augmentation: [none, flip_crop]
budget: {{epochs: 3, threads_per_worker: 1}}
early_stopping: {{scheduler: none}}
baselines: [head_only]
"""


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "folded.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="module")
def whole(spec_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[HomePaths, str, str]:
    """One sweep to its end: its home and what it printed."""
    return run_sweep_to_its_end(tmp_path_factory.mktemp("whole") / "home", spec_file, 300)


def test_trials_are_scored_by_means_and_the_champion_is_fitted_again(whole: tuple[HomePaths, str, str]) -> None:
    home, out, _ = whole
    paths = home.sweep("folded")
    records, trials = read_records(paths.journal), read_trials(paths.journal)
    assert len(trials) == 3
    assert all(epoch["val/accuracy_std"] > 0 for trial in trials for epoch in trial.epochs)
    for trial in trials:
        if trial.outcome == "completed":
            computed = (trial.metrics or {})["compute/trial_gflops"]
            assert computed <= (trial.predicted or {})["compute/predicted_gflops"] * (1 + 1e-9)
    best = champion_record(records)
    assert best is not None
    champion = next(trial for trial in trials if trial.number == best["number"])
    top = max(champion.epochs, key=lambda epoch: epoch["val/accuracy"])
    assert best["metrics"]["val/accuracy"] == top["val/accuracy"]
    assert best["metrics"]["val/accuracy_se"] == pytest.approx(standard_error(top["val/accuracy_std"], 3, 2))
    refits = {record["number"]: record for record in records if record["event"] == "refit"}
    assert list(refits) == [FIRST_REFIT, FIRST_REFIT + 1]
    assert refits[FIRST_REFIT]["params"] == {"refit_of": f"trial {champion.number}", "epochs": top["epoch"]}
    epochs = [record for record in records if record["event"] == "epoch" and record["number"] == FIRST_REFIT]
    assert len(epochs) == top["epoch"]
    summary = json.loads(paths.data.read_text())
    assert sum(summary["pictures"]["val"].values()) == 0
    assert "Validation figures are means over 3 folds, 2 seeds each" in out
    assert " ± " in out


def test_the_champion_trained_again_has_its_numbers(whole: tuple[HomePaths, str, str], tmp_path: Path) -> None:
    home, _, _ = whole
    file = tmp_path / "best.yaml"
    found, err = start_thaw(Path(home.root), "best", "folded", "--spec", str(file)).communicate(timeout=60)
    assert "thaw train" in found, err
    spec = load_spec(file)
    assert (spec.data.folds, spec.search.repeats) == (3, 2)
    process = start_thaw(Path(home.root), "train", str(file))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    before, again = (champion_record(read_records(home.sweep(name).journal)) for name in ("folded", "folded-best"))
    assert before is not None
    assert again is not None
    assert again["metrics"] == before["metrics"]


def test_resumed_equals_uninterrupted(whole: tuple[HomePaths, str, str], spec_file: Path, tmp_path: Path) -> None:
    home = HomePaths.at(tmp_path / "home")
    process = start_thaw(Path(home.root), "sweep", str(spec_file))
    await_epochs(process, home.sweep("folded").journal, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    process = start_thaw(Path(home.root), "resume", "folded")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    journals = [each.sweep("folded").journal for each in (whole[0], home)]
    first, second = (numbers_of(read_trials(journal)) for journal in journals)
    assert first == second
    before, after = (champion_record(read_records(journal)) or {} for journal in journals)
    assert before["metrics"] == after["metrics"]
