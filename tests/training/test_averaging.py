"""The moving average of the weights: what it is, what is judged by it, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from training_support import DEVICE, assert_same_bits, copied

from trainables.config import TrialConfig
from trainables.ranks import Ranks
from trainables.training.averaging import WeightAverage
from trainables.training.checkpoint import load_checkpoint, save_checkpoint
from trainables.training.loop import TrialRun
from trainables.training.workbench import Workbench


def test_the_average_is_that_of_the_textbook() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(module, 0.9)
    expected = copied(module.state_dict())
    for step in range(120):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        module(torch.randn(5, 3))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor.clone()
    assert expected["1.num_batches_tracked"] == 120
    for name, tensor in average.tensors().items():
        torch.testing.assert_close(tensor, expected[name])
    raw = copied(module.state_dict())
    with average.in_place():
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, expected[name])
    assert_same_bits(copied(module.state_dict()), raw)


def test_training_goes_on_as_without_an_average_which_is_what_is_judged(config: Callable[..., TrialConfig]) -> None:
    same = {"optimizer": {"name": "sgd", "lr": 0.05}, "epochs": 3, "depth": 1}
    plain = TrialRun(config(**same), Workbench(), Ranks(DEVICE))
    averaged = TrialRun(config(**same, ema_decay=0.9), Workbench(), Ranks(DEVICE))
    for _ in range(3):
        without, with_average = plain.run_epoch(), averaged.run_epoch()
        assert with_average["train/loss"] == without["train/loss"]
        assert with_average["val/loss"] != without["val/loss"]
    end, expected = averaged.checkpoint(), plain.checkpoint()
    assert_same_bits(copied(end.tail), copied(expected.tail))
    assert_same_bits(copied(end.optimizer), copied(expected.optimizer))
    assert end.average.keys() == end.tail.keys()
    assert not expected.average


def test_the_best_checkpoint_holds_what_was_judged(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    trial = config(ema_decay=0.9, epochs=2, head_init="probe")
    run = TrialRun(trial, Workbench(), Ranks(DEVICE))
    metrics = [run.run_epoch() for _ in range(2)][-1]
    save_checkpoint(str(tmp_path / "best.ckpt"), run.checkpoint(weights_only=True))
    best = load_checkpoint(str(tmp_path / "best.ckpt"))
    assert not best.average
    judged_by = {name: tensor.cpu() for name, tensor in copied(run.checkpoint().average).items()}
    assert_same_bits(dict(best.tail), judged_by)
    scoring = TrialRun(trial, Workbench(), Ranks(DEVICE))
    scoring.restore(best)
    for judged in (scoring.evaluate("val").metrics, scoring.evaluate("val").metrics):
        assert {f"val/{name}": value for name, value in judged.items()} == {
            name: value for name, value in metrics.items() if name.startswith("val/")
        }


def test_a_short_trials_average_is_not_what_it_started_from(config: Callable[..., TrialConfig]) -> None:
    """Nine steps: a decay of 0.999 from the first would leave 99% of the untrained weights."""
    run = TrialRun(config(ema_decay=0.999, optimizer={"lr": 0.01}, epochs=3), Workbench(), Ranks(DEVICE))
    start = copied(run.checkpoint().average)["head.weight"]
    for _ in range(3):
        run.run_epoch()
    end = run.checkpoint()
    average, raw = end.average["head.weight"], end.tail["head.weight"]
    left = ((average - raw).norm() / (start - raw).norm()).item()
    assert left < 0.6


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_that_averages_nothing_is_refused(config: Callable[..., TrialConfig], decay: float) -> None:
    with pytest.raises(ValueError, match="ema_decay"):
        config(ema_decay=decay)
