"""What a trial trains: its head, the dropout in front of it, its BatchNorm. Every way round gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from training_support import (
    DEVICE,
    RankGroup,
    assert_same_bits,
    finish,
    in_fresh_process,
    numbers,
    train,
    train_all,
    train_in_double_on,
)

from trainables.config import FeatureSettings, TrialConfig
from trainables.ranks import Ranks
from trainables.training.checkpoint import load_checkpoint, save_checkpoint
from trainables.training.loop import TrialRun, Workbench
from trainables.training.trained_part import keep_statistics
from tuner.models.classifier import Classifier
from tuner.models.model_file import ModelCard, load_state, save_model
from tuner.models.whole_network import whole_network

PARTS: dict[str, dict[str, Any]] = {
    "mlp": {"head": "mlp", "dropout": 0.3, "bn_mode": "keep"},
    "cosine": {"head": "cosine", "dropout": 0.0},
    "grown": {"start_size": 0.5, "bn_mode": "update"},
    "kept": {"bn_mode": "keep", "dropout": 0.6, "head_init": "probe", "ema_decay": 0.9, "mixup_alpha": 0.4},
}
BF16 = {"precision": "bf16", "prefix_precision": "bf16"}


@pytest.fixture(params=list(PARTS))
def part(request: pytest.FixtureRequest) -> dict[str, Any]:
    return PARTS[request.param]


@pytest.mark.parametrize("depth", [0, 2, 4])
def test_two_ranks_equal_one(
    two_ranks: RankGroup, config: Callable[..., TrialConfig], part: dict[str, Any], depth: int
) -> None:
    trial = config(depth=depth, batch_size=7, optimizer={"name": "sgd", "lr": 0.05}, epochs=2, **part)
    (epochs, tensors), (same_epochs, _) = two_ranks.call(train_in_double_on, trial)
    expected_epochs, expected = train_in_double_on(Ranks(DEVICE), trial)
    assert epochs == same_epochs
    for found, wanted in zip(epochs, expected_epochs, strict=True):
        # With kept statistics, hardly trained, pictures' scores are equal but for rounding, which then orders them.
        unordered = {"val/auroc": 0.0} if part.get("bn_mode") == "keep" else {}
        assert found | unordered == pytest.approx(wanted | unordered, rel=1e-11)
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("depth", [1, 4])
def test_resumed_and_stored_equal_computed_without_a_stop(
    config: Callable[..., TrialConfig], part: dict[str, Any], depth: int, tmp_path: Path
) -> None:
    trial = config(depth=depth, epochs=3, compute=BF16 if depth == 1 else {}, **part)
    expected_epochs, expected = train(trial)
    bench = Workbench(features=FeatureSettings(directory=str(tmp_path / "features")))
    first = TrialRun(trial, bench, Ranks(DEVICE))
    epochs = [numbers(first.run_epoch())]
    save_checkpoint(str(tmp_path / "one.ckpt"), first.checkpoint())
    second = TrialRun(trial, bench, Ranks(DEVICE))
    second.restore(load_checkpoint(str(tmp_path / "one.ckpt")))
    rest, end = finish(second)
    second.close()
    assert rest[-1]["compute/images_from_store"] > 0
    told = ("train/", "val/")
    assert [{name: value for name, value in epoch.items() if name.startswith(told)} for epoch in epochs + rest] == [
        {name: value for name, value in epoch.items() if name.startswith(told)} for epoch in expected_epochs
    ]
    assert_same_bits(end, expected)


def test_a_warm_process_equals_a_fresh_one(config: Callable[..., TrialConfig]) -> None:
    trials = [config(depth=depth, epochs=1, **part) for depth, part in zip((0, 2, 4, 1), PARTS.values(), strict=True)]
    before = [config(depth=1, epochs=1), *trials]
    bench, threads = Workbench(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        warm = [train(trial, bench) for trial in before][1:]
    finally:
        torch.set_num_threads(threads)
    for (epochs, end), (fresh_epochs, fresh_end) in zip(warm, in_fresh_process(train_all, trials), strict=True):
        assert epochs == fresh_epochs
        assert_same_bits(end, fresh_end)


def test_dropout_is_the_networks_own_unless_a_number_replaces_it(config: Callable[..., TrialConfig]) -> None:
    # LeNet's own rate is 0.2.
    own, same, other = (
        train(config(depth=4, epochs=1, **changes)) for changes in ({}, {"dropout": 0.2}, {"dropout": 0})
    )
    assert own[0] == same[0]
    assert_same_bits(own[1], same[1])
    assert other[0][0]["train/loss"] != own[0][0]["train/loss"]
    # The noise is the seed's, the epoch's and the step's: another trial of it in the same process has the same.
    assert train(config(depth=4, epochs=1, dropout=0.5))[0] == train(config(depth=4, epochs=1, dropout=0.5))[0]


@pytest.mark.parametrize("compute", [{}, BF16], ids=["fp32", "bf16"])
def test_kept_statistics_stay_while_scale_and_shift_learn(
    config: Callable[..., TrialConfig], compute: dict[str, Any]
) -> None:
    for mode in ("keep", "update"):
        run = TrialRun(config(depth=1, epochs=1, bn_mode=mode, compute=compute), Workbench(), Ranks(DEVICE))
        before = {name: tensor.clone() for name, tensor in run.checkpoint().tail.items()}
        run.run_epoch()
        changed = {name for name, tensor in run.checkpoint().tail.items() if not torch.equal(tensor, before[name])}
        statistics = {name for name in before if "running_" in name or "num_batches" in name}
        assert statistics
        assert changed & statistics == (set() if mode == "keep" else statistics)
        assert set(before) - statistics <= changed, "everything else learns"


def test_kept_batch_norm_of_one_dimension() -> None:
    norm = keep_statistics(nn.Sequential(nn.BatchNorm1d(3))).train()
    inputs = 5 + torch.randn(4, 3)
    torch.testing.assert_close(norm(inputs), inputs / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize("name", ["lenet", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_exported_equals_eager(
    config: Callable[..., TrialConfig], name: str, part: dict[str, Any], tmp_path: Path
) -> None:
    trial = config(name, depth=2, epochs=1, **part)
    run = TrialRun(trial, Workbench(), Ranks(DEVICE))
    run.run_epoch()
    save_checkpoint(str(tmp_path / "best.ckpt"), run.checkpoint(weights_only=True))
    network, mean, std = whole_network(trial, str(tmp_path / "best.ckpt"))
    size_px = trial.data.image_size_px
    card = ModelCard(
        class_names=trial.data.class_names, image_size_px=size_px, mean=mean, std=std, backbone=name,
        data_fingerprint="x",
    )  # fmt: skip
    save_model(network, card, tmp_path / "model")  # compares the file's logits with the network's
    image = torch.randint(0, 256, (3, size_px, size_px), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    probabilities = Classifier.load(tmp_path / "model").probabilities([image] * 3)
    normalised = (image / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(probabilities[:1], network(normalised[None]).softmax(1), rtol=1e-4, atol=1e-5)
    assert load_state(tmp_path / "model").keys() == network.state_dict().keys()


def test_a_probe_is_no_start_for_another_head(config: Callable[..., TrialConfig]) -> None:
    with pytest.raises(ValidationError, match="a probe is a linear head, and head is cosine"):
        config(head="cosine", head_init="probe")
