"""The parts that make one rank and two agree: shares, noise, BatchNorm, and decisions that all take together."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import StochasticDepth
from training_support import DEVICE, RankGroup

from trainables.config import TrialConfig
from trainables.ranks import JoinedBatchNorm, Ranks, SharedDropout, SharedNoise, share_bounds, share_noise
from trainables.training.loop import DivergedError, StoppedError, TrialRun
from trainables.training.workbench import Workbench


@given(num_rows=st.integers(0, 1000), world_size=st.integers(1, 9))
def test_shares_cover_the_batch_once_and_differ_by_at_most_one_row(num_rows: int, world_size: int) -> None:
    bounds = [share_bounds(num_rows, rank, world_size) for rank in range(world_size)]
    assert [row for first, last in bounds for row in range(first, last)] == list(range(num_rows))
    lengths = [last - first for first, last in bounds]
    assert max(lengths) - min(lengths) <= 1


# --- dropout and stochastic depth ----------------------------------------------------------------------------


def dropped(
    whole_rows: bool, first: int, last: int, *, epoch: int = 2, step: int = 5, name: str = "a.b"
) -> torch.Tensor:
    """What a dropout layer makes of ones in its rows ``first`` to ``last`` of a global batch of 7."""
    noise = SharedNoise(seed=3)
    noise.begin_step(epoch, step, first, last, 7)
    return SharedDropout(name, 0.4, whole_rows=whole_rows, noise=noise).train()(torch.ones(last - first, 6, 5, 4))


@pytest.mark.parametrize("whole_rows", [False, True])
@pytest.mark.parametrize("middle", [0, 3, 7])
def test_the_masks_of_two_ranks_together_are_the_mask_of_one(whole_rows: bool, middle: int) -> None:
    together = torch.cat([dropped(whole_rows, 0, middle), dropped(whole_rows, middle, 7)])
    assert torch.equal(together, dropped(whole_rows, 0, 7))


def test_a_mask_depends_on_seed_epoch_step_and_layer_alone() -> None:
    mask = dropped(False, 0, 7)
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(dropped(False, 0, 7), mask)
    for other in ({"epoch": 3}, {"step": 6}, {"name": "a.c"}):
        assert not torch.equal(dropped(False, 0, 7, **other), mask)


def test_the_mask_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    dropped(False, 0, 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    noise = SharedNoise(seed=0)
    noise.begin_step(0, 0, 0, 1000, 1000)
    layer = SharedDropout("drop", 0.25, whole_rows=False, noise=noise).train()
    values = layer(torch.ones(1000, 100))
    # 100,000 draws: the share's standard deviation is 0.0014.
    assert (values == 0).float().mean().item() == pytest.approx(0.25, abs=0.007)
    assert values.max().item() == pytest.approx(1 / 0.75)
    assert torch.equal(layer.eval()(torch.ones(3, 4)), torch.ones(3, 4))


def test_stochastic_depth_drops_whole_pictures() -> None:
    values = dropped(True, 0, 7).flatten(1)
    assert ((values == 0).all(1) | (values > 0).all(1)).all()


def test_every_kind_of_noise_is_shared_and_names_stay() -> None:
    body = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.3), StochasticDepth(0.2, "row")), nn.Linear(4, 2))
    names = list(body.state_dict())
    shared = share_noise(body, SharedNoise(0))
    assert [(layer.p, layer.whole_rows) for layer in shared.modules() if isinstance(layer, SharedDropout)] == [
        (0.3, False),
        (0.2, True),
    ]
    assert list(shared.state_dict()) == names


# --- BatchNorm -----------------------------------------------------------------------------------------------


def normalise(ranks: Ranks, layer: nn.Module, batches: list[torch.Tensor], grads: list[torch.Tensor]) -> dict[str, Any]:
    """This rank's rows of what ``layer`` makes of some batches while training; then the whole last one in eval mode."""
    joined = ranks.join_batch_norms(nn.Sequential(layer)).train()
    norm, outputs, input_grads = joined[0], [], []
    for whole, grad in zip(batches, grads, strict=True):
        first, last = share_bounds(len(whole), ranks.rank, ranks.world_size)
        mine = whole[first:last].clone().requires_grad_()
        output = joined(mine)
        (output * grad[first:last]).sum().backward()
        outputs.append(output.detach())
        input_grads.append(mine.grad)
    evaluated = joined.eval()(batches[-1]).detach()
    return {
        "outputs": outputs,
        "input_grads": input_grads,
        "weight_grad": norm.weight.grad,
        "bias_grad": norm.bias.grad,
        "buffers": {name: buffer.clone() for name, buffer in norm.named_buffers()},
        "evaluated": evaluated,
        "is_joined": isinstance(norm, JoinedBatchNorm),
    }


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "2d": lambda: nn.BatchNorm2d(5),
    "2d, cumulative average": lambda: nn.BatchNorm2d(5, momentum=None, eps=1e-3),
    "1d": lambda: nn.BatchNorm1d(5),
}


