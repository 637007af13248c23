"""A whole sweep as its users run it: to the end, interrupted and resumed, with every trial failing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running_thaw import numbers_of, run_sweep_to_its_end, start_thaw

from search_spaces.loading import load_spec
from tuner.paths import HomePaths
from tuner.records.journal import read_records, read_trials

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def whole(tiny_spec: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[HomePaths, str, str]:
    """One sweep to its end: its home and what it printed."""
    return run_sweep_to_its_end(tmp_path_factory.mktemp("whole") / "home", tiny_spec, 240)


def test_a_sweep_ends_with_a_tested_and_registered_champion(whole: tuple[HomePaths, str, str]) -> None:
    home, out, err = whole
    trials = read_trials(home.sweep("tiny").journal)
    assert [trial.number for trial in trials] == list(range(5))
    assert {trial.outcome for trial in trials} <= {"completed", "stopped_early"}
    assert "Best of 5 trials" in out
    assert "95% interval" in out
    assert "models:/tiny/1" in out
    assert "thaw predict PICTURES --model tiny@champion" in out
    assert "thaw ui" in out
    assert "were read from the store" in out
    assert "The store holds" in out
    assert "5/5 done" in err
    assert re.search(r"training baseline \w+: 5 of 5$", err, re.M)
    assert "s of training" in out
    assert re.search(r"^probe: depth \d of 4 is best, [\d.]+% of \d+ pictures", err, re.M)

    events = [record["event"] for record in read_records(home.sweep("tiny").journal)]
    assert events[-1] == "finished"
    (champion,) = (record for record in read_records(home.sweep("tiny").journal) if record["event"] == "champion")
    low, accuracy, high = (champion["metrics"][f"test/accuracy{end}"] for end in ("_low", "", "_high"))
    assert 0 < low < accuracy < high <= 1
    # Learning happened: five classes, so guessing is right one time in five.
    assert champion["metrics"]["val/accuracy"] > 0.6


def test_mlflow_holds_the_sweep_and_its_model(whole: tuple[HomePaths, str, str]) -> None:
    from tuner.tracking.mlflow_client import open_client

    home, _, _ = whole
    client = open_client(home.tracking_uri(None, {}))
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    assert 0 < parents[0].data.metrics["reuse/hit_rate"] < 1
    assert parents[0].data.metrics["reuse/bytes_held"] > 0
    children = [run for run in runs if run not in parents]
    assert len(children) == 6  # five trials and a baseline
    for run in children:
        assert run.data.tags["thaw.outcome"] in ("completed", "stopped_early")
        assert "freeze_depth" in run.data.params
        assert client.get_metric_history(run.info.run_id, "val/accuracy")
        assert ("compute/predicted_gflops" in run.data.metrics) == ("thaw.baseline" not in run.data.tags)
    assert client.get_model_version_by_alias("tiny", "champion").version in ("1", 1)
    assert {item.path for item in client.list_artifacts(parents[0].info.run_id, "report")} >= {
        "report/confusion.png",
        "report/confusion.csv",
        "report/probe.json",
        "report/probe.png",
    }
    probed = client.get_metric_history(parents[0].info.run_id, "probe/accuracy")
    assert [point.step for point in sorted(probed, key=lambda point: point.step)] == [1, 2, 3, 4]


def test_predict_uses_the_champion(whole: tuple[HomePaths, str, str], tmp_path: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    home, _, _ = whole
    digits = load_digits()
    chosen = [index for index in range(400) if digits.target[index] >= 5][:60]
    for index in chosen:
        pixels = (digits.images[index] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(tmp_path / f"{digits.target[index]}-{index:04d}.png")
    process = start_thaw(Path(home.root), "predict", str(tmp_path), "--format", "json", "--top-k", "2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rows = json.loads(out)
    assert len(rows) == 2 * len(chosen)
    first = [row for row in rows if row["rank"] == 1]
    right = sum(Path(row["picture"]).name[0] == row["class"] for row in first)
    assert right / len(first) > 0.6


def test_trials_are_listed_in_every_format(whole: tuple[HomePaths, str, str]) -> None:
    home, _, _ = whole
    outputs = {}
    for name in ("table", "csv", "json"):
        process = start_thaw(Path(home.root), "trials", "tiny", "--format", name)
        outputs[name], err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    rows = json.loads(outputs["json"])
    assert len(rows) == 5
    accuracies = [row["val/accuracy"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert outputs["csv"].splitlines()[0].startswith("number,outcome,reason,epochs")
    assert len(outputs["csv"].splitlines()) == 6
    assert len(re.findall(r"^\s+\d ", outputs["table"], re.M)) == 5


def await_epochs(process: subprocess.Popen[str], journal: Path, number: int) -> None:
    """Returns when so many epochs are in the journal, or the process has ended, or after two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and sum(record["event"] == "epoch" for record in read_records(journal)) >= number:
            break
        time.sleep(0.02)


