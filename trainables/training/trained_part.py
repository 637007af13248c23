"""The part of a network that a trial trains: tail and head, their BatchNorm, their optimizer.

In: a backbone and a freeze depth. Out: a trainable tail, and parameter groups. The frozen stages are shared with every
other trial of the process and are never written to; the tail is this trial's own copy.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from trainables.backbones.zoo import Backbone
from trainables.config import OptimizerConfig, Schedule

DROPOUT_NAME = "head_dropout"
"""Of the dropout in front of the head, in a trained part whose network has none there."""
_CYCLE_RISES, _CYCLE_START, _CYCLE_END = 0.3, 1 / 25, 1 / 25e4


@dataclass(frozen=True)
class SplitNetwork:
    """What stands behind the frozen stages of a backbone, and the name of what those are.

    Attributes:
        tail: Ends in the head; trains.
        head_name: Qualified name of the head's module inside ``tail``.
        prefix_hash: SHA-256 of the prefix's names and tensors, what a delta checkpoint stands on.
    """

    tail: nn.Module
    head_name: str
    prefix_hash: str


def split_network(backbone: Backbone, freeze_depth: int) -> SplitNetwork:
    """Cuts ``backbone`` behind its first ``freeze_depth`` stages.

    Raises:
        InputError: The backbone has fewer stages.
    """
    graph = backbone.graph
    return SplitNetwork(
        tail=graph.tail(freeze_depth), head_name=graph.head.name, prefix_hash=graph.prefix_hash(freeze_depth)
    )


def replace_dropout(tail: nn.Module, head_name: str, rate: float) -> None:
    """Sets the rate of the dropout in front of the head; where the network has none, one is put there.

    In front of the head means behind the last layer with tensors before it: dropout between the hidden layers of VGG
    and AlexNet is the network's own business. No parameter and no name of one changes.

    Args:
        tail: As `split_network` gives it.
        head_name: The head's module in it.
        rate: Share of the values that are dropped.

    Raises:
        TypeError: The tail is not a traced one.
    """
    if not isinstance(tail, fx.GraphModule):
        raise TypeError(f"{type(tail).__name__}: dropout can be put only into a traced network")
    head = next(node for node in tail.graph.nodes if node.op == "call_module" and node.target == head_name)
    before = head
    while before.all_input_nodes:
        before = before.all_input_nodes[0]
        layer = tail.get_submodule(str(before.target)) if before.op == "call_module" else None
        if isinstance(layer, nn.Dropout):
            layer.p = rate
            return
        if before.op == "get_attr" or (layer is not None and layer.state_dict()):
            break
    tail.add_submodule(DROPOUT_NAME, nn.Dropout(rate))
    with tail.graph.inserting_before(head):
        head.args = (tail.graph.call_module(DROPOUT_NAME, head.args),)
    tail.recompile()


class _KeepsStatistics(nn.Module):
    """Stays in eval mode, whatever the network around it does; parameters learn as ever."""

    def train(self, mode: bool = True) -> _KeepsStatistics:  # noqa: ARG002
        """Stays in eval mode."""
        return super().train(False)


class KeptBatchNorm1d(_KeepsStatistics, nn.BatchNorm1d):
    """BatchNorm that normalises by the statistics that it came with."""


class KeptBatchNorm2d(_KeepsStatistics, nn.BatchNorm2d):
    """BatchNorm that normalises by the statistics that it came with."""


_KEPT: dict[type, type] = {nn.BatchNorm1d: KeptBatchNorm1d, nn.BatchNorm2d: KeptBatchNorm2d}


def keep_statistics(tail: nn.Module) -> nn.Module:
    """``tail`` with BatchNorm that keeps its statistics; the same names, parameters and buffers.

    A picture's result then depends on no other picture of the batch, so nothing is to be agreed over ranks.
    """
    for module in tail.modules():
        if type(module) in _KEPT:
            module.__class__ = _KEPT[type(module)]  # adds a method, no state
            module.train(False)
    return tail


def parameter_groups(
    tail: nn.Module, head_name: str, config: OptimizerConfig, stages: Sequence[Collection[str]] = ()
) -> list[dict[str, object]]:
    """Groups by learning rate (head, backbone) and by weight decay (matrices; none on vectors such as biases).

    Each group carries ``peak_lr``, which the schedule scales. With a layer decay below 1 each stage is a group of its
    own, and learns the slower the further it is from the head (Howard & Ruder 2018, section 3.2, and since).

    Args:
        tail: What trains.
        head_name: The head's module in it.
        config: Rates and decays.
        stages: Names of each stage's parameters in the whole network, first stage first.
    """
    distances = {name: distance for distance, names in enumerate(reversed(stages)) for name in names}
    members: dict[tuple[bool, bool, int], list[nn.Parameter]] = {}
    for name, parameter in tail.named_parameters():
        in_head = name.startswith(head_name + ".")
        distance = 0 if in_head or config.layer_decay == 1 else distances.get(name, 0)
        members.setdefault((in_head, parameter.dim() > 1, distance), []).append(parameter)
    groups: list[dict[str, object]] = []
    for (in_head, decays, distance), parameters in sorted(members.items()):
        peak_lr = config.lr * (1.0 if in_head else config.backbone_lr_ratio) * config.layer_decay**distance
        decay = config.weight_decay if decays else 0.0
        groups.append({"params": parameters, "lr": peak_lr, "peak_lr": peak_lr, "weight_decay": decay})
    return groups


def build_optimizer(
    tail: nn.Module, head_name: str, config: OptimizerConfig, stages: Sequence[Collection[str]] = ()
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) or SGD with Nesterov momentum over the tail's parameters."""
    groups = parameter_groups(tail, head_name, config, stages)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def lr_scale(
    step: int, steps_per_epoch: int, epochs: int, warmup_epochs: float, schedule: Schedule = "cosine"
) -> float:
    """Share of the peak learning rate at ``step`` (0-based): linear warm-up, then down to 0 as the schedule says.

    ``cosine`` is half a cosine (Loshchilov & Hutter 2017, SGDR, eq. 5, without restarts); ``constant`` stays at the
    peak; ``one_cycle`` (Smith & Topin 2017, as `torch.optim.lr_scheduler.OneCycleLR`) rises from a 25th of the peak
    over the first three tenths of all steps and falls to a 250,000th, both along a cosine, and has no other warm-up.
    """
    total = steps_per_epoch * epochs
    if schedule == "one_cycle":
        return _one_cycle(step, total)
    warmup = min(round(warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / (total - warmup)
    if schedule == "constant":
        return 1.0
    return 1 - progress if schedule == "linear" else _half_cosine(1.0, 0.0, progress)


def _one_cycle(step: int, total: int) -> float:
    peak = max(_CYCLE_RISES * total - 1, 0.0)
    if step <= peak:
        return _half_cosine(_CYCLE_START, 1.0, step / peak if peak else 1.0)
    return _half_cosine(1.0, _CYCLE_END, (step - peak) / max(total - 1 - peak, 1e-9))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
