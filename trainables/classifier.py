"""The part of a network that a trial trains: tail and head, their BatchNorm, their optimizer.

In: a backbone and a freeze depth. Out: a trainable tail, and parameter groups. The frozen stages are shared with every
other trial of the process and are never written to; the tail is this trial's own copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from trainables.backbones.zoo import Backbone
from trainables.config import OptimizerConfig


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


def parameter_groups(tail: nn.Module, head_name: str, config: OptimizerConfig) -> list[dict[str, object]]:
    """Groups by learning rate (head, backbone) and by weight decay (matrices; none on vectors such as biases).

    Each group carries ``peak_lr``, which the schedule scales.
    """
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in tail.named_parameters():
        in_head = name.startswith(head_name + ".")
        members.setdefault((in_head, parameter.dim() > 1), []).append(parameter)
    groups: list[dict[str, object]] = []
    for (in_head, decays), parameters in sorted(members.items()):
        peak_lr = config.lr * (1.0 if in_head else config.backbone_lr_ratio)
        decay = config.weight_decay if decays else 0.0
        groups.append({"params": parameters, "lr": peak_lr, "peak_lr": peak_lr, "weight_decay": decay})
    return groups


def build_optimizer(tail: nn.Module, head_name: str, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) or SGD with Nesterov momentum over the tail's parameters."""
    groups = parameter_groups(tail, head_name, config)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def lr_scale(step: int, steps_per_epoch: int, epochs: int, warmup_epochs: float) -> float:
    """Share of the peak learning rate at ``step`` (0-based): linear warm-up, then half a cosine down to 0.

    The cosine is that of Loshchilov & Hutter 2017 (SGDR, eq. 5) without restarts.
    """
    total = steps_per_epoch * epochs
    warmup = min(round(warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