@pytest.mark.long
def test_interrupted_and_resumed_equals_uninterrupted(
    whole: tuple[HomePaths, str, str], tiny_spec: Path, tmp_path: Path
) -> None:
    home = HomePaths.at(tmp_path / "home")
    journal = home.sweep("tiny").journal
    process = start_thaw(Path(home.root), "sweep", str(tiny_spec))
    await_epochs(process, journal, 3)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "thaw resume tiny" in out
    interrupted = read_trials(journal)
    assert len(interrupted) < 5 or any(trial.outcome is None for trial in interrupted)

    process = start_thaw(Path(home.root), "resume", "tiny")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "models:/tiny/1" in out
    assert numbers_of(read_trials(journal)) == numbers_of(read_trials(whole[0].sweep("tiny").journal))

    process = start_thaw(Path(home.root), "resume", "tiny")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "is finished" in out
    assert "--set search.num_trials" in out

    process = start_thaw(Path(home.root), "resume", "tiny", "--set", "search.num_trials=6")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "changed: search.num_trials: 5 -> 6" in err
    trials = read_trials(journal)
    assert numbers_of(trials[:5]) == numbers_of(read_trials(whole[0].sweep("tiny").journal)), "what was there stays"
    assert [trial.number for trial in trials] == list(range(6))
    begun = [record["number"] for record in read_records(journal) if record["event"] == "trial"]
    assert begun.count(5) == 1


@pytest.mark.long
def test_a_budget_of_flops_bounds_a_sweep_over_an_interruption(
    whole: tuple[HomePaths, str, str], tiny_spec: Path, tmp_path: Path
) -> None:
    trials = read_trials(whole[0].sweep("tiny").journal)
    # About what the first three trials of the whole sweep computed.
    budget = 1e9 * sum((trial.metrics or {})["compute/trial_gflops"] for trial in trials[:3])
    home = HomePaths.at(tmp_path / "home")
    journal = home.sweep("tiny").journal
    overrides = ["--set", f"budget.flops={budget:.6e}", "--set", "search.num_trials=auto", "--set", "baselines=[]"]
    process = start_thaw(Path(home.root), "sweep", str(tiny_spec), *overrides)
    await_epochs(process, journal, 3)
    process.kill()
    process.communicate(timeout=60)
    process = start_thaw(Path(home.root), "resume", "tiny")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "% of the budget spent" in err
    spent = 1e9 * sum(
        record["metrics"]["compute/gflops"] for record in read_records(journal) if record["event"] == "epoch"
    )
    most_of_an_epoch = 1e9 * max(
        record["metrics"]["compute/gflops"] for record in read_records(journal) if record["event"] == "epoch"
    )
    assert budget <= spent < budget + 2 * most_of_an_epoch
    bounded = read_trials(journal)
    assert bounded[-1].outcome in ("stopped_early", "completed")
    if bounded[-1].outcome == "stopped_early":
        assert bounded[-1].reason == "the budget of FLOPs is spent"


