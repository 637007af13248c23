"""Which pictures an epoch draws, and which batches make a step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_support import DEVICE, DoubleRun, RankGroup, finish, num_stages, train

from trainables.config import TrialConfig
from trainables.data.side import plan_epoch
from trainables.ranks import Ranks
from trainables.training.accumulation import turns_of
from trainables.training.loop import TrialRun
from trainables.training.trained_part import lr_scale
from trainables.training.workbench import Workbench

# --- balanced sampling ---------------------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 50),
)
def test_an_epoch_draws_each_class_equally_often(counts: list[int], batch_size: int, seed: int, epoch: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    plan = plan_epoch(len(labels), batch_size, seed, epoch, labels)
    drawn = np.concatenate(plan)
    assert len(drawn) == len(labels), "as many pictures as there are"
    assert max(map(len, plan)) <= batch_size
    assert [len(batch) for batch in plan] == [len(batch) for batch in plan_epoch(len(labels), batch_size, seed, epoch)]
    by_class = [int(np.sum(labels[drawn] == class_)) for class_, count in enumerate(counts) if count]
    assert max(by_class) - min(by_class) <= 1
    times = np.bincount(drawn, minlength=len(labels))
    for class_ in np.unique(labels):
        of_class = times[labels == class_]
        assert of_class.max() - of_class.min() <= 1, "a rare class repeats all of its pictures before one a third time"
    again = plan_epoch(len(labels), batch_size, seed, epoch, labels)
    assert all(np.array_equal(one, other) for one, other in zip(plan, again, strict=True))


def test_epochs_draw_other_pictures_and_leftovers_go_round() -> None:
    labels = np.repeat([0, 1, 2], [90, 8, 2])
    epochs = [np.concatenate(plan_epoch(100, 16, 7, epoch, labels)) for epoch in range(60)]
    assert len({tuple(sorted(drawn)) for drawn in epochs}) == 60
    assert set(np.concatenate(epochs)) == set(range(100))
    extra = [int(np.bincount(labels[drawn]).argmax()) for drawn in epochs]
    assert set(extra) == {0, 1, 2}, "the hundredth picture is of no class in particular"


def test_a_trial_draws_balanced_epochs(config: Callable[..., TrialConfig]) -> None:
    trial = config(class_balance="balanced", epochs=1)
    run = TrialRun(trial, Workbench(), Ranks(DEVICE))
    seen: list[torch.Tensor] = []
    of_batch = run._loss_of
    run._loss_of = lambda batch, *rest: (seen.append(batch.labels_B), of_batch(batch, *rest))[1]  # type: ignore[method-assign]
    run.run_epoch()
    counts = torch.bincount(torch.cat(seen), minlength=5)
    assert counts.sum() == len(run.side("train"))
    assert counts.max() - counts.min() <= 1
    uneven = np.bincount(run.side("train").labels)
    assert uneven.max() - uneven.min() > 1
    assert run._loss.weights_K is None


# --- accumulation --------------------------------------------------------------------------------------------


@given(num_rows=st.integers(1, 200), batch_size=st.integers(1, 40), accumulation=st.integers(1, 9))
def test_every_batch_has_its_turn(num_rows: int, batch_size: int, accumulation: int) -> None:
    plan = plan_epoch(num_rows, batch_size, 0, 0)
    turns = turns_of(plan, accumulation)
    assert len(turns) == len(plan)
    assert turns[0].is_first
    assert turns[-1].is_last
    steps = [[turn.step for turn in turns].count(step) for step in range(turns[-1].step + 1)]
    assert len(steps) == -(-len(plan) // accumulation)
    assert max(steps) <= accumulation
    assert max(steps) - min(steps) <= 1
    assert sum(turn.num_pictures for turn in turns if turn.is_first) == num_rows
    for before, after in pairwise(turns):
        assert before.is_last == after.is_first == (before.step != after.step)


@pytest.mark.parametrize("batch_size", [5, 16, 23])
def test_batches_that_make_one_step_are_one_batch(config: Callable[..., TrialConfig], batch_size: int) -> None:
    """46 pictures and a head without BatchNorm, which would see the small batches: one step an epoch either way."""
    same = {"epochs": 3, "optimizer": {"name": "sgd", "lr": 0.1, "grad_clip_norm": 0.5}, "label_smoothing": 0.1}
    depth = num_stages("resnet18")
    whole = finish(DoubleRun(config("resnet18", depth, batch_size=46, **same), Workbench(), Ranks(DEVICE)))
    parts = config("resnet18", depth, batch_size=batch_size, grad_accumulation=99, **same)
    epochs, tensors = finish(DoubleRun(parts, Workbench(), Ranks(DEVICE)))
    for found, wanted in zip(epochs, whole[0], strict=True):
        assert found == pytest.approx(wanted, rel=1e-9)
    for name, tensor in whole[1].items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-9, atol=1e-12)


def test_the_schedule_counts_steps(config: Callable[..., TrialConfig]) -> None:
    trial = config(batch_size=10, grad_accumulation=2, epochs=2, optimizer={"lr": 0.5, "warmup_epochs": 1.0})
    run = TrialRun(trial, Workbench(), Ranks(DEVICE))
    rates: list[float] = []
    run._optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    finish(run)
    # 46 pictures: five batches, three steps.
    assert rates == pytest.approx([0.5 * lr_scale(step, 3, 2, 1.0) for step in range(6)])


def count_syncs(ranks: Ranks, config: TrialConfig) -> int:
    """Batches of an epoch after which gradients went from rank to rank."""
    run, syncs = TrialRun(config, Workbench(), ranks), []
    syncing = ranks.syncing
    ranks.syncing = lambda model, *, is_last: (syncs.append(is_last), syncing(model, is_last=is_last))[1]  # type: ignore[method-assign]
    try:
        run.run_epoch()
    finally:
        del ranks.syncing
    assert len(syncs) == 5
    return sum(syncs)


def test_ranks_talk_once_a_step(two_ranks: RankGroup, config: Callable[..., TrialConfig]) -> None:
    assert two_ranks.call(count_syncs, config(batch_size=10, grad_accumulation=2)) == [3, 3]


def test_an_accumulation_of_1_changes_no_bit(config: Callable[..., TrialConfig]) -> None:
    assert train(config(epochs=1))[0] == train(config(epochs=1, grad_accumulation=1))[0]
