"""From a model to a plan of its cuts, which knows names, shapes and costs but no weights.

In: a model that ``torch.fx`` can trace. Out: a ``CutPlan``: its operations in order and where its stages end. The same
plan serves every set of weights and every head of that model, for one input size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import fx, nn

from trainables.backbones.flops import NodeCost, measure
from trainables.backbones.stages import Segment, Stage, choose_stages

_BYTES_PER_VALUE = 4  # float32


@dataclass(frozen=True)
class Trace:
    """The operations of a model in which everything from the head on is one linear layer.

    Attributes:
        graph: As traced; never run.
        head_name: Qualified name of the head's module.
        in_features: Width of the head's input.
    """

    graph: fx.Graph
    head_name: str
    in_features: int


@dataclass(frozen=True)
class CutPlan:
    """Where a model can be cut into stages.

    Attributes:
        trace: What the plan was made from.
        nodes: The operations in order, without input and output; the last one is the head.
        ends: Number of leading nodes that are frozen at each depth; ``ends[0]`` is 0.
        stages: One less than ``ends``.
    """

    trace: Trace
    nodes: tuple[fx.Node, ...]
    ends: tuple[int, ...]
    stages: tuple[Stage, ...]


class _Tracer(fx.Tracer):
    """Keeps the innermost modules whole, whoever wrote them.

    Traced through, torchvision's stochastic depth would stay in the mode in which it was traced.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> Trace:
    """Traces ``model`` and makes its head a linear layer on pooled features.

    The head is the last layer with parameters. Where it is not linear (the 1x1 convolution of SqueezeNet), everything
    from it on becomes global average pooling, the dropout that stood before it, and a fresh linear layer under the same
    name, which is put into ``model``.

    Raises:
        ValueError: The model does not end in a linear layer or a convolution.
    """
    graph = _Tracer().trace(model)
    modules = dict(model.named_modules())
    for node in list(graph.nodes):
        if node.op == "get_attr":
            # Next to its user, a free-standing parameter falls on the side of the cut where it is used.
            next(other for other in graph.nodes if other in node.users).prepend(node)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    head_node = next((node for node in reversed(calls) if any(True for _ in modules[node.target].parameters())), None)
    head = modules[head_node.target] if head_node is not None else None
    if head_node is None or not isinstance(head, nn.Linear | nn.Conv2d):
        raise ValueError(f"{type(model).__name__}: the last layer with parameters is neither linear nor a convolution")
    name = str(head_node.target)
    if isinstance(head, nn.Linear):
        return Trace(graph, name, head.in_features)
    _pool_before_head(graph, head_node, modules)
    parent, _, attribute = name.rpartition(".")
    fresh = nn.Linear(head.in_channels, head.out_channels, device=head.weight.device, dtype=head.weight.dtype)
    setattr(model.get_submodule(parent), attribute, fresh)
    return Trace(graph, name, head.in_channels)


