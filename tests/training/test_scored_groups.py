"""From a tested checkpoint to the figures that people see: groups, and the precision of the model's file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_support import DEVICE

from trainables.config import SplitConfig, TrialConfig
from trainables.data.splits import clusters_of
from trainables.jobs import BEST_CHECKPOINT, Message, ScoreJob
from trainables.lanes import lane
from trainables.ranks import Ranks
from trainables.training.checkpoint import save_checkpoint
from trainables.training.loop import TrialRun
from trainables.training.workbench import Workbench
from tuner.ending import steps
from tuner.ending.refitting import Model
from tuner.report.clusters import NUM_CLUSTERS
from tuner.report.confusion import Confusion
from tuner.report.intervals import wilson_interval

SPLIT = SplitConfig(train=0.3, val=0.2, test=0.5)


class Pool:
    """Scores in this process, as a lane does."""

    def __init__(self) -> None:
        self.jobs: list[ScoreJob] = []

    def run(self, job: ScoreJob) -> Iterator[Message]:
        self.jobs.append(job)
        messages: list[Message] = []
        line: Any = SimpleNamespace(report=lambda _, message: messages.append(message))
        with closing(TrialRun(job.config, Workbench(), Ranks(DEVICE))) as run:
            lane._score(run, job, None, line)  # type: ignore[arg-type]
        return iter(messages)


def scored(config: TrialConfig, folder: Path) -> tuple[dict[str, float], Confusion, ScoreJob]:
    run = TrialRun(config, Workbench(), Ranks(DEVICE))
    run.run_epoch()
    save_checkpoint(str(folder / BEST_CHECKPOINT), run.checkpoint(weights_only=True))
    pool = Pool()
    metrics, confusion = steps._score(SimpleNamespace(pool=pool), Model(config, str(folder)))  # type: ignore[arg-type]
    assert isinstance(confusion, Confusion)
    return metrics, confusion, pool.jobs[0]


def grouped(config: TrialConfig, pattern: str | None) -> TrialConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"group_pattern": pattern})})


@pytest.mark.parametrize("depth", [0, 2])
def test_shots_of_one_part_make_a_wider_interval_than_as_many_pictures(
    config: Callable[..., TrialConfig], tmp_path: Path, depth: int
) -> None:
    plain = config(depth=depth, split=SPLIT, epochs=1, optimizer={"lr": 3e-3})
    metrics, confusion, _ = scored(grouped(plain, r"(\d+)\d\D*$"), tmp_path / "grouped")
    low, high = wilson_interval(confusion.correct, confusion.total)
    assert metrics[NUM_CLUSTERS] < confusion.total / 2
    assert metrics["accuracy_low"] < low < metrics["accuracy"] == confusion.correct / confusion.total
    assert high < metrics["accuracy_high"]
    alone, confusion, _ = scored(plain, tmp_path / "alone")
    ends = wilson_interval(confusion.correct, confusion.total)
    assert (alone["accuracy_low"], alone["accuracy_high"]) == pytest.approx(ends)
    assert NUM_CLUSTERS not in alone
    assert alone["balanced_accuracy_low"] < alone["balanced_accuracy"] < alone["balanced_accuracy_high"]
    assert alone["auroc_low"] < alone["auroc"] < alone["auroc_high"]
    assert alone["majority_rate"] == confusion.majority_rate


def test_the_test_side_is_judged_in_the_precision_of_the_models_file(
    config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    compute = {"precision": "bf16", "prefix_precision": "bf16"}
    trained = config(depth=2, split=SPLIT, epochs=1, compute=compute)
    _, confusion, job = scored(trained, tmp_path)
    assert (job.config.compute.precision, job.config.compute.prefix_precision) == ("fp32", "fp32")
    assert job.config.model_copy(update={"compute": trained.compute}) == trained
    whole = trained.model_copy(update={"compute": job.config.compute})
    run = TrialRun(whole, Workbench(), Ranks(DEVICE))
    run.restore(lane.load_checkpoint(job.checkpoint))
    assert Confusion.of(whole.data.class_names, run.evaluate("test").confusion) == confusion


def test_clusters_are_what_was_dealt_as_one(config: Callable[..., TrialConfig]) -> None:
    trial = grouped(config(split=SPLIT), r"(\d+)\d\D*$")
    bench = Workbench()
    whole = [(name, clusters_of(bench.side(trial.data, name), trial.data)) for name in ("train", "val", "test")]
    for name, clusters in whole:
        side = bench.side(trial.data, name)
        groups = side.table.groups_of(side.rows, trial.data.group_pattern)
        assert Counter(clusters).most_common(1)[0][1] > 1
        assert len(set(zip(groups, clusters, strict=True))) == len(set(clusters)) == len(set(groups))
        assert max(clusters) + 1 == len(set(clusters))
