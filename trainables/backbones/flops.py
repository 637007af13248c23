"""What each node of a traced network costs on one picture: FLOPs and the shape of its result.

In: an fx graph and its modules on the meta device. Out: a ``NodeCost`` per node. Nothing is computed: meta tensors
carry shapes only, so the largest network takes a fraction of a second and no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

# Two, so that a tensor that still has its batch dimension in front can be told from one that has lost it.
_NUM_PICTURES = 2


@dataclass(frozen=True)
class NodeCost:
    """The cost of one node.

    Attributes:
        flops: Forward FLOPs for one picture; a multiplication and an addition are two. As in
            ``torch.utils.flop_counter``, only convolutions and matrix products count.
        shape: Of the result without the batch dimension; None where the result is not a batch of numbers.
    """

    flops: int
    shape: tuple[int, ...] | None


def measure(graph: fx.Graph, modules: nn.Module, input_size_px: int) -> dict[fx.Node, NodeCost]:
    """Costs of all nodes of ``graph`` for square pictures of side ``input_size_px``.

    Args:
        graph: A traced network with one input.
        modules: Holds the graph's targets, in eval mode, on the meta device.
        input_size_px: Side of the picture.

    Raises:
        RuntimeError: The picture is too small for the network.
    """
    pictures = torch.empty(_NUM_PICTURES, 3, input_size_px, input_size_px, device="meta")
    meter = _Meter(modules, graph)
    with torch.no_grad(), meter.counter:
        meter.run(pictures)
    return meter.costs


class _Meter(fx.Interpreter):
    """Runs a graph node by node and reads the FLOP counter in between."""

    def __init__(self, modules: nn.Module, graph: fx.Graph) -> None:
        super().__init__(modules, graph=graph)
        self.extra_traceback = False  # an input too small is an answer, not a crash: keep its message one line
        self.counter = FlopCounterMode(display=False)
        self.costs: dict[fx.Node, NodeCost] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        value = super().run_node(n)
        flops = (self.counter.get_total_flops() - before) // _NUM_PICTURES
        is_batch = isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == _NUM_PICTURES
        self.costs[n] = NodeCost(flops, tuple(value.shape[1:]) if is_batch else None)
        return value
