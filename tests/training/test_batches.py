"""Batches: every picture once per epoch, the frozen part's features the same bits in any company, views from memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_support import DEVICE, num_stages

from trainables.backbones.zoo import load_backbone
from trainables.config import AugmentationConfig, ComputeConfig, Precision, TrialConfig
from trainables.data.batches import Batch, ImageBatches, Normaliser
from trainables.data.kept_views import ViewCache, Views
from trainables.data.packing import PackReport
from trainables.data.side import Side, plan_epoch, plan_in_order
from trainables.data.table import ImageTable
from trainables.data.views import view
from trainables.frozen_prefix import FrozenPrefix, memory_format
from trainables.ranks import Ranks, share_bounds
from trainables.training.loop import TrialRun
from trainables.training.workbench import Workbench

RANDAUGMENT = AugmentationConfig(policy="randaugment", num_views=3)


@pytest.fixture(scope="module")
def side(digits: PackReport) -> Side:
    """50 digits of all classes."""
    table = ImageTable.open(digits.path)
    rows = np.arange(0, 500, 10)
    return Side(table, rows, table.labels[rows])


# --- plans ---------------------------------------------------------------------------------------------------


@given(
    num_rows=st.integers(1, 400), batch_size=st.integers(1, 80), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000)
)
def test_an_epoch_has_each_row_once_in_batches_of_nearly_one_size(
    num_rows: int, batch_size: int, seed: int, epoch: int
) -> None:
    plan = plan_epoch(num_rows, batch_size, seed, epoch)
    sizes = [len(positions) for positions in plan]
    assert sorted(np.concatenate(plan).tolist()) == list(range(num_rows))
    assert len(plan) == -(-num_rows // batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    if batch_size >= 3 and num_rows > 1:
        assert min(sizes) >= 2


@given(num_rows=st.integers(1, 200), batch_size=st.integers(1, 40), world_size=st.integers(1, 5))
def test_the_ranks_of_a_group_walk_the_same_global_batches(num_rows: int, batch_size: int, world_size: int) -> None:
    for positions in plan_epoch(num_rows, batch_size, 1, 2):
        parts = [slice(*share_bounds(len(positions), rank, world_size)) for rank in range(world_size)]
        assert np.concatenate([positions[part] for part in parts]).tolist() == positions.tolist()


def test_epochs_and_seeds_shuffle_differently_and_always_alike() -> None:
    orders = {key: np.concatenate(plan_epoch(100, 16, *key)).tolist() for key in [(0, 0), (0, 1), (1, 0)]}
    assert len({tuple(order) for order in orders.values()}) == 3
    assert orders[0, 1] == np.concatenate(plan_epoch(100, 16, 0, 1)).tolist()
    assert orders[0, 1] == np.concatenate(plan_epoch(100, 7, 0, 1)).tolist(), "the order is not the batch size's affair"


@given(num_rows=st.integers(0, 300), batch_size=st.integers(1, 64))
def test_evaluation_goes_in_order(num_rows: int, batch_size: int) -> None:
    plan = plan_in_order(num_rows, batch_size)
    assert [position for positions in plan for position in positions] == list(range(num_rows))
    assert all(len(positions) == batch_size for positions in plan[:-1])


# --- the frozen part -----------------------------------------------------------------------------------------


def features(
    side: Side,
    stages: Sequence[nn.Module],
    compute: ComputeConfig,
    plan: Sequence[np.ndarray],
    cache_bytes: int = 1 << 20,
) -> dict[int, torch.Tensor]:
    """What each position of ``plan`` becomes."""
    normalise = Normaliser((0.5,) * 3, (0.25,) * 3, DEVICE, memory_format(compute))
    views = Views(side, RANDAUGMENT, 32, ViewCache(cache_bytes))
    batches = list(ImageBatches(views, normalise, FrozenPrefix(stages, compute)).batches(plan, 1))
    assert [len(batch.inputs) for batch in batches] == [len(positions) for positions in plan]
    return {
        int(position): value
        for positions, batch in zip(plan, batches, strict=True)
        for position, value in zip(positions, batch.inputs, strict=True)
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_a_pictures_features_are_the_same_bits_in_any_company(side: Side, backbone: str, precision: Precision) -> None:
    depth = num_stages(backbone) // 2
    graph = load_backbone(backbone, None, num_classes=5, input_size_px=32, seed=0).graph
    compute = ComputeConfig(prefix_precision=precision)
    stages = graph.stage_modules(depth, DEVICE, memory_format(compute))
    order = np.random.Generator(np.random.Philox(5)).permutation(len(side))
    expected = features(side, stages, compute, plan_in_order(len(side), 32))
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    assert {value.dtype for value in expected.values()} == {dtype}
    plans = {
        "batches of 7": plan_in_order(len(side), 7),
        "shuffled": np.array_split(order, 4),
        "one rank of two": [positions[: len(positions) // 2] for positions in np.array_split(order, 5)],
        "alone": [np.array([11])],
        "batches without a picture": [order[:0], order[:3], order[:0], order[3:9]],
    }
    for name, plan in plans.items():
        found = features(side, stages, compute, plan)
        for position, value in found.items():
            assert torch.equal(value, expected[position]), f"{name}: picture {position}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", ["lenet", "mobilenet_v2"])
def test_a_deeper_cut_is_the_same_bits_from_pictures_and_from_any_cut_before_it(
    side: Side, backbone: str, precision: Precision
) -> None:
    graph = load_backbone(backbone, None, num_classes=5, input_size_px=32, seed=0).graph
    compute = ComputeConfig(prefix_precision=precision)
    stages = graph.stage_modules(graph.num_stages, DEVICE, memory_format(compute))
    prefix = FrozenPrefix(stages, compute)
    normalise = Normaliser((0.5,) * 3, (0.25,) * 3, DEVICE, memory_format(compute))
    images = normalise(Views(side, RANDAUGMENT, 32, ViewCache()).fetch(np.arange(25), 1))
    cuts = range(1, graph.num_stages + 1)
    whole = prefix.between(images, 0, cuts)
    assert list(whole) == list(cuts)
    assert {tuple(value.shape[1:]) for value in whole.values()} == {stage.output_shape for stage in graph.stages}
    for start in cuts:
        kept = whole[start].clone(memory_format=torch.contiguous_format)[:7]  # another layout, fewer rows
        for cut, value in prefix.between(kept, start, range(start + 1, graph.num_stages + 1)).items():
            assert torch.equal(value, whole[cut][:7])
            assert value.stride() == whole[cut].stride()
    assert torch.equal(prefix(images), whole[graph.num_stages])
    with pytest.raises(ValueError, match="from cut 2"):
        prefix.between(images, 2, [2])
    with pytest.raises(ValueError, match="canonical batch"):
        prefix.between(torch.zeros(prefix.batch_size + 1, 3, 32, 32, device=DEVICE), 0, [1])


def test_a_rank_without_pictures_gets_empty_features(side: Side) -> None:
    nothing = np.empty(0, np.int64)
    views = Views(side, RANDAUGMENT, 16, ViewCache())
    normalise = Normaliser((0.5,) * 3, (0.25,) * 3, DEVICE)
    prefix = FrozenPrefix([nn.Conv2d(3, 4, 3).to(DEVICE)], ComputeConfig())
    for part in (prefix, None):
        batches = list(ImageBatches(views, normalise, part).batches([nothing, nothing], 0))
        assert [tuple(batch.inputs.shape) for batch in batches] == [(0, 4, 14, 14) if part else (0, 3, 16, 16)] * 2
        assert [tuple(batch.labels_B.shape) for batch in batches] == [(0,)] * 2
        assert list(ImageBatches(views, normalise, part).batches([], 0)) == []


def test_labels_go_with_their_pictures(side: Side) -> None:
    plan = plan_epoch(len(side), 7, 0, 0)
    views = Views(side, RANDAUGMENT, 16, ViewCache())
    batches: list[Batch] = list(ImageBatches(views, Normaliser((0.0,) * 3, (1.0,) * 3, DEVICE), None).batches(plan, 2))
    for positions, batch in zip(plan, batches, strict=True):
        assert batch.labels_B.tolist() == side.labels[positions].tolist()
        for position, image in zip(positions, batch.inputs, strict=True):
            row = int(side.rows[position])
            expected = view(side.table.image(row), RANDAUGMENT, side.table.id_of(row), 2, 16)
            assert torch.equal(image, expected.to(DEVICE).float() / 255)


@pytest.mark.parametrize("backbone", ["lenet", "mobilenet_v2"])
@pytest.mark.parametrize("part", ["first stage", "middle", "head only"])
def test_frozen_means_frozen(config: Callable[..., TrialConfig], backbone: str, part: str) -> None:
    """Training touches no tensor of the prefix, its BatchNorm's statistics included, and every one behind it."""
    deepest = num_stages(backbone, 16 if backbone == "lenet" else 32)
    depth = {"first stage": 1, "middle": deepest // 2, "head only": deepest}[part]
    run = TrialRun(config(backbone, depth=depth, epochs=1, optimizer={"lr": 0.05}), Workbench(), Ranks(DEVICE))
    stages = run._prefix._stages
    frozen = {name: tensor for stage in stages for name, tensor in stage.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in frozen.items()}
    trained_before = {name: tensor.clone() for name, tensor in run._tail.state_dict().items()}
    run.run_epoch()
    assert before
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.items())
    assert not any(module.training for stage in stages for module in stage.modules())
    assert not any(parameter.requires_grad for stage in stages for parameter in stage.parameters())
    trained = run._tail.state_dict()
    assert not set(trained) & set(before)
    assert not any(torch.equal(tensor, trained_before[name]) for name, tensor in trained.items() if tensor.dim() > 1)
    norms = [name for name in trained if name.endswith("running_mean")]
    assert not any(torch.equal(trained[name], trained_before[name]) for name in norms)