def test_trials_have_a_price_and_the_cheapest_of_the_first_run_first(whole: tuple[HomePaths, str, str]) -> None:
    trials = read_trials(whole[0].sweep("tiny").journal)
    assert all(trial.predicted for trial in trials)
    # Everything drawn before there are results goes by its price; deeper is cheaper.
    depths = [trial.params["freeze_depth"] for trial in trials]
    assert depths[0] == max(depths)
    assert depths[-1] == min(depths)
    # What the probe or an earlier trial stored need not be computed again, and the plan may not count on it: never more
    # than predicted, never less than the trained part.
    for trial in trials:
        if trial.outcome == "completed":
            computed = (trial.metrics or {})["compute/trial_gflops"]
            predicted = (trial.predicted or {})["compute/predicted_gflops"]
            trained = predicted - (trial.predicted or {})["compute/predicted_fill_gflops"]
            assert trained * (1 - 1e-9) <= computed <= predicted * (1 + 1e-9)
    assert trials[0].outcome == "completed"


@pytest.mark.long
def test_when_every_trial_fails_the_sweep_says_why(tiny_spec: Path, tmp_path: Path) -> None:
    # Steps of this size leave the range of float32 at once.
    overrides = ["--set", "search.lr=1.0e+30", "--set", "search.num_trials=2", "--set", "search.optimizer=sgd"]
    overrides += ["--set", "search.grad_clip_norm=null", "--set", "search.warmup_epochs=0"]
    process = start_thaw(tmp_path / "home", "sweep", str(tiny_spec), *overrides)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "no trial of sweep 'tiny' succeeded: 2 x diverged" in err
    assert "Traceback" not in err


@pytest.mark.long
def test_from_python(tiny_spec: Path, tmp_path: Path) -> None:
    """In a process of its own, as a script or a notebook would: nothing is printed, everything is returned."""
    code = f"""
from tuner import load_spec, run_sweep
spec = load_spec({str(tiny_spec)!r}, ["search.num_trials=2", "budget.epochs=2", "baselines=[]", "name=py"])
result = run_sweep(spec, home={str(tmp_path / "home")!r})
assert list(result.trials["number"].sort_values()) == [0, 1]
assert result.champion.model_uri == "models:/py/1", result.champion
assert result.champion.standing.test["accuracy_low"] < result.champion.standing.test["accuracy"]
print("ok")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "ok"
    assert load_spec(tmp_path / "home" / "sweeps" / "py" / "spec.yaml").search.num_trials == 2


@pytest.mark.long
def test_the_champions_spec_trains_the_champion_again(whole: tuple[HomePaths, str, str], tmp_path: Path) -> None:
    home, _, _ = whole
    root, file = Path(home.root), tmp_path / "best.yaml"
    shown, err = start_thaw(root, "best", "tiny").communicate(timeout=60)
    assert "test accuracy" in shown, err
    found, err = start_thaw(root, "best", "tiny", "--spec", str(file)).communicate(timeout=60)
    assert "thaw train" in found, err
    # As a champion that was ended an epoch earlier would be written down.
    process = start_thaw(root, "train", str(file), "--set", "budget.last_epoch=2")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "models:/tiny-best/1" in out
    champion = next(each for each in read_records(home.sweep("tiny").journal) if each["event"] == "champion")
    there = numbers_of(read_trials(home.sweep("tiny").journal))[champion["number"]]
    (again,) = numbers_of(read_trials(home.sweep("tiny-best").journal)).values()
    assert again[1:] == ("completed", there[2][:2])
    shown, _ = start_thaw(root, "show", "tiny-best", "0").communicate(timeout=60)
    assert "Trial 0: completed" in shown
    refused = start_thaw(root, "train", "digits")
    _, err = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert "search.lr" in err
