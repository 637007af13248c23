"""Modules made of a traced network's operations, and copies of its layers for them.

In: a `CutPlan`, which operations of it, and the layers that hold their tensors. Out: a module of these alone.
"""

from __future__ import annotations

import copy
import hashlib
import operator
from collections.abc import Callable, Mapping

import torch
from torch import fx, nn

from trainables.backbones.tracing import CutPlan


def rebuild(model: nn.Module, tensor_for: Callable[[str, torch.Tensor], torch.Tensor | None]) -> nn.Module:
    """A copy of ``model`` in which ``tensor_for(name, tensor)`` stands for each parameter and buffer.

    ``None`` from it stands for the tensor as it is. Unlike construction followed by loading, this draws no random
    numbers and copies no tensor that is not kept.
    """
    memo: dict[int, object] = {}
    for name, parameter in model.named_parameters():
        value = tensor_for(name, parameter.detach())
        if value is not None:
            memo[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    for name, buffer in model.named_buffers():
        value = tensor_for(name, buffer)
        if value is not None:
            memo[id(buffer)] = value
    return copy.deepcopy(model, memo)


_OUT_OF_PLACE: dict[object, Callable[..., object]] = {operator.iadd: operator.add, operator.imul: operator.mul}
_MAKE_TENSORS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.MaxPool2d, nn.AvgPool2d)
"""Layers without state whose result is a new tensor, once they may not write into their input."""
_KEEPING = "_keeping"
"""Behind a layer's name: the same, but it does not write into its input."""
HOLDS_STATE = ("call_module", "get_attr")


def find_layer(model: nn.Module, target: str) -> nn.Module | torch.Tensor:
    """The layer, or the tensor, that an operation names."""
    owner, _, attribute = target.rpartition(".")
    found: nn.Module | torch.Tensor = getattr(model.get_submodule(owner), attribute)
    return found


def own_copy(layer: nn.Module | torch.Tensor) -> nn.Module | torch.Tensor:
    """A deep copy that asks for gradients. Tensors are cloned one by one: the original's may be views of a file."""
    if isinstance(layer, nn.Module):
        return rebuild(layer, lambda _, tensor: tensor.clone()).requires_grad_(True)
    return nn.Parameter(layer.detach().clone()) if isinstance(layer, nn.Parameter) else layer.clone()


def placed_copy(
    layer: nn.Module | torch.Tensor, device: torch.device, layout: torch.memory_format
) -> nn.Module | torch.Tensor:
    """A copy of a frozen layer for a device and a layout; tensors that lie so already are shared with it.

    A copy even then, because the layer may have to do without writing into its input.
    """

    def place(_: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, memory_format=layout) if tensor.dim() == len("OIHW") else tensor.to(device)

    if isinstance(layer, nn.Module):
        return rebuild(layer, place)
    placed = place("", layer.detach())
    return nn.Parameter(placed, requires_grad=False) if isinstance(layer, nn.Parameter) else placed


def program_of(module: nn.Module) -> str:
    """SHA-256 of what a module does with its tensors."""
    # The code names each operation, the representation each layer's settings (stride, eps, ...).
    code = str(module.code) if isinstance(module, fx.GraphModule) else ""
    return hashlib.sha256(f"{code}\n{module!r}".encode()).hexdigest()


def assemble(
    class_name: str,
    plan: CutPlan,
    start: int,
    stop: int,
    layers: Mapping[str, nn.Module | torch.Tensor],
    *,
    keep_input: bool = False,
) -> nn.Module:
    """The operations start..stop (exclusive) of ``plan`` as a module over ``layers``.

    Args:
        class_name: Of the new module.
        plan: Names the operations.
        start: Its first one.
        stop: The one behind its last.
        layers: By qualified name; not copied.
        keep_input: No operation may write into the module's input.
    """
    graph = fx.Graph()
    source = plan.nodes[start - 1] if start else next(iter(plan.trace.graph.find_nodes(op="placeholder")))
    copies = {source: graph.placeholder("features" if start else "images")}
    used: dict[str, nn.Module | torch.Tensor] = {}
    may_be_input = {source}
    for node in plan.nodes[start:stop]:
        copied = copies[node] = graph.node_copy(node, copies.__getitem__)
        layer = layers[str(node.target)] if node.op in HOLDS_STATE else None
        if keep_input and may_be_input.intersection(node.all_input_nodes):
            layer = _forbid_in_place(copied, layer, is_changed=bool(node.args) and node.args[0] in may_be_input)
            if _hands_on(copied, layer):
                may_be_input.add(node)
        if layer is not None:
            used[str(copied.target)] = layer
    graph.output(copies[plan.nodes[stop - 1]])
    return fx.GraphModule(used, graph, class_name).eval()


def _forbid_in_place(
    node: fx.Node, layer: nn.Module | torch.Tensor | None, *, is_changed: bool
) -> nn.Module | torch.Tensor | None:
    """Makes ``node`` write to a fresh tensor; returns its layer, one of its own where the shared one writes in place.

    Args:
        node: Of the graph that is made.
        layer: Its layer.
        is_changed: Whether an operation that changes a tensor changes one that must stay: it changes its first input.
    """
    if isinstance(layer, nn.Module):
        if getattr(layer, "inplace", False):
            layer = copy.copy(layer)
            layer.inplace = False  # type: ignore[assignment]
            node.target = f"{node.target}{_KEEPING}"
        return layer
    if is_changed:
        node.target = _OUT_OF_PLACE.get(node.target, node.target)
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    return layer


def _hands_on(node: fx.Node, layer: nn.Module | torch.Tensor | None) -> bool:
    """Whether the result of ``node`` may be (a view of) its input.

    Dropout in eval mode and flatten hand their input on, so what follows them is looked at too. Whatever is not known
    to make a tensor may do so.
    """
    if isinstance(layer, nn.Module):
        return not layer.state_dict() and not isinstance(layer, _MAKE_TENSORS)
    return node.target not in _OUT_OF_PLACE and node.target not in _OUT_OF_PLACE.values()