# --- views ---------------------------------------------------------------------------------------------------


def test_cached_views_are_uncached_views(side: Side) -> None:
    cached, uncached = Views(side, RANDAUGMENT, 24, ViewCache()), Views(side, RANDAUGMENT, 24, ViewCache(0))
    for epoch, index in enumerate([0, 1, 2, 0, 1]):
        for positions in plan_epoch(len(side), 16, 0, epoch):
            images = cached.fetch(positions, index)
            assert torch.equal(images, uncached.fetch(positions, index))
            assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_trial_is_the_same_with_and_without_room_for_views(config: Callable[..., TrialConfig]) -> None:
    trial = config(depth=1, augmentation={"policy": "randaugment", "num_views": 2}, epochs=4)
    roomy, cramped = (TrialRun(trial, Workbench(room), Ranks(DEVICE)) for room in (1 << 30, 0))
    for _ in range(trial.epochs):
        first, second = ({k: v for k, v in run.run_epoch().items() if "time" not in k} for run in (roomy, cramped))
        assert first == second


def test_the_cache_stays_within_its_budget_and_lets_the_oldest_go() -> None:
    one = 10 * 8 * 8 * 3
    cache = ViewCache(2 * one)
    first = cache.slot(("a",), 10, 8)
    cache.slot(("b",), 10, 8)
    assert cache.slot(("a",), 10, 8) is first
    cache.slot(("c",), 10, 8)
    assert cache.slot(("a",), 10, 8) is first, "used more recently than b"
    assert cache.slot(("too large",), 21, 8) is None
    assert sum(pixels.numel() for pixels, _ in cache._held.values()) == 2 * one


def test_two_sides_and_two_policies_share_no_views(side: Side) -> None:
    cache = ViewCache()
    other = Side(side.table, side.rows[::-1].copy(), side.labels[::-1].copy())
    positions = np.arange(len(side))
    mine = Views(side, RANDAUGMENT, 16, cache).fetch(positions, 0)
    assert torch.equal(Views(other, RANDAUGMENT, 16, cache).fetch(positions, 0), mine.flip(0))
    weaker = RANDAUGMENT.model_copy(update={"magnitude": 1})
    assert not torch.equal(Views(side, weaker, 16, cache).fetch(positions, 0), mine)
    assert not torch.equal(Views(side, RANDAUGMENT, 16, cache).fetch(positions, 1), mine)
