"""A trial of several replicas is the mean of trials that each were trained alone, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from training_support import DEVICE, EVERY_CHOICE, Numbers, RankGroup, Tensors, assert_same_bits, finish, numbers

from trainables.config import DataConfig, FeatureSettings, SplitConfig, SplitName, TrialConfig
from trainables.data.side import Side
from trainables.ranks import Ranks
from trainables.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trainables.training.loop import DivergedError, TrialRun
from trainables.training.replicas import ReplicatedRun, combined
from trainables.training.workbench import Workbench

SPLIT = SplitConfig(train=0.06, val=0.03, test=0.91)


def in_folds(config: Callable[..., TrialConfig], folds: int = 3, **changes: Any) -> TrialConfig:
    trial = config(**{"split": SPLIT, "epochs": 2, **changes})
    return trial.model_copy(update={"data": trial.data.model_copy(update={"folds": folds})})


def train(config: TrialConfig, bench: Workbench | None = None) -> tuple[list[Numbers], Tensors]:
    return finish(ReplicatedRun(config, bench or Workbench(), Ranks(DEVICE)))


def bench_at(folder: Path) -> Workbench:
    return Workbench(features=FeatureSettings(directory=str(folder)))


class PlainBench(Workbench):
    """Sides that know of no folds: what a data set with these train and val folders would have."""

    def side(self, config: DataConfig, name: SplitName) -> Side:
        side = super().side(config, name)
        return Side(side.table, side.rows, side.labels, name)


@pytest.mark.parametrize(
    ("depth", "changes"),
    [
        (0, {}),
        (2, EVERY_CHOICE),
        (2, {"head_init": "probe", "augmentation": {"policy": "none"}}),
        (4, {"head_init": "probe"}),
    ],
)
def test_the_mean_of_plain_trials(config: Callable[..., TrialConfig], depth: int, changes: dict[str, Any]) -> None:
    trial = in_folds(config, depth=depth, repeats=2, **changes)
    epochs, state = train(trial)
    replicas = trial.replicas()
    assert [(each.data.fold, each.seed) for each in replicas] == [(f, s) for f in range(3) for s in (0, 1)]
    alone = [finish(TrialRun(each, PlainBench(), Ranks(DEVICE))) for each in replicas]
    for epoch, metrics in enumerate(epochs):
        own = [each[0][epoch] for each in alone]
        for name in own[0]:
            values = [each[name] for each in own]
            assert metrics[name] == pytest.approx(
                sum(values) if name.startswith("compute/") else fmean(values), rel=1e-12
            )
        of_folds = [fmean(each["val/accuracy"] for each in own[first : first + 2]) for first in (0, 2, 4)]
        assert metrics["val/accuracy_std"] == pytest.approx(stdev(of_folds), rel=1e-12)
    for number, (_, tensors) in enumerate(alone):
        mine = {
            f"{group}/{name.removeprefix(f'{number}/')}": tensor
            for group, _, name in (key.partition("/") for key in state)
            for tensor in (state[f"{group}/{name}"],)
            if name.startswith(f"{number}/")
        }
        assert_same_bits(mine, tensors)


def test_what_one_fold_has_no_figure_for_the_trial_has_none_for() -> None:
    of_folds = [{"val/accuracy": 0.5, "val/auroc": 0.9}, {"val/accuracy": 0.7}]
    for metrics in (of_folds, of_folds[::-1]):
        assert combined(metrics, 2) == pytest.approx({"val/accuracy": 0.6, "val/accuracy_std": 0.02**0.5})


def test_every_picture_is_judged_once_and_tested_ones_never(config: Callable[..., TrialConfig]) -> None:
    bench, trial = Workbench(), in_folds(config)
    plain = config(split=SPLIT)
    test = bench.side(plain.data, "test").rows
    judged = [bench.side(each.data, "val").rows for each in trial.replicas()]
    untested = np.sort(np.concatenate([bench.side(plain.data, name).rows for name in ("train", "val")]))
    np.testing.assert_array_equal(np.sort(np.concatenate(judged)), untested)
    for each in trial.replicas():
        np.testing.assert_array_equal(bench.side(each.data, "test").rows, test)
        together = np.concatenate([bench.side(each.data, name).rows for name in ("train", "val")])
        np.testing.assert_array_equal(np.sort(together), untested)
    np.testing.assert_array_equal(bench.side(trial.refit().data, "train").rows, untested)
    assert len(bench.side(trial.refit().data, "val")) == 0


@pytest.mark.parametrize(
    "changes", [{"depth": 2, "optimizer": {"lr": 0.01}, **EVERY_CHOICE}, {"depth": 0, "repeats": 2}]
)
def test_resumed_equals_uninterrupted(
    config: Callable[..., TrialConfig], changes: dict[str, Any], tmp_path: Path
) -> None:
    trial = in_folds(config, epochs=3, **changes)
    expected_epochs, expected = train(trial)
    first = ReplicatedRun(trial, Workbench(), Ranks(DEVICE))
    epochs = [numbers(first.run_epoch())]
    save_checkpoint(str(tmp_path / "last"), first.checkpoint())
    second = ReplicatedRun(trial, Workbench(), Ranks(DEVICE))
    second.restore(load_checkpoint(str(tmp_path / "last")))
    assert second.epoch == 1
    rest, end = finish(second)
    assert epochs + rest == expected_epochs
    assert_same_bits(end, expected)
    more = in_folds(config, folds=4, epochs=3, **changes)
    with pytest.raises(CheckpointError, match=r"no weights of fold 4|stands on frozen weights"):
        ReplicatedRun(more, Workbench(), Ranks(DEVICE)).restore(load_checkpoint(str(tmp_path / "last")))


@pytest.mark.parametrize("policy", ["none", "flip_crop"])
@pytest.mark.parametrize("head_init", ["random", "probe"])
def test_folds_share_what_is_stored(
    config: Callable[..., TrialConfig], policy: str, head_init: str, tmp_path: Path
) -> None:
    views = {"policy": policy, "num_views": 1}
    trial = in_folds(config, depth=2, epochs=2, augmentation=views, head_init=head_init)
    scores = [{name: value for name, value in epoch.items() if "compute/" not in name} for epoch in train(trial)[0]]
    for read_before in (False, True):
        epochs, _ = train(trial, bench_at(tmp_path))
        assert [{name: v for name, v in each.items() if "compute/" not in name} for each in epochs] == scores
        read = [epoch["compute/images_from_store"] for epoch in epochs]
        # 71 pictures in three folds: each is learnt from twice and judged once, per epoch.
        assert read[1] == 213
        if read_before:
            assert read[0] == 213
    # One entry per view of all 71, whichever fold looks at them; without augmentation it serves for judging too.
    entries = len(list(tmp_path.rglob("manifest*")))
    assert entries == {"none": 1, "flip_crop": 2}[policy] + (head_init == "probe")


def train_on(ranks: Ranks, config: TrialConfig, folder: str) -> list[Numbers]:
    return finish(ReplicatedRun(config, bench_at(Path(folder)), ranks))[0]


def test_two_ranks_are_one(two_ranks: RankGroup, config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    trial = in_folds(config, depth=2, optimizer={"name": "sgd", "lr": 0.01})
    first, second = two_ranks.call(train_on, trial, str(tmp_path / "two"))
    assert first == second
    for found, wanted in zip(first, train(trial, bench_at(tmp_path / "one"))[0], strict=True):
        for name in ("train/loss", "val/loss", "val/accuracy"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-4)


def test_seeds_alone_keep_the_split(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    trial = config(epochs=2, repeats=3, split=SPLIT)
    run = ReplicatedRun(trial, Workbench(), Ranks(DEVICE))
    epochs, _ = finish(run)
    assert [each.seed for each in trial.replicas()] == [0, 1, 2]
    first, _ = finish(TrialRun(config(epochs=2, split=SPLIT), Workbench(), Ranks(DEVICE)))
    assert epochs[-1]["val/loss_std"] > 0
    assert epochs[-1]["val/loss"] != first[-1]["val/loss"]
    # What is kept as the trial's model is that of the first seed, the one that a trial without repeats has.
    kept = run.checkpoint(weights_only=True)
    plain = TrialRun(config(epochs=2, split=SPLIT), Workbench(), Ranks(DEVICE))
    finish(plain)
    assert kept.meta["config"] == plain.config.model_dump(mode="json")
    assert all(torch.equal(tensor, plain.checkpoint().tail[name]) for name, tensor in kept.tail.items())


def test_one_that_diverges_ends_all(config: Callable[..., TrialConfig]) -> None:
    trial = in_folds(config, depth=1, optimizer={"name": "sgd", "lr": 1e6}, epochs=30)
    run = ReplicatedRun(trial, Workbench(), Ranks(DEVICE))
    with pytest.raises(DivergedError, match=r"fold 1 of 3, seed 0: .* loss is"):
        finish(run)
