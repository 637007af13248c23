"""Training from stored features gives the numbers of training from pictures, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_support import DEVICE, EVERY_CHOICE, RankGroup, copied, num_stages

from trainables.config import FeatureSettings, TrialConfig
from trainables.features.source import FeaturesRequiredError
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.workbench import Workbench

FAST = ["lenet", "squeezenet1_1"]
SLOW = [
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "densenet121",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "regnet_y_400mf",
    "googlenet",
]


def bench_at(folder: Path, **changes: object) -> Workbench:
    return Workbench(features=FeatureSettings(directory=str(folder), **changes))


def train(config: TrialConfig, bench: Workbench) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], list[float]]:
    """Metrics by epoch, the trained tensors, and how many pictures each epoch read from the store."""
    run = TrialRun(config, bench, Ranks(DEVICE))
    epochs, read = [], []
    while run.epoch < config.epochs:
        metrics = run.run_epoch()
        read.append(metrics["compute/images_from_store"])
        epochs.append({name: value for name, value in metrics.items() if name.startswith(("train/", "val/"))})
    tail = copied(run.checkpoint().tail)
    run.close()
    return epochs, tail, read


def assert_same(first: tuple, second: tuple) -> None:
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    for name, tensor in first[1].items():
        assert torch.equal(tensor, second[1][name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_stored_equals_computed(
    config: Callable[..., TrialConfig], backbone: str, precision: str, tmp_path: Path
) -> None:
    # Batch statistics of a lone value cannot be had: 64 px leave more than one pixel at the deepest stage. ConvNeXt has
    # none, and its large kernels take minutes in bf16 on a processor without units for it.
    size_px = {"lenet": 16, "convnext_tiny": 32}.get(backbone, 64)
    deepest = num_stages(backbone, size_px)
    # Nearly the whole network in bf16 takes minutes on a processor without units for it.
    shallow = 1 if precision == "fp32" or backbone in FAST else deepest // 2
    for depth in sorted({shallow, deepest // 2, deepest}):
        compute = {"precision": precision, "prefix_precision": precision}
        trial = config(backbone, depth, epochs=1, size_px=size_px, compute=compute)
        bench = bench_at(tmp_path / "features")
        from_pictures = train(trial, Workbench())
        while_filling = train(trial, bench)
        from_store = train(trial, bench)
        assert_same(from_pictures, while_filling)
        assert_same(from_pictures, from_store)
        assert (from_pictures[2], while_filling[2]) == ([0], [0])
        assert from_store[2] == [71], "46 pictures to learn from and 25 to judge by"


def test_later_epochs_and_trials_read_what_the_first_stored(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    views = {"augmentation": {"policy": "flip_crop", "num_views": 2}}
    trial = config("lenet", 2, epochs=5, **views)
    stored = train(trial, bench_at(tmp_path))
    assert_same(train(trial, Workbench()), stored)
    # The second view is new in the second epoch; the validation side is known by then.
    assert stored[2] == [0, 25, 71, 71, 71]
    another = config("lenet", 2, epochs=2, optimizer={"lr": 0.02, "name": "sgd"}, batch_size=7, **views)
    read = train(another, bench_at(tmp_path))
    assert read[2] == [71, 71], "another process, head, rate and batch size: the same features"
    assert_same(train(another, Workbench()), read)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("depth", [1, 4])
def test_mixing_and_balancing_read_the_features_of_plain_training(
    config: Callable[..., TrialConfig], depth: int, precision: str, tmp_path: Path
) -> None:
    compute = {"precision": precision, "prefix_precision": precision}
    views = {"augmentation": {"policy": "flip", "num_views": 1}, "compute": compute, "epochs": 2}
    train(config("lenet", depth, **views), bench_at(tmp_path))
    trial = config("lenet", depth, **views, **EVERY_CHOICE)
    stored = train(trial, bench_at(tmp_path))
    assert stored[2] == [71, 71]
    assert_same(train(trial, Workbench()), stored)


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": {"policy": "flip", "num_views": 1}},
        {"augmentation": {"policy": "flip_crop", "num_views": 1, "seed": 1}},
        {"size_px": 20},
        {"compute": {"prefix_precision": "bf16"}},
        {"compute": {"prefix_batch_size": 16}},
        {"depth": 1},
        {"seed": 5},  # without weights, the frozen part is drawn from the seed
    ],
    ids=str,
)
def test_what_matters_is_computed_anew(
    config: Callable[..., TrialConfig], changes: dict[str, object], tmp_path: Path
) -> None:
    base = {"depth": 2, "epochs": 1, "augmentation": {"policy": "flip_crop", "num_views": 1}}
    train(config("lenet", **base), bench_at(tmp_path))
    known = 25 if "augmentation" in changes else 0
    assert train(config("lenet", **{**base, **changes}), bench_at(tmp_path))[2] == [known]


def test_views_without_end_are_not_stored(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    trial = config("lenet", 2, epochs=2, augmentation={"policy": "flip_crop", "num_views": "unlimited"})
    assert train(trial, bench_at(tmp_path))[2] == [0, 25]


def test_a_budget_too_small_trains_from_pictures(
    config: Callable[..., TrialConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trial = config("lenet", 1, epochs=2)
    assert_same(train(trial, Workbench()), train(trial, bench_at(tmp_path / "a", budget_bytes=1000)))
    with pytest.raises(FeaturesRequiredError, match="cannot be stored"):
        train(trial, bench_at(tmp_path / "b", budget_bytes=1000, mode="required"))


def train_stored(ranks: Ranks, config: TrialConfig, folder: str) -> tuple[list[dict[str, float]], list[float]]:
    run = TrialRun(config, bench_at(Path(folder)), ranks)
    metrics = [run.run_epoch() for _ in range(config.epochs)]
    run.close()
    losses = [{name: epoch[name] for name in ("train/loss", "val/loss", "val/accuracy")} for epoch in metrics]
    return losses, [epoch["compute/images_from_store"] for epoch in metrics]


@pytest.mark.slow
def test_two_ranks_fill_together_and_agree_with_one(
    config: Callable[..., TrialConfig], two_ranks: RankGroup, tmp_path: Path
) -> None:
    trial = config("lenet", 2, epochs=3, augmentation={"policy": "flip_crop", "num_views": 2})
    first, second = two_ranks.call(train_stored, trial, str(tmp_path / "two"))
    assert first == second
    assert first[1] == [0, 25, 71]
    alone, _, read = train(trial, bench_at(tmp_path / "two"))
    assert read == [71, 71, 71], "what two ranks stored, one reads"
    for epoch, reference in zip(first[0], alone, strict=True):
        # The tail's sums are cut up differently over two ranks: single precision, a few hundred additions.
        assert epoch["train/loss"] == pytest.approx(reference["train/loss"], rel=1e-4)
        assert epoch["val/loss"] == pytest.approx(reference["val/loss"], rel=1e-4)
