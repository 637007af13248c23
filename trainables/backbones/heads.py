"""The last layer of a network, which every trial trains anew: linear, with a hidden layer, or by angles.

In: a kind, a width, a number of classes and a seed. Out: a module in the place of the network's own last layer, whose
numbers come from a generator of its own, so that nothing else of a trial changes with the kind.

Axes: B pictures, D features, H hidden, K classes.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import nn

from trainables.config import MOST_HIDDEN, HeadKind

FIRST_SCALE = 10.0
"""Of a cosine head's logits, as Gidaris & Komodakis start it."""


class MlpHead(nn.Module):
    """One hidden layer with ReLU between the features and the classes.

    Args:
        in_features: D.
        out_features: K.
        device: Where its tensors are made.
    """

    def __init__(self, in_features: int, out_features: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        width = min(in_features, MOST_HIDDEN)
        self.hidden = nn.Linear(in_features, width, device=device)
        self.output = nn.Linear(width, out_features, device=device)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Logits [B, K]."""
        logits_BK: torch.Tensor = self.output(F.relu(self.hidden(features_BD)))
        return logits_BK


class CosineHead(nn.Module):
    """Cosines between the features and one direction per class, times a learnt scale.

    From Gidaris & Komodakis (CVPR 2018, section 3.2) and Chen et al. (ICLR 2019, "Baseline++"): the length of a
    feature says nothing of its class, which helps where pictures are few. What is learnt is the scale's logarithm: it
    stays above 0, and a step changes it by a share of itself, whatever its size.

    Args:
        in_features: D.
        out_features: K.
        device: Where its tensors are made.
    """

    def __init__(self, in_features: int, out_features: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device))
        # One value with an axis: type promotion then gives float32 under bf16 autocast.
        self.log_scale = nn.Parameter(torch.full((1,), math.log(FIRST_SCALE), device=device))

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Logits [B, K]."""
        directions_KD = F.normalize(self.weight, dim=1)
        return F.linear(F.normalize(features_BD, dim=1), directions_KD) * self.log_scale.exp()


def fresh_head(kind: HeadKind, in_features: int, num_classes: int, seed: int) -> nn.Module:
    """A head whose layers are initialised as PyTorch does a linear one, from a generator of its own."""
    generator = torch.Generator().manual_seed(part_seed(seed, "head"))
    if kind == "cosine":
        cosine = CosineHead(in_features, num_classes)
        _draw(cosine.weight, in_features, generator)
        return cosine
    if kind == "mlp":
        mlp = nn.utils.skip_init(MlpHead, in_features, num_classes)
        for layer in (mlp.hidden, mlp.output):
            _draw(layer.weight, layer.in_features, generator)
            _draw(layer.bias, layer.in_features, generator)
        return mlp
    head: nn.Linear = nn.utils.skip_init(nn.Linear, in_features, num_classes)
    _draw(head.weight, in_features, generator)
    _draw(head.bias, in_features, generator)
    return head


def _draw(tensor: torch.Tensor, in_features: int, generator: torch.Generator) -> None:
    if tensor.dim() > 1:
        nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
    else:
        bound = 1 / math.sqrt(in_features)
        nn.init.uniform_(tensor, -bound, bound, generator=generator)


def head_flops(kind: HeadKind, in_features: int, num_classes: int) -> int:
    """Forward FLOPs of a head for one picture: two for each number of its matrices."""
    if kind != "mlp":
        return 2 * in_features * num_classes
    return 2 * min(in_features, MOST_HIDDEN) * (in_features + num_classes)


def part_seed(seed: int, part: str) -> int:
    """A seed per part of the network, so that head and body do not begin with the same numbers."""
    return int.from_bytes(hashlib.sha256(f"{part}:{seed}".encode()).digest()[:4])
