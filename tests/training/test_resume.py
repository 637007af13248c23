"""A trial that is stopped and goes on is the trial that never stopped; a warm process is a fresh one. To the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import (
    DEVICE,
    EVERY_CHOICE,
    RankGroup,
    assert_same_bits,
    finish,
    in_fresh_process,
    num_stages,
    numbers,
    train,
    train_all,
    train_on,
)

from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.ranks import Ranks
from trainables.training.checkpoint import load_checkpoint, save_checkpoint
from trainables.training.loop import DivergedError, StoppedError, TrialRun
from trainables.training.workbench import Workbench

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw", "lr": 3e-3, "backbone_lr_ratio": 0.3, "warmup_epochs": 1.5},
    "sgd": {"name": "sgd", "lr": 0.05, "grad_clip_norm": 1.0, "weight_decay": 1e-3},
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16", "prefix_precision": "bf16"},
    "channels first": {"channels_last": False},
}


# --- stop and resume -----------------------------------------------------------------------------------------


def go_on(config: TrialConfig, path: Path, epoch: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Trains to the end of ``epoch``, saves; another run loads and trains to the end of the trial."""
    first = TrialRun(config, Workbench(), Ranks(DEVICE))
    epochs = [numbers(first.run_epoch()) for _ in range(epoch)]
    save_checkpoint(str(path), first.checkpoint({"note": "kept"}))
    second = TrialRun(config, Workbench(), Ranks(DEVICE))
    checkpoint = load_checkpoint(str(path))
    assert (checkpoint.meta["epoch"], checkpoint.meta["note"]) == (epoch, "kept")
    second.restore(checkpoint)
    assert second.epoch == epoch
    rest, end = finish(second)
    return epochs + rest, end


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("depth", [0, 2, 4])
def test_a_trial_can_stop_at_every_epoch(
    config: Callable[..., TrialConfig], tmp_path: Path, optimizer: str, precision: str, depth: int
) -> None:
    trial = config(
        depth=depth, optimizer=OPTIMIZERS[optimizer], compute=PRECISIONS[precision], epochs=4, label_smoothing=0.1,
        augmentation={"policy": "randaugment", "num_views": 3},
    )  # fmt: skip
    expected_epochs, expected = train(trial)
    for epoch in range(5):
        epochs, end = go_on(trial, tmp_path / f"{epoch}.ckpt", epoch)
        assert epochs == expected_epochs, f"stopped after epoch {epoch}"
        assert_same_bits(end, expected)


@pytest.mark.parametrize("depth", [0, 2, 4])
def test_a_mixed_balanced_averaged_and_accumulated_trial_can_stop(
    config: Callable[..., TrialConfig], tmp_path: Path, depth: int
) -> None:
    trial = config(depth=depth, optimizer=OPTIMIZERS["adamw"], batch_size=7, **EVERY_CHOICE)
    expected_epochs, expected = train(trial)
    assert any(name.startswith("average/") for name in expected)
    for epoch in range(4):
        epochs, end = go_on(trial, tmp_path / f"{epoch}.ckpt", epoch)
        assert epochs == expected_epochs, f"stopped after epoch {epoch}"
        assert_same_bits(end, expected)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "efficientnet_b0"])
def test_a_deep_network_can_stop(
    config: Callable[..., TrialConfig], tmp_path: Path, backbone: str, optimizer: str
) -> None:
    """Depthwise convolutions in channels-last memory, stochastic depth."""
    trial = config(backbone, optimizer=OPTIMIZERS[optimizer], epochs=3, batch_size=23)
    expected_epochs, expected = train(trial)
    epochs, end = go_on(trial, tmp_path / "x.ckpt", 1)
    assert epochs == expected_epochs
    assert_same_bits(end, expected)


def stop_and_go_on(ranks: Ranks, config: TrialConfig, path: str) -> tuple[list[dict[str, float]], dict[str, Any]]:
    first = TrialRun(config, Workbench(), ranks)
    epochs = [numbers(first.run_epoch())]
    if ranks.is_first:
        save_checkpoint(path, first.checkpoint())
    second = TrialRun(config, Workbench(), ranks)
    second.restore(ranks.agree(load_checkpoint(path) if ranks.is_first else None))
    rest, end = finish(second)
    return epochs + rest, end


