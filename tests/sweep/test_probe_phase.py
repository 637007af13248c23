"""The probe before the search: run once, told in one line, remembered by the journal, drawn at the end."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from search_spaces.advice import rules_of_thumb
from search_spaces.loading import load_spec
from search_spaces.seeding import first_points, first_points_of_all
from search_spaces.space import BackboneShape, SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import BackboneConfig, DataConfig, TrialConfig
from trainables.jobs import Message, ProbeJob
from tuner.cluster.lanes import LaneError
from tuner.networks.probing import as_depths, cuts_worth_keeping, probe_record, run_probe_phase
from tuner.paths import HomePaths
from tuner.progress import Progress
from tuner.records.journal import Journal, TrialRecord, read_records
from tuner.report.probe_picture import compose_probe, draw_probe
from tuner.tracking.projection import plan

STAGES = 4
BASE = TrialConfig(
    data=DataConfig(table="t", fingerprint="f", class_names=("a", "b"), image_size_px=16),
    backbone=BackboneConfig(name="lenet"),
    freeze_depth=0,
)


def probe(depth: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    found = {"depth": depth, "stage": f"layer{depth}", "probe_accuracy": accuracy - 0.01, "loo_accuracy": accuracy}
    return {**found, "accuracy": accuracy, "num_judged": 400, "log_me": -1 + accuracy, "num_features": 8, **changes}


PROBES = [probe(1, 0.5), probe(2, 0.7), probe(3, 0.9), probe(4, 0.8, probe_accuracy=math.nan)]


class Pool:
    """Answers a probe, or fails."""

    def __init__(self, error: str | None = None) -> None:
        self.jobs: list[ProbeJob] = []
        self._error = error

    def run(self, job: ProbeJob) -> Iterator[Message]:
        self.jobs.append(job)
        if self._error:
            raise LaneError(self._error)
        yield {"kind": "probe", "probes": PROBES, "metrics": {"time/pass_s": 1.0, "time/fit_s": 0.25}}


class Sweep:
    """A sweep that has come to its probe."""

    def __init__(self, root: Path, *overrides: str) -> None:
        self.spec: SweepSpec = load_spec("digits", list(overrides))
        shapes = {each.backbone: BackboneShape(STAGES, each.is_pretrained) for each in self.spec.model.entries}
        self.space = SearchSpace.over(self.spec.search, shapes)
        self.bases = {
            name: BASE.model_copy(update={"backbone": BackboneConfig(name=name)}) for name in self.space.backbones
        }
        self.paths = HomePaths.at(root).sweep("s")
        self.screen = io.StringIO()
        with Journal.open(self.paths.journal) as journal:
            journal.append("sweep", name="s", params={})

    def begin(self, pool: Pool) -> list[dict[str, Any]] | None:
        with Journal.open(self.paths.journal) as journal:
            progress = Progress(Console(file=self.screen, width=200))
            arguments = (self.spec, self.space, self.bases, pool, self.paths)
            return run_probe_phase(*arguments, record=journal.append, progress=progress)

    @property
    def records(self) -> list[dict[str, Any]]:
        return read_records(self.paths.journal)


def test_the_probe_is_told_written_and_seeds_the_search(tmp_path: Path) -> None:
    sweep, pool = Sweep(tmp_path), Pool()
    points = sweep.begin(pool)
    assert points == first_points(sweep.space, as_depths(PROBES), 16)
    assert [point["freeze_depth"] for point in points] == [4, 3, 2, 2, 1, 1, 0]
    (job,) = pool.jobs
    assert (job.config.freeze_depth, job.config.augmentation.policy, job.config.head_init) == (4, "none", "random")
    assert job.cuts_to_keep == {"train": (1, 2, 3, 4), "val": (1, 2, 3, 4)}
    lines = [line for line in sweep.screen.getvalue().splitlines() if line.startswith("probe:")]
    assert lines == ["probe: depth 3 of 4 is best, 90.0% of 400 pictures; depth 4, only the head: 80.0% (1.2 s)"]
    table = json.loads((sweep.paths.report / "probe.json").read_text())
    assert [row["accuracy"] for row in table["probes"]] == [0.5, 0.7, 0.9, 0.8]
    assert table["probes"][3]["probe_accuracy"] is None, "strict JSON has no NaN"
    assert table["first_trials"] == points
    updates, _ = plan(sweep.records, {}, "s")
    told = [(point.name, point.step, point.value) for point in updates[0].metrics]
    assert told[:2] == [("probe/accuracy", 1, 0.5), ("probe/log_me", 1, -0.5)]
    assert updates[0].files == [(str(sweep.paths.report / "probe.json"), "report")]


SEVERAL = (
    "model.backbone=null",
    "model.weights=default",
    "model.backbones=[resnet18, {backbone: lenet, weights: none}, squeezenet1_1]",
)


def test_of_several_backbones_the_pretrained_ones_are_probed_and_compared(tmp_path: Path) -> None:
    class Compared(Pool):
        def run(self, job: ProbeJob) -> Iterator[Message]:
            self.jobs.append(job)
            better = 0.1 if job.config.backbone.name == "squeezenet1_1" else 0.0
            probes = [{**row, "log_me": row["log_me"] + better} for row in PROBES]
            yield {"kind": "probe", "probes": probes, "metrics": {"time/pass_s": 1.0}}

    sweep, pool = Sweep(tmp_path, *SEVERAL), Compared()
    points = sweep.begin(pool)
    assert [job.config.backbone.name for job in pool.jobs] == ["resnet18", "squeezenet1_1"]
    record = probe_record(sweep.records)
    assert [(row["backbone"], row["depth"]) for row in record["probes"]] == [
        (name, depth) for name in ("resnet18", "squeezenet1_1") for depth in (1, 2, 3, 4)
    ]
    assert record["metrics"] == {"time/pass_s": 2.0}
    probed = {
        name: as_depths([row for row in record["probes"] if row["backbone"] == name]) for name in sweep.space.backbones
    }
    assert points == first_points_of_all(sweep.space, probed, 16)
    assert points[0] | {"backbone": "squeezenet1_1", "freeze_depth": 3} == points[0]
    lines = [line.split() for line in sweep.screen.getvalue().splitlines() if line.startswith("probe:")]
    assert [line[1] for line in lines] == ["squeezenet1_1:", "resnet18:"], "the best first"
    told = {point.name for point in plan(sweep.records, {}, "s")[0][0].metrics}
    assert {"probe/resnet18/accuracy", "probe/squeezenet1_1/log_me"} <= told
    assert sweep.begin(Pool("a second probe")) == points


def test_a_backbone_whose_probe_fails_begins_with_rules_of_thumb(tmp_path: Path) -> None:
    class Half(Pool):
        def run(self, job: ProbeJob) -> Iterator[Message]:
            if job.config.backbone.name == "resnet18":
                raise LaneError("not finite")
            yield from super().run(job)

    sweep = Sweep(tmp_path, *SEVERAL)
    points = sweep.begin(Half())
    assert points[0]["backbone"] == "squeezenet1_1"
    assert {point["backbone"] for point in points} == set(sweep.space.backbones)
    assert probe_record(sweep.records)["reason"] == "resnet18: not finite"


def test_a_sweep_that_goes_on_takes_the_points_from_its_journal(tmp_path: Path) -> None:
    sweep, again = Sweep(tmp_path), Pool("a second probe")
    points = sweep.begin(Pool())
    assert sweep.begin(again) == points
    assert not again.jobs
    assert len([record for record in sweep.records if record["event"] == "probe"]) == 1


def test_a_probe_that_fails_leaves_the_rules_of_thumb_for_good(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    points = sweep.begin(Pool("some features are not finite"))
    assert points == rules_of_thumb(sweep.space)
    assert "some features are not finite; the search begins with rules of thumb" in sweep.screen.getvalue()
    assert probe_record(sweep.records)["reason"] == "some features are not finite"
    assert sweep.begin(Pool()) == points, "or a sweep that goes on would begin otherwise than it began"
    assert plan(sweep.records, {}, "s")[0][0].metrics == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["search.probe=off"],
        ["model.weights=none"],
        ["search.freeze_depth=2"],
        ["search.freeze_depth=all", "search.backbone_lr_ratio=1.0"],
        ["data.labels=multi", "metric=val/map"],
        [*SEVERAL, "data.labels=multi", "metric=val/map"],
    ],
)
def test_there_is_no_probe_where_it_decides_nothing(tmp_path: Path, overrides: list[str]) -> None:
    sweep, pool = Sweep(tmp_path, *overrides), Pool()
    assert sweep.begin(pool) is None
    assert not pool.jobs
    assert [record["event"] for record in sweep.records] == ["sweep"]


def test_a_sweep_that_began_without_a_probe_goes_on_without(tmp_path: Path) -> None:
    sweep, pool = Sweep(tmp_path), Pool()
    with Journal.open(sweep.paths.journal) as journal:
        journal.append("trial", number=0, params={})
    assert sweep.begin(pool) is None
    assert not pool.jobs


def test_on_means_on(tmp_path: Path) -> None:
    pool = Pool()
    assert Sweep(tmp_path, "search.probe=on", "model.weights=none").begin(pool)
    assert len(pool.jobs) == 1


@pytest.mark.parametrize(
    ("overrides", "train", "val"),
    [
        (["search.augmentation=[none, flip]"], (1, 2, 3, 4), (1, 2, 3, 4)),
        (["search.augmentation=flip"], (4,), (1, 2, 3, 4)),
        (["search.freeze_depth=[0, 2]"], (2, 4), (2,)),
        (["search.freeze_depth=0", "search.augmentation=flip"], (4,), (4,)),
    ],
)
def test_only_what_trials_may_read_is_kept(
    tmp_path: Path, overrides: list[str], train: tuple[int, ...], val: tuple[int, ...]
) -> None:
    sweep = Sweep(tmp_path, *overrides)
    assert cuts_worth_keeping(sweep.spec, sweep.space) == {"train": train, "val": val}


def trial(number: int, depth: int, accuracies: list[float]) -> TrialRecord:
    epochs = tuple({"epoch": n, "val/accuracy": accuracy} for n, accuracy in enumerate(accuracies, 1))
    return TrialRecord(number, {"freeze_depth": depth}, epochs, "completed")


def test_the_picture_holds_the_curve_and_what_trials_reached() -> None:
    trials = [trial(0, 4, [0.6, 0.8]), trial(1, 0, [0.95, 0.9]), trial(2, 2, [])]
    found = [{**row, "probe_accuracy": None if row["depth"] == 4 else row["probe_accuracy"]} for row in PROBES]
    picture = compose_probe("title", found, trials)
    assert picture.accuracies == (0.5, 0.7, 0.9, 0.8)
    assert picture.errors[0] == pytest.approx(0.025)
    assert picture.best == 3
    assert picture.stages == ("layer1", "layer2", "layer3", "layer4")
    assert picture.val_accuracies[3] is None
    assert picture.trials == ((4, 0.8), (0, 0.95))
    for drawn in (picture, compose_probe("no trials", found), compose_probe("one stage", found[:1])):
        with Image.open(io.BytesIO(draw_probe(drawn))) as image:
            assert image.format == "PNG"
            assert len(set(image.convert("L").tobytes())) > 10