# 1 row: the first rank has none. 7: an uneven division.
@pytest.mark.parametrize("num_rows", [1, 2, 7])
@pytest.mark.parametrize("kind", list(LAYERS))
def test_joined_batch_norm_is_batch_norm_of_the_whole_batch(two_ranks: RankGroup, kind: str, num_rows: int) -> None:
    layer = LAYERS[kind]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2, generator=generator)
        layer.bias.uniform_(-1, 1, generator=generator)
    shape = (num_rows, 5, 4, 3) if kind.startswith("2d") else (num_rows, 5, 6)
    # A mean of 100 standard deviations: sums of squares would lose half of float32's digits.
    batches = [torch.randn(shape, generator=generator) + 100 for _ in range(3)]
    grads = [torch.randn(shape, generator=generator) for _ in range(3)]
    pair = two_ranks.call(normalise, layer, batches, grads)
    whole = normalise(Ranks(DEVICE), layer, batches, grads)

    assert [part["is_joined"] for part in pair] == [True, True]
    assert not whole["is_joined"]
    # float32 holds the inputs to 4e-6 (100 / 2^24), so outputs and gradients of order 1 differ by a few times that.
    close = {"rtol": 1e-4, "atol": 5e-5}
    for step in range(3):
        for kind_of in ("outputs", "input_grads"):
            together = torch.cat([part[kind_of][step] for part in pair])
            torch.testing.assert_close(together, whole[kind_of][step], **close)
    for name in ("weight_grad", "bias_grad"):
        torch.testing.assert_close(pair[0][name] + pair[1][name], whole[name], **close)
    for part in pair:
        torch.testing.assert_close(part["buffers"], whole["buffers"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(part["evaluated"], whole["evaluated"], **close)
    assert all(torch.equal(pair[0]["buffers"][name], pair[1]["buffers"][name]) for name in whole["buffers"])


def test_joined_batch_norm_of_bf16_activations_answers_in_bf16(two_ranks: RankGroup) -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(6, 5, 4, 3, generator=generator).bfloat16()]
    pair = two_ranks.call(normalise, nn.BatchNorm2d(5), batches, batches)
    whole = normalise(Ranks(DEVICE), nn.BatchNorm2d(5), batches, batches)
    together = torch.cat([part["outputs"][0] for part in pair])
    assert together.dtype == torch.bfloat16
    # One unit in the last place of bf16 at values below 4.
    torch.testing.assert_close(together, whole["outputs"][0], rtol=0, atol=2**-6)


def refuse_lone_value(ranks: Ranks) -> str:
    joined = ranks.join_batch_norms(nn.Sequential(nn.BatchNorm2d(5))).train()
    with pytest.raises(ValueError, match="BatchNorm cannot train on one value per channel; raise batch_size") as caught:
        joined(torch.from_numpy(ranks.share(np.zeros((1, 5, 1, 1), np.float32))))
    return str(caught.value)


def test_a_lone_value_is_refused_on_every_rank_and_none_hangs(two_ranks: RankGroup) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(5)(torch.zeros(1, 5, 1, 1))
    assert len(two_ranks.call(refuse_lone_value)) == 2


# --- decisions -----------------------------------------------------------------------------------------------


def hear(ranks: Ranks) -> tuple[Any, bool, bool, float]:
    return (
        ranks.agree({"rank": ranks.rank, "tensor": torch.full((3,), float(ranks.rank))}),
        ranks.agree_to(ranks.rank == 0),
        ranks.agree_to(ranks.rank == 1),
        ranks.sum(torch.tensor(ranks.rank + 1.0)).item(),
    )


def test_rank_0_decides_and_sums_are_over_all(two_ranks: RankGroup) -> None:
    for (said, *answers), total in zip([*two_ranks.call(hear), hear(Ranks(DEVICE))], [3.0, 3.0, 1.0], strict=True):
        assert said["rank"] == 0
        assert torch.equal(said["tensor"], torch.zeros(3))
        assert answers == [True, False, total]


def stop_in_step_2(ranks: Ranks, config: TrialConfig) -> tuple[int, str]:
    run, asked = TrialRun(config, Workbench(), ranks), 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return ranks.is_first and asked == 2

    with pytest.raises(StoppedError):
        run.run_epoch(should_stop)
    return run.epoch, "stopped"


def test_a_stop_that_only_rank_0_hears_of_ends_both_at_the_same_batch(
    two_ranks: RankGroup, config: Callable[..., TrialConfig]
) -> None:
    assert two_ranks.call(stop_in_step_2, config()) == [(0, "stopped")] * 2


def diverge(ranks: Ranks, config: TrialConfig) -> str:
    run = TrialRun(config, Workbench(), ranks)
    with pytest.raises(DivergedError) as caught:
        for _ in range(config.epochs):
            run.run_epoch()
    return str(caught.value)


def test_a_loss_that_is_no_number_ends_both_ranks_alike(
    two_ranks: RankGroup, config: Callable[..., TrialConfig]
) -> None:
    wild = config(optimizer={"name": "sgd", "lr": 1e6}, epochs=30)
    said = two_ranks.call(diverge, wild)
    assert said[0] == said[1] == diverge(Ranks(DEVICE), wild)
    assert "loss is" in said[0]


def remains(ranks: Ranks, config: TrialConfig) -> list[bool]:
    """Whether anything of a trial is alive: one that ended, and one that was stopped."""
    alive = []
    for should_stop in (lambda: False, lambda: True):
        run = TrialRun(config, Workbench(), ranks)
        seen = [weakref.ref(thing) for thing in (run, run._tail, next(run._tail.parameters()))]
        with contextlib.suppress(StoppedError):
            run.run_epoch(should_stop)
        del run
        gc.collect()
        alive += [reference() is not None for reference in seen]
    return alive


def test_nothing_of_a_trial_is_kept_once_it_is_over(two_ranks: RankGroup, config: Callable[..., TrialConfig]) -> None:
    for alive in [*two_ranks.call(remains, config()), remains(Ranks(DEVICE), config(depth=1))]:
        assert not any(alive)


def test_only_who_waits_for_the_first_rank_is_said_to_wait() -> None:
    seen: list[int] = []

    @contextlib.contextmanager
    def waiting() -> Iterator[None]:
        seen.append(ranks.rank)
        yield

    ranks = Ranks(DEVICE)
    ranks.waiting = waiting
    for rank in (0, 1):
        ranks.rank = rank
        with ranks.while_first_works():
            pass
    assert seen == [1]
