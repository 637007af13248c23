"""A CNN as a row of stages that can be cut in two anywhere between them.

In: any CNN that ``torch.fx`` can trace. Out: a ``CutGraph``, whose ``split(depth)`` gives the frozen front and the
trainable rest. A network can be cut behind a node of its graph if, there, only that node's result is still needed;
``stages`` chooses among those places. No code here knows any architecture.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from trainables.backbones.assembling import (
    HOLDS_STATE,
    assemble,
    find_layer,
    own_copy,
    placed_copy,
    program_of,
    rebuild,
)
from trainables.backbones.heads import CosineHead, MlpHead
from trainables.backbones.stages import Stage
from trainables.backbones.tracing import CutPlan, plan_cuts, trace
from trainables.backbones.weights import hash_tensors
from trainables.errors import InputError

__all__ = ["CutGraph", "Head", "Stage", "build_graph"]

# Sides that are tried, in order, when a picture turns out too small for a network.
_USUAL_SIZES_PX = (16, 32, 48, 64, 80, 96, 128, 160, 192, 224)
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Head:
    """The last layer, which every trial trains anew: see `backbones.heads`.

    Attributes:
        name: Of its module in the whole network.
        in_features: Width of its input.
        num_classes: Number of logits.
        num_parameters: Learnable numbers.
        flops: Forward FLOPs for one picture.
    """

    name: str
    in_features: int
    num_classes: int
    num_parameters: int
    flops: int


class CutGraph:
    """A whole network and its parts.

    The network is the pattern that parts are made from: it stays in eval mode and its tensors ask for no gradient.

    Attributes:
        stages: In order, without the head.
        head: The layer behind the last stage.
        input_size_px: Side of the pictures that the stages' shapes and FLOPs are given for.
    """

    def __init__(self, model: nn.Module, plan: CutPlan, input_size_px: int) -> None:
        """Takes ``model`` over, which has the layers that ``plan`` names."""
        model.eval().requires_grad_(False)
        head = model.get_submodule(plan.trace.head_name)
        self.input_size_px = input_size_px
        self.stages = plan.stages
        self.head = _describe_head(plan.trace.head_name, head)
        self._plan = plan
        self._layers = {
            str(node.target): find_layer(model, str(node.target)) for node in plan.nodes if node.op in HOLDS_STATE
        }
        # Of the stages alone: the graphs that differ in the head only have them in common.
        self._modules: dict[tuple[int, torch.device, torch.memory_format], nn.Module] = {}
        self._hashes: dict[int, str] = {}
        self._programs: dict[int, str] = {}

    @property
    def num_stages(self) -> int:
        """Number of stages; as a depth: only the head is trained."""
        return len(self.stages)

    def flops_around(self, depth: int) -> tuple[int, int]:
        """FLOPs of one picture's forward pass through the prefix of that depth, and through the tail behind it."""
        flops = [stage.flops for stage in self.stages]
        return sum(flops[:depth]), sum(flops[depth:]) + self.head.flops

    @property
    def head_name(self) -> str:
        """Name of the head's module in the whole network and in every tail."""
        return self.head.name

    @functools.cached_property
    def model(self) -> nn.Module:
        """The whole network, in eval mode; its tensors are shared with every prefix."""
        return assemble("WholeNetwork", self._plan, 0, len(self._plan.nodes), self._layers)

    def split(self, depth: int) -> tuple[nn.Module, nn.Module]:
        """Cuts the network behind its first ``depth`` stages.

        Args:
            depth: 0 (all in the tail) to ``num_stages`` (only the head, with the dropout before it, in the tail).

        Returns:
            The prefix, images [B, 3, H, W] to features [B, ...], and the tail, features to logits [B, num_classes].
            ``tail(prefix(images))`` has the bits of the whole network. Both keep the names of its state dict and are
            in eval mode. The prefix shares the network's tensors and asks for no gradient; at depth 0 it is the
            identity. The tail is a copy of its own that asks for gradients, reacts to ``train()`` and ``eval()``, and
            leaves its input as it was.

        Raises:
            InputError: There is no such depth.
        """
        end = self._end(depth)
        prefix = assemble("Prefix", self._plan, 0, end, self._layers) if end else nn.Identity().eval()
        return prefix, self.tail(depth)

    def tail(self, depth: int) -> nn.Module:
        """The tail of ``split``, alone.

        Raises:
            InputError: There is no such depth.
        """
        end, total = self._end(depth), len(self._plan.nodes)
        copies = {name: own_copy(self._layers[name]) for name in self._targets(end, total)}
        return assemble("Tail", self._plan, end, total, copies, keep_input=True)

    def with_head(self, head: nn.Module) -> CutGraph:
        """The same network with another head, which is taken over; all else is shared.

        Raises:
            ValueError: The head does not fit what stands before it.
        """
        described = _describe_head(self.head.name, head)
        if described.in_features != self.head.in_features:
            raise ValueError(f"{self.head.name}: takes {described.in_features} values, not {self.head.in_features}")
        other = copy.copy(self)
        other.__dict__.pop("model", None)  # assembled from the layers, the old head among them
        other._layers = {**self._layers, self.head.name: head.eval().requires_grad_(False)}
        other.head = described
        return other

    def stage_modules(
        self,
        depth: int,
        device: torch.device = _CPU,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> tuple[nn.Module, ...]:
        """The first ``depth`` stages as modules that run one after another.

        Their tensors have the names and numbers of the prefix that ``split`` gives, and the modules are in eval mode
        and ask for no gradient. They are made once for a device and a layout and shared by all who ask: not to be
        changed. No stage writes into its input, so what the stage before it made can be kept.

        Args:
            depth: Number of stages.
            device: Where their tensors lie.
            layout: How the weights of convolutions lie in memory.

        Raises:
            InputError: There is no such depth.
        """
        self._end(depth)
        return tuple(self._stage(index, device, layout) for index in range(depth))

    def prefix_hash(self, depth: int) -> str:
        """SHA-256 of the names and tensors of the first ``depth`` stages, see ``hash_tensors``; computed once.

        Raises:
            InputError: There is no such depth.
        """
        end = self._end(depth)
        if depth not in self._hashes:
            self._hashes[depth] = hash_tensors(self._tensors(0, end))
        return self._hashes[depth]

    def program(self, depth: int) -> str:
        """SHA-256 of the operations of the first ``depth`` stages: the same tensors can be put to other uses.

        Raises:
            InputError: There is no such depth.
        """
        self._end(depth)
        for index in range(depth):
            if index not in self._programs:
                made = (module for (number, *_), module in self._modules.items() if number == index)
                module = next(made, None) or self._stage(index, _CPU, torch.contiguous_format)
                self._programs[index] = program_of(module)
        return hashlib.sha256("".join(self._programs[index] for index in range(depth)).encode()).hexdigest()

    def _stage(self, index: int, device: torch.device, layout: torch.memory_format) -> nn.Module:
        key = (index, device, layout)
        if key not in self._modules:
            start, stop = self._plan.ends[index : index + 2]
            # From the network's own tensors each time: a layout leaves traces in tensors that have been in another.
            layers = {name: placed_copy(self._layers[name], device, layout) for name in self._targets(start, stop)}
            self._modules[key] = assemble("Stage", self._plan, start, stop, layers, keep_input=True)
        return self._modules[key]

    def prefix_keys(self, depth: int) -> tuple[str, ...]:
        """Names, in the whole network's state dict, of the tensors in the prefix."""
        return self._keys(0, self._end(depth))

    @property
    def stage_keys(self) -> tuple[tuple[str, ...], ...]:
        """Names, in the whole network's state dict, of the tensors of each stage."""
        ends = self._plan.ends[: self.num_stages + 1]
        return tuple(self._keys(start, stop) for start, stop in pairwise(ends))

    @property
    def batch_norm_depth(self) -> int:
        """Number of leading stages behind which there is no BatchNorm any more; 0: the network has none."""
        ends = self._plan.ends[: self.num_stages + 1]
        having = [
            depth
            for depth, (start, stop) in enumerate(pairwise(ends), start=1)
            if any(
                isinstance(self._layers[name], nn.modules.batchnorm._BatchNorm) for name in self._targets(start, stop)
            )
        ]
        return max(having, default=0)

    def tail_keys(self, depth: int) -> tuple[str, ...]:
        """Names, in the whole network's state dict, of the tensors in the tail, the head's included."""
        return self._keys(self._end(depth), len(self._plan.nodes))

    def _end(self, depth: int) -> int:
        if not 0 <= depth <= self.num_stages:
            raise InputError(
                f"freeze_depth: {depth} is outside 0 to {self.num_stages}, the number of stages of this backbone at "
                f"{self.input_size_px} px"
            )
        return self._plan.ends[depth]

    def _targets(self, start: int, stop: int) -> list[str]:
        return list(dict.fromkeys(str(n.target) for n in self._plan.nodes[start:stop] if n.op in HOLDS_STATE))

    def _keys(self, start: int, stop: int) -> tuple[str, ...]:
        return tuple(self._tensors(start, stop))

    def _tensors(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for target in self._targets(start, stop):
            layer = self._layers[target]
            if isinstance(layer, nn.Module):
                tensors |= {f"{target}.{key}": tensor for key, tensor in layer.state_dict().items()}
            else:
                tensors[target] = layer
        return tensors


def build_graph(model: nn.Module, input_size_px: int) -> CutGraph:
    """Cuts ``model`` into stages, for square pictures of side ``input_size_px``.

    The model is taken over: put in eval mode, its tensors asking for no gradient. A last layer that is not linear is
    replaced in it (see ``tracing.trace``) by a fresh linear layer with as many outputs.

    Raises:
        InputError: The pictures are too small for the network.
        ValueError: The model does not end in a linear layer or a convolution.
    """
    model.eval()
    traced = trace(model)
    skeleton = rebuild(model, lambda _, tensor: tensor.to("meta"))
    plan = fitting_plan(lambda size: plan_cuts(traced, skeleton, size), type(model).__name__, input_size_px)
    return CutGraph(model, plan, input_size_px)


def fitting_plan(plan: Callable[[int], CutPlan], name: str, input_size_px: int) -> CutPlan:
    """``plan(input_size_px)``, or what to do where the pictures are too small.

    Raises:
        InputError: They are; the message names a size that fits.
    """
    try:
        return plan(input_size_px)
    except RuntimeError:
        for size in (size for size in _USUAL_SIZES_PX if size > input_size_px):
            try:
                plan(size)
            except RuntimeError:
                continue
            raise InputError(
                f"data.image_size_px: {input_size_px} px are too few for {name}; take {size} px or more"
            ) from None
        raise


def _describe_head(name: str, head: nn.Module) -> Head:
    if not isinstance(head, nn.Linear | MlpHead | CosineHead):
        raise TypeError(f"{name}: the head is a {type(head).__name__}, not a linear layer or another kind of head")
    parameters = list(head.parameters())
    return Head(
        name=name,
        in_features=head.in_features,
        num_classes=head.out_features,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        flops=sum(2 * parameter.numel() for parameter in parameters if parameter.dim() > 1),
    )