def _pool_before_head(graph: fx.Graph, head_node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Rewires maps -> dropout -> head -> rest as maps -> pooling -> dropout -> head."""
    first, source = head_node, head_node.all_input_nodes[0]
    while source.op == "call_module" and isinstance(modules[str(source.target)], nn.Dropout):
        first, source = source, source.all_input_nodes[0]
    with graph.inserting_after(source):
        pooled = graph.call_function(F.adaptive_avg_pool2d, (source, 1))
    with graph.inserting_after(pooled):
        flat = graph.call_function(torch.flatten, (pooled, 1))
    first.replace_input_with(source, flat)
    for node in reversed(list(graph.nodes)):
        if node is head_node:
            break
        if node.op == "output":
            node.args = (head_node,)
        else:
            graph.erase_node(node)


def plan_cuts(traced: Trace, skeleton: nn.Module, input_size_px: int) -> CutPlan:
    """Chooses the stages for square pictures of side ``input_size_px``.

    Args:
        traced: The trace of ``skeleton``.
        skeleton: The model on the meta device, in eval mode.
        input_size_px: Side of the picture.

    Raises:
        RuntimeError: The picture is too small for the network.
    """
    costs = measure(traced.graph, skeleton, input_size_px)
    nodes = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    states = {id(node): _state_of(node, skeleton) for node in nodes}
    cuts = _cut_points(nodes, costs, states)
    first_beyond = _first_of_head(nodes, states, skeleton)
    cuts = [cut for cut in cuts if cut < first_beyond]
    bounds = [0, *(cut + 1 for cut in cuts)]
    segments = [_segment(nodes[start:stop], nodes[stop], costs, states, skeleton) for start, stop in pairwise(bounds)]
    ends = (0, *(bounds[last + 1] for last in choose_stages(segments)))
    stages = tuple(_stage(nodes[start:stop], costs, states, skeleton) for start, stop in pairwise(ends))
    return CutPlan(traced, tuple(nodes), ends, stages)


def _first_of_head(nodes: Sequence[fx.Node], states: dict[int, dict[str, torch.Tensor]], model: nn.Module) -> int:
    """Index of the first node that is trained at every depth: the first dropout in front of the head, or the head."""
    head = len(nodes) - 1
    start = 1 + max(index for index in range(head) if states[id(nodes[index])])
    return next((index for index in range(start, head) if _is_dropout(nodes[index], model)), head)


def _is_dropout(node: fx.Node, model: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Dropout)


def _state_of(node: fx.Node, model: nn.Module) -> dict[str, torch.Tensor]:
    """The named parameters and buffers that a node uses."""
    target = str(node.target)
    if node.op == "call_module":
        return {
            f"{target}.{key}": value for key, value in model.get_submodule(target).state_dict(keep_vars=True).items()
        }
    if node.op == "get_attr":
        owner, _, attribute = target.rpartition(".")
        return {target: getattr(model.get_submodule(owner), attribute)}
    return {}


def _cut_points(
    nodes: Sequence[fx.Node], costs: dict[fx.Node, NodeCost], states: dict[int, dict[str, torch.Tensor]]
) -> list[int]:
    """Indices of the nodes behind which only their own result, a batch of numbers, is still needed.

    A parameter that is used on both sides forbids a cut: it cannot be frozen and trained at once.
    """
    position = {node: index for index, node in enumerate(nodes)}

    def last_use(node: fx.Node) -> int:
        return max((position.get(user, len(nodes)) for user in node.users), default=-1)

    last_key_use = {key: index for index, node in enumerate(nodes) for key in states[id(node)]}
    cuts: list[int] = []
    # The last node that needs anything made before this one: the input, an earlier result, an earlier node's parameter.
    reach = max(last_use(node) for node in nodes[0].graph.find_nodes(op="placeholder"))
    for index, node in enumerate(nodes):
        reach = max([reach, *(last_key_use[key] for key in states[id(node)])])
        if reach <= index and costs[node].shape is not None:
            cuts.append(index)
        reach = max(reach, last_use(node))
    return cuts


def _segment(
    nodes: Sequence[fx.Node],
    following: fx.Node,
    costs: dict[fx.Node, NodeCost],
    states: dict[int, dict[str, torch.Tensor]],
    model: nn.Module,
) -> Segment:
    last = nodes[-1]
    shape = costs[last].shape or ()
    followers = [states[id(following)]] if following.op == "call_module" else []
    is_weight_layer = last.op == "call_module" and _has_weights([states[id(last)]])
    return Segment(
        flops=sum(costs[node].flops for node in nodes),
        has_state=any(states[id(node)] for node in nodes),
        has_weights=_has_weights(states[id(node)] for node in nodes),
        has_dropout=any(_is_dropout(node, model) for node in nodes),
        parts_norm=is_weight_layer and any(state and not _has_weights([state]) for state in followers),
        num_values=math.prod(shape),
        spatial_size=shape[1:] or (1, 1),
        is_flat=len(shape) == 1,
        nesting=_shared_depth(_module_path(last), _module_path(following)),
    )


def _stage(
    nodes: Sequence[fx.Node],
    costs: dict[fx.Node, NodeCost],
    states: dict[int, dict[str, torch.Tensor]],
    model: nn.Module,
) -> Stage:
    shape = costs[nodes[-1]].shape or ()
    state = {key: value for node in nodes for key, value in states[id(node)].items()}
    return Stage(
        name=_stage_name([_module_path(node) for node in nodes if states[id(node)]], set(state), model),
        num_parameters=sum(value.numel() for value in state.values() if isinstance(value, nn.Parameter)),
        flops=sum(costs[node].flops for node in nodes),
        output_shape=shape,
        output_bytes=_BYTES_PER_VALUE * math.prod(shape),
    )


def _stage_name(paths: Sequence[tuple[str, ...]], keys: set[str], model: nn.Module) -> str:
    """Its first and its last module, each as the largest one that lies within the stage."""
    names = []
    for path in (paths[0], paths[-1]):
        wholes = (".".join(path[:length]) for length in range(1, len(path) + 1))
        names.append(next((name for name in wholes if _lies_within(name, keys, model)), ".".join(path)))
    first, last = names
    return first if first == last else f"{first}..{last}"


def _lies_within(name: str, keys: set[str], model: nn.Module) -> bool:
    return all(key in keys for key in model.state_dict(keep_vars=True) if key.startswith(f"{name}."))


def _module_path(node: fx.Node) -> tuple[str, ...]:
    """Names of the modules that a node lies in, outermost first, a called module itself included."""
    if node.op in ("call_module", "get_attr"):
        return tuple(str(node.target).split("."))
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    name = next(reversed(stack.values()))[0]
    return tuple(part for part in name.split(".") if part)


def _shared_depth(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _has_weights(states: Iterable[dict[str, torch.Tensor]]) -> bool:
    """Whether any parameter is a matrix or a kernel rather than a vector per channel."""
    return any(isinstance(v, nn.Parameter) and v.dim() > 1 and _is_matrix(v) for s in states for v in s.values())


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Not so for ConvNeXt's scale per channel, which has three dimensions of which two are 1."""
    return sum(size > 1 for size in parameter.shape) > 1
