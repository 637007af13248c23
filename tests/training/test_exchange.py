"""Weights that a trial takes over from another one are the other's, to the bit, and only where they are there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_support import DEVICE, assert_same_bits, copied, finish, numbers, train

from trainables.config import TrialConfig
from trainables.jobs import BEST_CHECKPOINT, LAST_CHECKPOINT, TrainJob
from trainables.lanes.lane import _newest_checkpoint
from trainables.ranks import Ranks
from trainables.training.checkpoint import load_checkpoint, save_checkpoint
from trainables.training.loop import TrialRun
from trainables.training.workbench import Workbench
from tuner.search.exchanging import Exchange
from tuner.search.members import Move


def leave(config: TrialConfig, folder: Path, epochs: int) -> None:
    """What a lane leaves of a trial after some epochs."""
    run = TrialRun(config, Workbench(), Ranks(DEVICE))
    history = [{"kind": "epoch", "epoch": each + 1, "metrics": numbers(run.run_epoch())} for each in range(epochs)]
    save_checkpoint(str(folder / BEST_CHECKPOINT), run.checkpoint(weights_only=True))
    save_checkpoint(str(folder / LAST_CHECKPOINT), run.checkpoint({"history": history}))


@pytest.mark.parametrize("optimizer", [{"name": "adamw", "lr": 3e-3}, {"name": "sgd", "lr": 0.05}])
def test_with_the_donors_settings_it_goes_on_as_the_donor(
    config: Callable[..., TrialConfig], tmp_path: Path, optimizer: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    donor = config(depth=2, optimizer=optimizer, epochs=4)
    taker = config(depth=0, optimizer={**optimizer, "lr": 1e-2}, epochs=4)
    leave(donor, tmp_path / "0", 2)
    leave(taker, tmp_path / "1", 2)
    records: list[dict[str, Any]] = []
    exchange = Exchange(
        lambda number: str(tmp_path / str(number)),
        lambda params: donor.model_copy(update={"label_smoothing": params["label_smoothing"]}),
        lambda event, **fields: records.append({"event": event, **fields}),
    )
    smoothing = donor.label_smoothing
    moves = [
        Move(1, 0, {"label_smoothing": smoothing}, {"label_smoothing": 0.2}),
        Move(2, 7, {"label_smoothing": smoothing}, {"label_smoothing": 0.2}),
    ]
    with caplog.at_level(logging.WARNING):
        assert exchange(2, moves) == moves[:1], "the other donor has no checkpoint"
    assert "trial 2 goes on as it is" in caplog.text
    (record,) = records
    assert [move["number"] for move in record["moves"]] == [1]
    assert exchange(1, moves) == [], "a checkpoint of another epoch is none"

    checkpoint = _newest_checkpoint(TrainJob(config=donor, directory=str(tmp_path / "1")))
    assert checkpoint is not None
    run = TrialRun(donor, Workbench(), Ranks(DEVICE))
    run.restore(checkpoint)
    epochs, end = finish(run)
    expected_epochs, expected = train(donor)
    assert epochs == expected_epochs[2:]
    assert_same_bits(end, expected)
    best = load_checkpoint(str(tmp_path / "1" / BEST_CHECKPOINT))
    assert_same_bits(copied(best.tail), copied(load_checkpoint(str(tmp_path / "0" / BEST_CHECKPOINT)).tail))


def test_with_changed_settings_the_checkpoint_is_the_new_configurations(
    config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    donor = config(depth=2, epochs=4)
    changed = donor.model_copy(update={"label_smoothing": 0.25})
    leave(donor, tmp_path / "0", 2)
    exchange = Exchange(lambda number: str(tmp_path / str(number)), lambda _: changed, lambda *_, **__: None)
    exchange(2, [Move(1, 0, {}, {})])
    assert _newest_checkpoint(TrainJob(config=donor, directory=str(tmp_path / "1"))) is None
    checkpoint = _newest_checkpoint(TrainJob(config=changed, directory=str(tmp_path / "1")))
    assert checkpoint is not None
    assert len(checkpoint.meta["history"]) == 2
