"""Mixup and CutMix of what enters the trained part of a network.

In: a batch of pictures, or of features behind frozen stages. Out: the same batch with each row mixed with another row
of the global batch, and both labels. Pictures are mixed behind the frozen part and not in front of it: at
``freeze_depth`` 0 that is mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019), behind frozen stages manifold mixup
(Verma et al. 2019) at one fixed layer. Mixed in front, no picture would ever be seen twice and nothing could be stored.

What is drawn depends on (seed, epoch, step) and the size of the global batch alone: not on how many ranks there are, or
on whether the trial was interrupted.

Axes: B rows of this rank, C channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from trainables.config import TrialConfig
from trainables.data.batches import Batch
from trainables.ranks import Ranks

_MAP_AXES = 4


class MixedBatch(NamedTuple):
    """A rank's part of a global batch after mixing.

    Attributes:
        inputs: Mixed rows [B, ...].
        labels_B: Of the pictures that the rows were.
        partner_labels_B: Of those that they were mixed with.
        share: How much of each row is still its own picture.
    """

    inputs: torch.Tensor
    labels_B: torch.Tensor
    partner_labels_B: torch.Tensor
    share: float


@dataclass(frozen=True)
class MixPlan:
    """How one global batch is mixed.

    Attributes:
        partners: Of each row of the global batch, the row it is mixed with.
        share: How much of each row stays.
        box: What CutMix takes from the partner, as (top, bottom, left, right); None for mixup.
    """

    partners: np.ndarray
    share: float
    box: tuple[int, int, int, int] | None = None


def plan_mixing(
    config: TrialConfig, epoch: int, step: int, num_rows: int, size: tuple[int, int] | None
) -> MixPlan | None:
    """Draws how a batch is mixed; None where the trial mixes nothing.

    One share and one box for the whole batch, as in the authors' own code. With both kinds on, each batch gets one of
    them, as likely the one as the other (as in timm).

    Args:
        config: The trial's.
        epoch: From 0.
        step: Number of the batch in its epoch.
        num_rows: Of the global batch.
        size: Height and width of the maps; None for vectors, of which no part can be cut out: these are mixed up.
    """
    alphas = (config.mixup_alpha, config.cutmix_alpha)
    if alphas == (0, 0):
        return None
    # The epoch's order comes from the same key, with the counter's highest word 0: never the same numbers.
    generator = np.random.Generator(np.random.Philox(key=[config.seed, epoch], counter=[0, 0, 0, step + 1]))
    is_cutmix = bool(generator.random() < 0.5) if all(alphas) else alphas[1] > 0  # noqa: PLR2004
    alpha = alphas[is_cutmix]
    share = float(generator.beta(alpha, alpha))
    partners = generator.permutation(num_rows)
    if not is_cutmix or size is None or size == (1, 1):
        return MixPlan(partners, share)
    box = _draw_box(generator, share, *size)
    top, bottom, left, right = box
    # Yun et al., section 3.1: labels follow the area that was really taken; on small maps the two differ much.
    return MixPlan(partners, 1 - (bottom - top) * (right - left) / (size[0] * size[1]), box)


def _draw_box(generator: np.random.Generator, share: float, height: int, width: int) -> tuple[int, int, int, int]:
    """A box of ``1 - share`` of the area around a point of the map, cut off at its edges.

    Sides are rounded, not cut down to whole numbers as in the authors' code, because maps at a cut are small.
    """
    sides = (round(length * math.sqrt(1 - share)) for length in (height, width))
    edges: list[int] = []
    for length, side in zip((height, width), sides, strict=True):
        first = int(generator.integers(length)) - side // 2
        edges += [max(first, 0), min(first + side, length)]
    return edges[0], edges[1], edges[2], edges[3]


class Mixer:
    """Mixes a trial's batches.

    Args:
        config: The trial's.
        ranks: This process among the workers; the partner of a row may be on another.
    """

    def __init__(self, config: TrialConfig, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks

    def mixed(self, batch: Batch, epoch: int, step: int, num_rows: int) -> MixedBatch | None:
        """The batch after mixing; None where the trial mixes nothing. Every rank must call this.

        Args:
            batch: This rank's part, which stays as it is.
            epoch: From 0.
            step: Number of the batch in its epoch.
            num_rows: Of the global batch.
        """
        inputs = batch.inputs
        size = (inputs.shape[2], inputs.shape[3]) if inputs.dim() == _MAP_AXES else None
        plan = plan_mixing(self._config, epoch, step, num_rows, size)
        if plan is None:
            return None
        mine = torch.from_numpy(self._ranks.share(plan.partners)).to(inputs.device)
        partners = self._ranks.gather(inputs, num_rows)[mine]
        partner_labels_B = self._ranks.gather(batch.labels_B, num_rows)[mine]
        return MixedBatch(_mix(inputs, partners, plan), batch.labels_B, partner_labels_B, plan.share)


def _mix(rows: torch.Tensor, partners: torch.Tensor, plan: MixPlan) -> torch.Tensor:
    """Rows with their partners mixed in; dtype and strides stay, because layers choose their kernels by them."""
    mixed = torch.empty_like(rows)
    if plan.box is None:
        # In bf16 the two shares of a row would be rounded one by one.
        as_float = torch.promote_types(rows.dtype, torch.float32)
        return mixed.copy_(torch.lerp(partners.to(as_float), rows.to(as_float), plan.share))
    top, bottom, left, right = plan.box
    mixed.copy_(rows)
    mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return mixed
