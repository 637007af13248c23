"""Sweeps chosen by what mistakes cost, from the command to a prediction, and by the area under the ROC curve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running_thaw import start_thaw
from sklearn.datasets import load_digits

from tuner.models.model_file import load_card
from tuner.paths import HomePaths
from tuner.records.journal import champion_record, read_records, read_trials

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
SHORT = ("search.num_trials=2", "search.probe=off", "search.head_init=random", "budget.epochs=3", "baselines=[]")


def run_thaw(home: Path, *arguments: str) -> tuple[str, str]:
    process = start_thaw(home, *arguments)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, err


def sweep(home: Path, spec: Path, name: str, *overrides: str) -> tuple[str, dict[str, float]]:
    """What a short sweep prints, and its champion's figures."""
    options = [part for override in (*SHORT, f"name={name}", *overrides) for part in ("--set", override)]
    out, _ = run_thaw(home, "sweep", str(spec), *options)
    record = champion_record(read_records(HomePaths.at(home).sweep(name).journal))
    assert record is not None
    return out, record["metrics"]


def test_costs_choose_decide_and_predict(tiny_spec: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    out, metrics = sweep(home, tiny_spec, "costly", "metric=val/cost", "costs={9: {5: 30, 6: 30, 7: 30, 8: 30}}")
    paths = HomePaths.at(home).sweep("costly")
    reached = {trial.number: min(epoch["val/cost"] for epoch in trial.epochs) for trial in read_trials(paths.journal)}
    assert metrics["val/cost"] == min(reached.values())
    assert "test cost" in out
    # The reported matrix is of the decisions that cost what is reported.
    confusion = json.loads((paths.report / "confusion.json").read_text())
    counts, costs = np.array(confusion["counts"]), 1 - np.eye(5)
    costs[4, :4] = 30
    assert metrics["test/cost"] == pytest.approx((counts * costs).sum() / counts.sum())
    assert metrics["test/cost_low"] < metrics["test/cost"] < metrics["test/cost_high"]
    assert metrics["test/accuracy"] == pytest.approx(np.trace(counts) / counts.sum())
    # A missed 9 is dear: few of the true ones are missed, though many others are taken for one.
    assert counts[4, 4] / counts[4].sum() > 0.8
    assert load_card(paths.champion).costs == tuple(map(tuple, costs.tolist()))

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    digits = load_digits()
    for index in [index for index in range(200) if digits.target[index] >= 5]:
        pixels = (digits.images[index] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(pictures / f"{digits.target[index]}-{index:04d}.png")
    out, err = run_thaw(home, "predict", str(pictures), "--format", "json", "--top-k", "5")
    assert "the first class is the one expected to cost least" in err
    rows = json.loads(out)
    for first in range(0, len(rows), 5):
        by_class = {row["class"]: row for row in rows[first : first + 5]}
        probabilities = np.array([by_class[name]["probability"] for name in confusion["class_names"]])
        expected = dict(zip(confusion["class_names"], probabilities @ costs, strict=True))
        assert [row["expected_cost"] for row in rows[first : first + 5]] == sorted(
            row["expected_cost"] for row in by_class.values()
        )
        assert by_class["9"]["expected_cost"] == pytest.approx(expected["9"], abs=1e-4)


def test_the_area_under_the_curve_chooses_and_is_reported(tiny_spec: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    out, metrics = sweep(home, tiny_spec, "ranked", "metric=val/auroc")
    reached = [
        max(epoch["val/auroc"] for epoch in trial.epochs)
        for trial in read_trials(HomePaths.at(home).sweep("ranked").journal)
    ]
    assert metrics["val/auroc"] == max(reached) > 0.6
    assert metrics["test/auroc_low"] < metrics["test/auroc"] < metrics["test/auroc_high"]
    assert "test AUROC" in out
    assert "models:/ranked/1" in out
