"""The only module in which the number of workers matters.

A trial gives the same numbers on one rank and on many: every rank takes its part of each *global* batch, sums are
taken over ranks before anything is divided, BatchNorm of the trained part sees the global batch, and the noise of
dropout is drawn for the global batch. Every rank enters every collective.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import StochasticDepth

_NCCL_LOST = ("remote process exited", "closed by remote peer", "Connection reset by peer", "ncclRemoteError")
_IDLE_LIMIT = datetime.timedelta(days=30)
"""How long the control group may wait for rank 0: a warm lane may idle for a night between two trials."""


class Ranks:
    """This process's place among the workers of a lane.

    Args:
        device: Where this rank trains.
        control: Process group over gloo that carries decisions, None for a single rank.
    """

    def __init__(self, device: torch.device, control: dist.ProcessGroup | None = None) -> None:
        self.device = device
        self.waiting: Callable[[], AbstractContextManager[object]] = nullcontext
        """Around what waits for rank 0 and is no hang, for whoever watches this process."""
        self._control = control
        self.world_size = dist.get_world_size() if control is not None else 1
        self.rank = dist.get_rank() if control is not None else 0

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Joins the default process group, if there is one with several ranks; every rank must call this."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls(device)
        control = dist.new_group(backend="gloo", timeout=_IDLE_LIMIT)
        if not isinstance(control, dist.ProcessGroup):
            raise RuntimeError("this process is not a member of its own control group")
        return cls(device, control)

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This rank's consecutive part of ``rows``; parts differ in length by at most one."""
        first, last = share_bounds(len(rows), self.rank, self.world_size)
        return rows[first:last]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of ``tensor`` over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, rows: torch.Tensor, total: int) -> torch.Tensor:
        """All ranks' rows in order, of which this rank holds its ``share`` of ``total``; the bits stay as they are."""
        if self.world_size == 1:
            return rows
        lengths = [
            last - first for first, last in (share_bounds(total, r, self.world_size) for r in range(self.world_size))
        ]
        mine = rows.new_zeros((max(lengths), *rows.shape[1:]))
        mine[: len(rows)] = rows
        pieces = [torch.empty_like(mine) for _ in lengths]
        dist.all_gather(pieces, mine)
        return torch.cat([piece[:length] for piece, length in zip(pieces, lengths, strict=True)])

    def agree(self, value: Any) -> Any:
        """Rank 0's ``value`` on every rank (any picklable object); what the others pass is ignored."""
        if self._control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def agree_to(self, flag: bool) -> bool:
        """Rank 0's ``flag`` on every rank; cheap enough for every batch."""
        if self._control is None:
            return flag
        box = torch.tensor([flag])
        dist.broadcast(box, src=0, group=self._control)
        return bool(box.item())

    def while_first_works(self) -> AbstractContextManager[object]:
        """Around what rank 0 does alone, however long it takes, and the others wait for; if it hangs, it says so."""
        return nullcontext() if self.is_first else self.waiting()

    def wrap(self, tail: nn.Module) -> nn.Module:
        """``tail`` with its gradients averaged over ranks in each backward pass."""
        if self.world_size == 1:
            return tail
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        # Three numbers summed in another order are another number, and torch orders its buckets anew after the first
        # step: a trial that goes on would begin with the first order. Looking for unused parameters keeps that one.
        keeps_order = self.world_size > 2  # noqa: PLR2004
        return DistributedDataParallel(
            tail, device_ids=device_ids, forward_sync_buffers=False, find_unused_parameters=keeps_order
        )

    def syncing(self, model: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: gradients are averaged over ranks in the last pass before a step."""
        if isinstance(model, DistributedDataParallel) and not is_last:
            no_sync: AbstractContextManager[None] = model.no_sync()
            return no_sync
        return nullcontext()

    def join_batch_norms(self, tail: nn.Module) -> nn.Module:
        """``tail`` with BatchNorm over the global batch; the same names, parameters and buffers."""
        if self.world_size == 1:
            return tail
        if self.device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(tail)
        for name, module in list(tail.named_modules()):
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                tail.set_submodule(name, JoinedBatchNorm(module))
        return tail


def is_lost_peer(error: Exception) -> bool:
    """Whether an error says no more than that another rank's process is gone, or the wire to it."""
    text = str(error)
    if isinstance(error, dist.DistBackendError):  # NCCL's, which also says so of what is wrong on this very machine
        return any(sign in text for sign in _NCCL_LOST)
    # gloo has no class of errors of its own; all that its transport says names the file that it stands in. Who waited
    # in vain for a rank that still is there has found a hang.
    is_gloo = isinstance(error, RuntimeError) and "gloo/transport/" in text and "timed out" not in text.lower()
    return isinstance(error, dist.DistNetworkError) or is_gloo


def share_bounds(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and one-past-last position of a rank's consecutive part of ``num_rows``."""
    return num_rows * rank // world_size, num_rows * (rank + 1) // world_size


class JoinedBatchNorm(nn.Module):
    """BatchNorm over the batches of all ranks, for devices that ``nn.SyncBatchNorm`` does not serve (CPU)."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, source: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps, self.momentum = source.eps, source.momentum
        self.weight, self.bias = source.weight, source.bias
        self.register_buffer("running_mean", source.running_mean)
        self.register_buffer("running_var", source.running_var)
        self.register_buffer("num_batches_tracked", source.num_batches_tracked)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalises [B, C, ...] over everything but C; shape and dtype are kept.

        Raises:
            ValueError: There is one value per channel on all ranks together, and the module is training.
        """
        if not self.training:
            return nn.functional.batch_norm(
                inputs, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        with torch.autocast(inputs.device.type, enabled=False):
            values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
            normalised, mean_C, var_C, count = _NormaliseOverRanks.apply(values, self.weight, self.bias, self.eps)
            self._remember(mean_C, var_C * (count / (count - 1)))
            return normalised.to(inputs.dtype)

    @torch.no_grad()
    def _remember(self, mean_C: torch.Tensor, unbiased_var_C: torch.Tensor) -> None:
        self.num_batches_tracked += 1
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(unbiased_var_C.to(self.running_var.dtype), rate)


class _NormaliseOverRanks(torch.autograd.Function):
    """Training-mode BatchNorm (Ioffe & Szegedy 2015, algorithm 1) with the global batch as the batch.

    One collective forward and one backward. Gradients of weight and bias are this rank's part of the sum.
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight_C: torch.Tensor, bias_C: torch.Tensor, eps: float) -> Any:
        axes = [axis for axis in range(values.dim()) if axis != 1]
        shape = [1, -1] + [1] * (values.dim() - 2)
        mean_C, var_C, count = _moments_over_ranks(values, axes, shape)
        if count <= 1:
            raise ValueError("BatchNorm cannot train on one value per channel; raise batch_size")
        inverse_std_C = torch.rsqrt(var_C + eps)
        normalised = (values - mean_C.view(shape)) * inverse_std_C.view(shape)
        ctx.save_for_backward(normalised, weight_C, inverse_std_C)
        ctx.axes, ctx.shape, ctx.count = axes, shape, count
        ctx.mark_non_differentiable(mean_C, var_C)
        return normalised * weight_C.view(shape) + bias_C.view(shape), mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> Any:
        normalised, weight_C, inverse_std_C = ctx.saved_tensors
        grad_bias_C, grad_weight_C = grad.sum(ctx.axes), (grad * normalised).sum(ctx.axes)
        sums_2C = torch.stack([grad_bias_C, grad_weight_C])
        dist.all_reduce(sums_2C)
        mean_grad_C, mean_product_C = sums_2C / ctx.count
        centred = grad - mean_grad_C.view(ctx.shape) - normalised * mean_product_C.view(ctx.shape)
        grad_values = centred * (weight_C * inverse_std_C).view(ctx.shape)
        return grad_values, grad_weight_C, grad_bias_C, None


def _moments_over_ranks(
    values: torch.Tensor, axes: list[int], shape: list[int]
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean and biased variance per channel [C] over all ranks, and how many values per channel there are.

    Each rank's moments are taken around its own mean and then merged (Chan, Golub & LeVeque 1979), which loses no
    digits where the mean is large.
    """
    count = values.numel() // values.shape[1]
    mean_C = values.sum(axes) / max(count, 1)
    squares_C = (values - mean_C.view(shape)).square().sum(axes)
    mine = torch.cat([mean_C.new_tensor([count]), mean_C, squares_C]).to(torch.float64)
    all_ranks = mine.new_zeros(dist.get_world_size(), len(mine))
    all_ranks[dist.get_rank()] = mine
    dist.all_reduce(all_ranks)
    counts_R1, means_RC, squares_RC = all_ranks[:, :1], *all_ranks[:, 1:].chunk(2, dim=1)
    total = counts_R1.sum()
    joined_C = (counts_R1 * means_RC).sum(0) / total
    var_C = (squares_RC + counts_R1 * (means_RC - joined_C).square()).sum(0) / total
    return joined_C.to(values.dtype), var_C.to(values.dtype), float(total)


class SharedNoise:
    """Random numbers of one training step, drawn for the global batch and cut to this rank's part.

    They depend on (seed, epoch, step, module) alone: not on how many ranks there are, on what ran before in this
    process, or on whether the trial was interrupted.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._step = b""
        self._bounds = (0, 0, 0)

    def begin_step(self, epoch: int, step: int, first: int, last: int, total: int) -> None:
        """Sets the step, and that this rank holds rows ``first`` to ``last`` of a global batch of ``total``."""
        self._step = f"{self._seed}/{epoch}/{step}".encode()
        self._bounds = (first, last, total)

    def keep_mask(self, name: str, shape: torch.Size, keep: float, device: torch.device) -> torch.Tensor:
        """A 0/1 mask, 1 with probability ``keep``, for this rank's rows; ``shape`` leads with the row axis."""
        first, last, total = self._bounds
        digest = hashlib.sha256(self._step + b"/" + name.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        mask = torch.rand((total, *shape[1:]), generator=generator) < keep
        return mask[first:last].to(device)


class SharedDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) or row-wise stochastic depth (Huang et al. 2016) on shared noise."""

    def __init__(self, name: str, p: float, *, whole_rows: bool, noise: SharedNoise) -> None:
        super().__init__()
        self.name, self.p, self.whole_rows, self.noise = name, p, whole_rows, noise

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Drops elements, or whole rows, of [B, ...] while training; the identity otherwise."""
        if not self.training or self.p == 0:
            return inputs
        shape = torch.Size([len(inputs)] + [1] * (inputs.dim() - 1)) if self.whole_rows else inputs.shape
        mask = self.noise.keep_mask(self.name, shape, 1 - self.p, inputs.device)
        return inputs * mask.to(inputs.dtype).div_(max(1 - self.p, 1e-12))


def share_noise(tail: nn.Module, noise: SharedNoise) -> nn.Module:
    """``tail`` with every dropout and stochastic depth drawing from ``noise``; no parameter changes."""
    for name, module in list(tail.named_modules()):
        if isinstance(module, nn.Dropout):
            tail.set_submodule(name, SharedDropout(name, module.p, whole_rows=False, noise=noise))
        elif isinstance(module, StochasticDepth) and module.mode == "row":
            tail.set_submodule(name, SharedDropout(name, module.p, whole_rows=True, noise=noise))
    return tail
