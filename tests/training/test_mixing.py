"""Mixup and CutMix: what is drawn, what becomes of a batch, and what its labels cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from training_support import DEVICE

from trainables.config import BackboneConfig, DataConfig, TrialConfig
from trainables.data.batches import Batch
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.losses import TrainingLoss, class_weights
from trainables.training.mixing import MixedBatch, Mixer, plan_mixing
from trainables.training.workbench import Workbench

BASE = TrialConfig(
    data=DataConfig(table="t", fingerprint="f", class_names=("a", "b"), image_size_px=16),
    backbone=BackboneConfig(name="lenet"),
    freeze_depth=0,
)


def mixing(mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0) -> TrialConfig:
    return BASE.model_copy(update={"mixup_alpha": mixup, "cutmix_alpha": cutmix, "seed": seed})


# --- what is drawn -------------------------------------------------------------------------------------------


@given(
    alphas=st.sampled_from([(1e-3, 0.0), (0.2, 0.0), (100.0, 0.0), (0.0, 0.1), (0.0, 1.0), (0.3, 1.0)]),
    step=st.integers(0, 1000),
    num_rows=st.integers(0, 40),
    size=st.one_of(st.none(), st.tuples(st.integers(1, 20), st.integers(1, 20))),
)
def test_a_plan_is_whole_and_the_same_each_time(
    alphas: tuple[float, float], step: int, num_rows: int, size: tuple[int, int] | None
) -> None:
    plan = plan_mixing(mixing(*alphas), 3, step, num_rows, size)
    again = plan_mixing(mixing(*alphas), 3, step, num_rows, size)
    assert plan is not None
    assert again is not None
    assert (plan.share, plan.box) == (again.share, again.box)
    assert np.array_equal(plan.partners, again.partners)
    assert sorted(plan.partners) == list(range(num_rows))
    assert 0 <= plan.share <= 1
    if plan.box is not None:
        assert size is not None
        top, bottom, left, right = plan.box
        assert 0 <= top <= bottom <= size[0]
        assert 0 <= left <= right <= size[1]
        assert plan.share == pytest.approx(1 - (bottom - top) * (right - left) / (size[0] * size[1]))
    assert plan.box is None or alphas[1] > 0


def test_kinds_and_shares_are_drawn_as_they_should_be() -> None:
    def plans(config: TrialConfig, size: tuple[int, int] | None = (64, 64)):
        return [plan_mixing(config, epoch, step, 8, size) for epoch in range(10) for step in range(100)]

    assert plans(mixing()) == [None] * 1000
    both = [plan.box is not None for plan in plans(mixing(0.2, 1.0))]
    assert 0.45 < np.mean(both) < 0.55
    assert all(plan.box is None for plan in plans(mixing(cutmix=1.0), None)), "of a vector no part can be cut out"
    shares = [plan.share for plan in plans(mixing(mixup=0.2))]
    # Of Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert np.var(shares) == pytest.approx(1 / (4 * 1.4), rel=0.1)
    assert len(set(shares)) == 1000, "no two batches alike"
    assert plans(mixing(mixup=0.2, seed=1))[0].share != shares[0]
    areas = [1 - plan.share for plan in plans(mixing(cutmix=1.0))]
    # A box of a uniform area around a uniform point loses what lies beyond the edges: 0.42 of 0.5 in the mean.
    assert 0.3 < np.mean(areas) < 0.5


# --- what becomes of a batch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 5, 1, 1), (6, 7)])
@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)])
def test_rows_are_mixed_with_their_partners(
    mixup: float, cutmix: float, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    config = mixing(mixup, cutmix)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if len(shape) == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    before = inputs.clone()
    for step in range(5):
        labels = torch.arange(6)
        mixed = Mixer(config, Ranks(DEVICE)).mixed(Batch(inputs, labels), 0, step, 6)
        plan = plan_mixing(config, 0, step, 6, shape[2:] or None)
        assert mixed is not None
        assert plan is not None
        assert torch.equal(inputs, before), "what is stored stays as it is"
        assert (mixed.inputs.dtype, mixed.inputs.stride()) == (dtype, inputs.stride())
        assert torch.equal(mixed.labels_B, labels)
        assert torch.equal(mixed.partner_labels_B, labels[plan.partners])
        partners = inputs[plan.partners]
        if plan.box is None:
            assert mixup or shape[2:] != (8, 8)
            expected = plan.share * inputs.double() + (1 - plan.share) * partners.double()
            torch.testing.assert_close(mixed.inputs, expected.to(dtype))
        else:
            is_partners = torch.zeros(8, 8, dtype=torch.bool)
            is_partners[plan.box[0] : plan.box[1], plan.box[2] : plan.box[3]] = True
            assert torch.equal(mixed.inputs, torch.where(is_partners, partners, inputs))
            assert mixed.share == pytest.approx(1 - is_partners.float().mean().item())


# --- what it costs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixed_labels_cost_the_cross_entropy_with_the_mixed_target(smoothing: float) -> None:
    logits, labels, partners = torch.randn(9, 5), torch.arange(9) % 5, (torch.arange(9) + 2) % 5
    batch = MixedBatch(logits, labels, partners, 0.3)
    target = 0.3 * F.one_hot(labels, 5) + 0.7 * F.one_hot(partners, 5)
    target = (1 - smoothing) * target + smoothing / 5
    expected = -(target * logits.log_softmax(1)).sum()
    torch.testing.assert_close(TrainingLoss(smoothing).of_mixed(logits, batch), expected)


def test_with_class_weights_each_share_counts_by_its_own_class() -> None:
    weights_K = class_weights(np.array([0, 0, 0, 1, 2, 2]), 3)
    assert weights_K.tolist() == pytest.approx([2 / 3, 2.0, 1.0])
    logits = torch.randn(2, 3)
    batch = MixedBatch(logits, torch.tensor([0, 1]), torch.tensor([1, 2]), 0.25)
    costs = -logits.log_softmax(1)
    expected = 0.25 * (2 / 3 * costs[0, 0] + 2 * costs[1, 1]) + 0.75 * (2 * costs[0, 1] + 1 * costs[1, 2])
    torch.testing.assert_close(TrainingLoss(0.0, weights_K).of_mixed(logits, batch), expected)


def test_mixing_is_for_training_only(config: Callable[..., TrialConfig]) -> None:
    still = {"optimizer": {"lr": 1e-12}, "epochs": 1, "depth": 2}
    plain = TrialRun(config(**still), Workbench(), Ranks(DEVICE)).run_epoch()
    for kind in ("mixup_alpha", "cutmix_alpha"):
        mixed = TrialRun(config(**still, **{kind: 1.0}), Workbench(), Ranks(DEVICE)).run_epoch()
        assert mixed["train/loss"] != pytest.approx(plain["train/loss"], rel=1e-4)
        # BatchNorm saw mixed features; the weights did not move.
        assert mixed["val/loss"] == pytest.approx(plain["val/loss"], rel=0.2)
