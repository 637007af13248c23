"""A sweep over pictures with several labels, from a list to predictions."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from running_thaw import start_thaw
from sklearn.datasets import load_digits

from search_spaces.advice import rules_of_thumb
from search_spaces.dimension import Value
from search_spaces.loading import load_spec
from trainables.config import DataConfig
from trainables.data.fit import FitChoice
from trainables.data.packing import PackReport
from trainables.errors import InputError
from tuner.networks.network import Network, space_over
from tuner.networks.preparing import build_cuts, check_metric
from tuner.paths import HomePaths
from tuner.pictures.dealt import Judged, PreparedData
from tuner.records.journal import champion_record, read_records, read_trials

SPEC = """
version: 1
name: labels
data:
  source: csv:LIST
  labels: multi
  image_size_px: 16
  split: {train: 0.5, val: 0.25, test: 0.25}
model: {backbone: lenet, weights: none}
search: {num_trials: 2, lr: 0.005, optimizer: adamw, freeze_depth: [0, 1]}
budget: {epochs: 4, threads_per_worker: 1}
"""


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "metric=val/accuracy",
            "metric: val/accuracy is for pictures of one class, and data.labels is multi; use",
        ),
        (
            "costs={big: {even: 2}}",
            "costs: they are for pictures of one class, and data.labels is multi; leave",
        ),
        (
            "search.class_balance=[none, weighted]",
            "search.class_balance: weighted is for pictures of one class, and data.labels is multi; use none",
        ),
        ("search.class_balance=balanced", "search.class_balance: balanced is for pictures of one class"),
        (
            "search.mixup_alpha=[0, 0.2]",
            "search.mixup_alpha: mixup is for pictures of one class, and data.labels is multi; set it to 0",
        ),
        ("search.cutmix_alpha={low: 0.1, high: 1}", "search.cutmix_alpha: CutMix is for pictures of one class"),
        ("search.head_init=probe", "search.head_init: probe is for pictures of one class"),
        ("search.probe=on", "search.probe: the probe is for pictures of one class"),
    ],
)
def test_what_needs_one_class_is_refused_with_its_field(tmp_path: Path, override: str, line: str) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text(SPEC)
    assert load_spec(path).metric == "val/map"
    with pytest.raises(InputError) as caught:
        load_spec(path, [override])
    assert line in str(caught.value)
    with pytest.raises(InputError, match="metric: val/map is of pictures with several labels"):
        load_spec(path, ["data.labels=single", "metric=val/map"])


def test_no_head_of_several_labels_starts_from_a_probe_on_any_backbone(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text(SPEC.replace("{backbone: lenet, weights: none}", "{backbones: [lenet, squeezenet1_1]}"))

    def heads(*overrides: str) -> set[Value]:
        spec = load_spec(path, overrides)
        cuts = build_cuts("lenet", 2, 16)
        space = space_over(spec, {each.backbone: Network(each, 16, cuts) for each in spec.model.entries})
        return {point.get("head_init", "random") for point in rules_of_thumb(space)}

    assert heads() == {"random"}
    assert "probe" in heads("data.labels=single", "metric=val/accuracy")


def test_a_metric_that_the_validation_side_cannot_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text(SPEC)

    def prepared(**val: int) -> PreparedData:
        config = DataConfig(table="t", fingerprint="f", class_names=("big", "even"), image_size_px=16)
        report = PackReport(tmp_path, "f", 40, ("big", "even"), (), reused=False, seconds=0.0)
        fit = FitChoice("crop", "square")
        return PreparedData(config, report, {"val": val}, "digest", {"val": 9}, fit, (Judged(9, val),))

    for metric in ("val/map", "val/auroc", "val/macro_f1", "val/loss"):
        check_metric(load_spec(path, [f"metric={metric}"]), prepared(big=9, even=1))
    check_metric(load_spec(path), prepared(big=9, even=0))
    with pytest.raises(InputError, match="val/map is the mean over labels, and no picture of the validation side"):
        check_metric(load_spec(path), prepared(big=0, even=0))
    folded, folds = (
        load_spec(path, ["data.folds=2"]),
        (Judged(5, {"big": 2, "even": 5}), Judged(4, {"big": 1, "even": 4})),
    )
    check_metric(folded, replace(prepared(big=0, even=0), judged=folds))
    with pytest.raises(InputError, match="no picture of one fold has any: give fewer folds, or try"):
        check_metric(folded, replace(prepared(big=0, even=0), judged=(*folds, Judged(4, {"big": 0, "even": 0}))))
    with pytest.raises(InputError, match="all of one fold show 'even': give fewer folds"):
        check_metric(
            load_spec(path, ["data.folds=2", "metric=val/auroc"]),
            replace(prepared(big=0, even=0), judged=(folds[0], Judged(4, {"big": 0, "even": 4}))),
        )
    for counts, shown in (({"big": 9, "even": 0}, "'big'"), ({"big": 0, "even": 0}, "nothing")):
        with pytest.raises(InputError, match=f"all of the validation side show {shown}: give data.split.val"):
            check_metric(load_spec(path, ["metric=val/auroc"]), prepared(**counts))


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("folds", [0, 3])
def test_labels_are_learnt_reported_and_predicted(tmp_path: Path, folds: int) -> None:
    digits, lines = load_digits(), ["file,label"]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(600):
        digit = int(digits.target[index])
        facts = {"big": digit >= 5, "even": digit % 2 == 0}
        name = f"{digit}-{index:04d}.png"
        Image.fromarray((digits.images[index] * 255 / 16).round().astype("uint8")).save(pictures / name)
        lines.append(f"{name},{'|'.join(label for label, is_true in facts.items() if is_true)}")
    (pictures / "list.csv").write_text("\n".join(lines))
    spec = tmp_path / "labels.yaml"
    spec.write_text(SPEC.replace("LIST", str(pictures / "list.csv")))
    home = tmp_path / "home"
    process = start_thaw(home, "sweep", str(spec), "--set", f"data.folds={folds}")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "test mAP" in out
    assert ("means over 3 folds" in out) == bool(folds)

    paths = HomePaths.at(home).sweep("labels")
    record = champion_record(read_records(paths.journal))
    assert record is not None
    reached = [max(epoch["val/map"] for epoch in trial.epochs) for trial in read_trials(paths.journal)]
    assert record["metrics"]["val/map"] == max(reached)
    lines_of = list(csv.DictReader((paths.report / "labels.csv").read_text().splitlines()))
    assert [line["label"] for line in lines_of] == ["big", "even"]
    mean = sum(float(line["average_precision"]) for line in lines_of) / 2
    assert record["metrics"]["test/map"] == pytest.approx(mean)
    assert mean > 0.7

    process = start_thaw(home, "predict", str(pictures), "--format", "json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rows = [row for row in json.loads(out) if row["picture"].endswith(".png")]
    assert len(rows) == 1200
    right = [row["given"] == (int(Path(row["picture"]).name[0]) >= 5) for row in rows if row["class"] == "big"]
    assert sum(right) / len(right) > 0.7
    assert all(row["given"] == (row["probability"] >= 0.5) for row in rows)