def test_two_ranks_can_stop(two_ranks: RankGroup, config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    trial = config(optimizer=OPTIMIZERS["adamw"])
    expected = two_ranks.call(train_on, trial)
    found = two_ranks.call(stop_and_go_on, trial, str(tmp_path / "x.ckpt"))
    for (epochs, end), (expected_epochs, expected_end) in zip(found, expected, strict=True):
        assert epochs == expected_epochs
        assert_same_bits(end, expected_end)


@pytest.mark.slow
def test_three_ranks_can_stop(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """Of three gradients the order of the sum counts, and torch would choose another one after the first step."""
    group = RankGroup(3, tmp_path)
    try:
        trial = config(optimizer=OPTIMIZERS["adamw"])
        expected = group.call(train_on, trial)
        found = group.call(stop_and_go_on, trial, str(tmp_path / "x.ckpt"))
    finally:
        group.close()
    for (epochs, end), (expected_epochs, expected_end) in zip(found, expected, strict=True):
        assert epochs == expected_epochs
        assert_same_bits(end, expected_end)


def test_a_dropped_epoch_leaves_no_trace_in_the_next_run(config: Callable[..., TrialConfig]) -> None:
    """Stopped in its second batch, restored to the state before, and run to its end."""
    trial = config(optimizer=OPTIMIZERS["adamw"])
    run = TrialRun(trial, Workbench(), Ranks(DEVICE))
    start = run.checkpoint()
    start = type(start)(start.prefix_hash, {k: v.clone() for k, v in start.tail.items()}, start.meta)
    answers = iter([False, True])
    with pytest.raises(StoppedError):
        run.run_epoch(lambda: next(answers))
    fresh = TrialRun(trial, run._bench, Ranks(DEVICE))
    fresh.restore(start)
    epochs, end = finish(fresh)
    expected_epochs, expected = train(trial)
    assert epochs == expected_epochs
    assert_same_bits(end, expected)


# --- a warm process ------------------------------------------------------------------------------------------


def test_a_warm_process_gives_the_bits_of_a_fresh_one(config: Callable[..., TrialConfig]) -> None:
    """Trials of every kind, one that diverges and some that break, and then the first ones again."""
    wanted = [
        config(depth=2, optimizer=OPTIMIZERS["adamw"], augmentation={"policy": "randaugment", "num_views": 2}),
        config(depth=0, optimizer=OPTIMIZERS["sgd"], label_smoothing=0.1, seed=3),
        config("mobilenet_v2", depth=num_stages("mobilenet_v2"), compute=PRECISIONS["bf16"]),
        config(depth=1, optimizer=OPTIMIZERS["sgd"], **EVERY_CHOICE),
    ]
    between = [
        config(depth=1, compute=PRECISIONS["bf16"], augmentation={"policy": "none"}),
        config("efficientnet_b0", depth=2, epochs=1, compute=PRECISIONS["channels first"]),
        config(depth=4, batch_size=5, augmentation={"policy": "flip", "num_views": "unlimited"}),
    ]
    bench = Workbench()
    first = [train(trial, bench) for trial in wanted]
    for trial in between:
        train(trial, bench)
    with pytest.raises(DivergedError):
        train(config(depth=1, optimizer={"name": "sgd", "lr": 1e6}, epochs=40), bench)
    with pytest.raises(InputError, match="image table"):
        missing = wanted[0].data.model_copy(update={"table": "nowhere"})
        train(wanted[0].model_copy(update={"data": missing}), bench)
    with pytest.raises(InputError, match="freeze_depth"):
        train(config(depth=99), bench)
    break_in_mid_step(wanted[1], bench)
    torch.manual_seed(5)
    again = [train(trial, bench) for trial in wanted]

    fresh = in_fresh_process(train_all, wanted)
    for (epochs, end), (epochs_again, end_again), (fresh_epochs, fresh_end) in zip(first, again, fresh, strict=True):
        assert epochs == epochs_again == fresh_epochs
        assert_same_bits(end, fresh_end)
        assert_same_bits(end_again, fresh_end)


def break_in_mid_step(config: TrialConfig, bench: Workbench) -> None:
    """A trial that fails in the backward pass, under autocast, with batches still to come."""
    run = TrialRun(
        config.model_copy(update={"compute": config.compute.model_copy(update={"precision": "bf16"})}),
        bench,
        Ranks(DEVICE),
    )
    calls = 0

    def fail(grad: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError("no memory")

    next(run._tail.parameters()).register_hook(fail)
    with contextlib.suppress(MemoryError):
        run.run_epoch()
    assert calls == 2
    assert not torch.is_autocast_enabled("cpu")


def test_a_trial_leaves_the_random_state_as_it_was(config: Callable[..., TrialConfig]) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train(config(epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_table_with_other_pictures_than_the_trials_is_refused(config: Callable[..., TrialConfig]) -> None:
    trial, bench = config(), Workbench()
    TrialRun(trial, bench, Ranks(DEVICE)).side("val")
    other = trial.model_copy(update={"data": trial.data.model_copy(update={"fingerprint": "0" * 64})})
    with pytest.raises(InputError, match="its pictures are others now"):
        TrialRun(other, bench, Ranks(DEVICE)).side("val")


def test_the_seed_decides(config: Callable[..., TrialConfig]) -> None:
    assert train(config(seed=1))[0] == train(config(seed=1))[0]
    assert train(config(seed=1))[0] != train(config(seed=2))[0]
