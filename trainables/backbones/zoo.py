"""Backbones by name, ready to be cut: weights in place, a fresh head on top.

In: a name, a weights file or none, a number of classes, an input size and a seed. Out: a ``Backbone``. The same
arguments give the same bits, and PyTorch's global random state is left as it was.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import nn

from trainables.backbones.assembling import rebuild
from trainables.backbones.families import backbone_names, build_model, check_name, normalisation, skeleton
from trainables.backbones.graph import CutGraph, fitting_plan
from trainables.backbones.heads import fresh_head, part_seed
from trainables.backbones.tracing import CutPlan, plan_cuts
from trainables.backbones.weights import check_fit, load_tensors
from trainables.config import HeadKind, WeightsFile

__all__ = ["Backbone", "backbone_names", "check_name", "load_backbone"]


@dataclass(frozen=True)
class Backbone:
    """A network, its cut points, and how its pictures are normalised.

    Attributes:
        name: As in ``backbone_names()``.
        graph: Cuts the network in two; ``graph.model`` is the whole of it.
        mean: Per channel, for pictures in [0, 1].
        std: Per channel.
        num_classes: Number of logits.
    """

    name: str
    graph: CutGraph
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int

    @property
    def model(self) -> nn.Module:
        """The whole network, in eval mode, asking for no gradients: the pattern of all parts."""
        return self.graph.model

    def with_head(self, num_classes: int, seed: int, head: HeadKind = "linear") -> Backbone:
        """The same backbone with the fresh head that ``load_backbone`` would give it; all else is shared."""
        fresh = fresh_head(head, self.graph.head.in_features, num_classes, seed)
        return replace(self, graph=self.graph.with_head(fresh), num_classes=num_classes)


def load_backbone(
    name: str,
    weights: WeightsFile | None,
    *,
    num_classes: int,
    input_size_px: int,
    seed: int,
    head: HeadKind = "linear",
) -> Backbone:
    """Builds a backbone with a fresh head.

    Args:
        name: One of ``backbone_names()``.
        weights: Tensors of all layers but the head; None draws them all from ``seed``.
        num_classes: Number of logits.
        input_size_px: Side of the pictures; stages and their FLOPs depend on it.
        seed: Of the head, and of everything else where there are no weights.
        head: Its kind.

    Raises:
        InputError: No such backbone, weights that do not fit it, or pictures too small for it.
    """
    check_name(name)
    plan = fitting_plan(functools.partial(_plan, name), name, input_size_px)
    fresh = fresh_head(head, plan.trace.in_features, num_classes, seed)
    model = _random_model(name, seed) if weights is None else _pretrained_model(name, weights)
    parent, _, attribute = plan.trace.head_name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, fresh)
    mean, std = normalisation(name)
    if weights is not None and weights.mean is not None and weights.std is not None:
        mean, std = weights.mean, weights.std
    return Backbone(name, CutGraph(model, plan, input_size_px), mean, std, num_classes)


@functools.cache
def _plan(name: str, input_size_px: int) -> CutPlan:
    model, traced = skeleton(name)
    return plan_cuts(traced, model, input_size_px)


def _pretrained_model(name: str, weights: WeightsFile) -> nn.Module:
    model, _ = skeleton(name)
    tensors = load_tensors(weights)
    check_fit(tensors, name, place=weights.uri)
    return rebuild(model, tensors.get)


def _random_model(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(part_seed(seed, "body"))
        return build_model(name)
