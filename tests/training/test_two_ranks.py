"""A trial on two ranks gives what it gives on one: metrics, weights, BatchNorm statistics, the optimizer's moments.

Where the tolerances come from. Two ranks add the same numbers in another order, which costs some units in the last
place per step. A network with random weights at 32 px (BatchNorm over a handful of values, many of them constant)
multiplies such an error by orders of magnitude per step, on one rank as on two: nudging one rank's weights by one unit
in the last place moves it as far. So deep networks are compared in float64, where the error starts at 1e-16 and stays
readable after that growth, and float32 is judged on the shallow one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
import torch
from training_support import (
    DEVICE,
    EVERY_CHOICE,
    DoubleRun,
    Numbers,
    RankGroup,
    Tensors,
    num_stages,
    train,
    train_in_double_on,
    train_on,
)

from trainables.config import SplitConfig, TrialConfig
from trainables.data.packing import PackReport
from trainables.data.splits import assign_sides
from trainables.data.table import ImageTable
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.workbench import Workbench

Trial = tuple[list[Numbers], Tensors]
SGD = {"name": "sgd", "lr": 0.05, "backbone_lr_ratio": 0.5, "weight_decay": 1e-3, "warmup_epochs": 0.5}
ADAMW = {"name": "adamw", "lr": 3e-3, "grad_clip_norm": 0.5}


def assert_equal_trials(pair: list[Trial], one: Trial, tolerance: float) -> None:
    """The two ranks agree to the bit; with one rank, losses and all tensors together to a relative ``tolerance``."""
    (epochs, tensors), (other_epochs, other_tensors) = pair
    assert epochs == other_epochs
    assert all(torch.equal(tensor, other_tensors[name]) for name, tensor in tensors.items())
    expected_epochs, expected = one
    assert len(epochs) == len(expected_epochs)
    for found, wanted in zip(epochs, expected_epochs, strict=True):
        # A deep network that has learnt nothing yet gives all pictures scores that are equal but for rounding.
        unordered = {"val/auroc": 0.0} if tolerance > 1e-11 else {}
        assert found | unordered == pytest.approx(wanted | unordered, rel=tolerance)
    assert tensors.keys() == expected.keys()
    for name in expected:
        if "num_batches_tracked" in name or name.endswith("/step"):
            assert torch.equal(tensors[name], expected[name]), name
    assert distance(tensors, expected) <= tolerance


def distance(found: Tensors, expected: Tensors) -> float:
    """Norm of the difference over the norm, of all trained tensors as one vector."""
    names = [name for name in expected if name.startswith("tail/") and expected[name].is_floating_point()]
    difference, size = (
        torch.cat([tensor.flatten().double() for tensor in tensors]).norm().item()
        for tensors in (
            [found[name].double() - expected[name].double() for name in names],
            [expected[n] for n in names],
        )
    )
    return difference / size


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(("depth", "batch_size"), [(0, 16), (1, 7), (2, 45), (4, 16)])
def test_lenet_with_batch_norm_and_dropout(
    two_ranks: RankGroup, config: Callable[..., TrialConfig], optimizer: dict[str, object], depth: int, batch_size: int
) -> None:
    assert num_stages("lenet", 16) == 4
    trial = config(
        depth=depth, batch_size=batch_size, optimizer=optimizer, label_smoothing=0.1, epochs=4,
        augmentation={"policy": "randaugment", "num_views": 2},
    )  # fmt: skip
    pair = two_ranks.call(train_in_double_on, trial)
    assert_equal_trials(pair, train_in_double_on(Ranks(DEVICE), trial), 1e-11)


@pytest.mark.parametrize(
    ("depth", "batch_size", "changes"),
    [
        (0, 7, EVERY_CHOICE),
        (2, 16, EVERY_CHOICE),
        (4, 5, EVERY_CHOICE | {"class_balance": "weighted"}),
        (1, 1, EVERY_CHOICE),  # a rank without a picture, partners on the other
        (0, 16, {"mixup_alpha": 1.0}),
        (1, 9, {"cutmix_alpha": 1.0, "compute": {"prefix_precision": "bf16"}}),
    ],
)
def test_mixed_balanced_averaged_and_accumulated(
    two_ranks: RankGroup, config: Callable[..., TrialConfig], depth: int, batch_size: int, changes: dict[str, object]
) -> None:
    trial = config(depth=depth, batch_size=batch_size, optimizer=SGD, epochs=2, **changes)
    pair = two_ranks.call(train_in_double_on, trial)
    assert_equal_trials(pair, train_in_double_on(Ranks(DEVICE), trial), 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "tolerance"),
    # efficientnet_b0: stochastic depth and dropout. mobilenet_v2 has kinks (ReLU6), where an error can jump.
    [("efficientnet_b0", 1e-8), ("mobilenet_v2", 1e-4), ("resnet18", 1e-10)],
)
def test_deep_networks(
    two_ranks: RankGroup, config: Callable[..., TrialConfig], backbone: str, tolerance: float
) -> None:
    trial = config(backbone, batch_size=23, optimizer={"name": "sgd", "lr": 1e-3}, epochs=2)
    pair = two_ranks.call(train_in_double_on, trial)
    assert_equal_trials(pair, train_in_double_on(Ranks(DEVICE), trial), tolerance)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_float32(two_ranks: RankGroup, config: Callable[..., TrialConfig], depth: int) -> None:
    trial = config(depth=depth, optimizer=SGD, epochs=4)
    # 12 steps from 6e-8 on; seen: 2e-6 at most.
    assert_equal_trials(two_ranks.call(train_on, trial), train(trial), 1e-4)


@pytest.mark.parametrize("depth", [0, 1])
def test_bf16_autocast(two_ranks: RankGroup, config: Callable[..., TrialConfig], depth: int) -> None:
    compute = {"precision": "bf16", "prefix_precision": "bf16"}
    trial = config(depth=depth, optimizer={"name": "sgd", "lr": 0.01}, compute=compute)
    pair, (alone, _) = two_ranks.call(train_on, trial), train(trial)
    assert pair[0][0] == pair[1][0]
    for found, wanted in zip(pair[0][0], alone, strict=True):
        # bf16 has 8 bits: one unit in the last place of a loss of 1.6 is 0.4%.
        assert found["train/loss"] == pytest.approx(wanted["train/loss"], rel=0.01)
        assert found["val/loss"] == pytest.approx(wanted["val/loss"], rel=0.01)


def split_with(report: PackReport, num_train: Callable[[int], bool], num_val: int, share: float) -> SplitConfig:
    """A split of digits 0 to 4 with so many pictures per side: the first seed that deals them so."""
    table = ImageTable.open(report.path)
    rows, _ = table.rows_of(("0", "1", "2", "3", "4"))
    for seed in count():
        split = SplitConfig(train=share, val=0.002, test=0.998 - share, seed=seed)
        sides = assign_sides(table.ids[rows], table.sides[rows], split)
        if num_train(int(np.sum(sides == "train"))) and np.sum(sides == "val") == num_val:
            return split
    raise AssertionError


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_fewer_pictures_than_ranks(
    two_ranks: RankGroup, digits: PackReport, config: Callable[..., TrialConfig], depth: int, batch_size: int
) -> None:
    """One picture to judge by, and batches of one: then a rank has nothing to do, and must do it all the same."""
    split = split_with(digits, lambda number: number % 2 == 1 and number > 4, 1, 0.01)
    trial = config(depth=depth, batch_size=batch_size, split=split, optimizer=SGD, epochs=2)
    pair = two_ranks.call(train_in_double_on, trial)
    assert_equal_trials(pair, train_in_double_on(Ranks(DEVICE), trial), 1e-11)
    assert pair[0][0][0]["val/accuracy"] in (0.0, 1.0)


@pytest.mark.parametrize("depth", [0, 2])
def test_one_picture_to_learn_from(
    two_ranks: RankGroup, digits: PackReport, config: Callable[..., TrialConfig], depth: int
) -> None:
    """The first rank then has no picture in the whole epoch."""
    trial = config(depth=depth, split=split_with(digits, lambda number: number == 1, 1, 0.001), optimizer=SGD, epochs=2)
    pair = two_ranks.call(train_in_double_on, trial)
    assert_equal_trials(pair, train_in_double_on(Ranks(DEVICE), trial), 1e-11)


def confusion_on(ranks: Ranks, config: TrialConfig) -> tuple[dict[str, float], np.ndarray]:
    run = DoubleRun(config, Workbench(), ranks)
    run.run_epoch()
    evaluation = run.evaluate("test")
    return evaluation.metrics, evaluation.confusion


def test_the_confusion_matrix_counts_every_picture_once(
    two_ranks: RankGroup, config: Callable[..., TrialConfig]
) -> None:
    costs = [[0.0 if true == decided else 1.0 + true for decided in range(5)] for true in range(5)]
    trial = config(split=SplitConfig(train=0.5, val=0.02, test=0.48), costs=costs)
    run = TrialRun(trial, Workbench(), Ranks(DEVICE))
    pair, (metrics, confusion) = two_ranks.call(confusion_on, trial), confusion_on(Ranks(DEVICE), trial)
    for found, counts in pair:
        assert counts.sum() == len(run.side("test"))
        assert counts.sum(1).tolist() == np.bincount(run.side("test").labels, minlength=5).tolist()
        assert np.array_equal(counts, confusion)
        assert found == pytest.approx(metrics, rel=1e-11)
        assert found["auroc"] == metrics["auroc"] > 0.5
