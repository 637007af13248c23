"""What the arithmetic of prices is about: FLOPs and bytes of a backbone's stages, and how many pictures there are.

In: a backbone's stages and prepared pictures. Out: a `Material`. What trials cost is the matter of `pricing`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from search_spaces.spec import SweepSpec
from trainables.config import OTHER_HEADS, Precision
from trainables.features.layout import ITEM_BYTES

if TYPE_CHECKING:
    from trainables.backbones.graph import CutGraph
    from tuner.networks.network import Network
    from tuner.pictures.dealt import PreparedData


@dataclass(frozen=True)
class Material:
    """What the arithmetic is about.

    Attributes:
        stage_flops: Forward FLOPs of each stage, for one picture.
        head_flops: Of a linear head.
        other_heads: Of heads of other kinds.
        feature_bytes: Of each stage's result as it is stored, for one picture.
        num_train: Training pictures; with folds all that are not tested, which are validation pictures too; where each
            seed has frozen layers of its own, each of them once for every seed.
        num_val: Validation pictures, likewise.
        train_passes: How often an epoch learns from each of the former, over all folds and seeds.
        val_passes: How often it is judged on each of the latter.
    """

    stage_flops: tuple[int, ...]
    head_flops: int
    feature_bytes: tuple[int, ...]
    num_train: int
    num_val: int
    other_heads: Mapping[str, int] = field(default_factory=dict)
    train_passes: float = 1.0
    val_passes: float = 1.0

    @classmethod
    def of(
        cls,
        cuts: CutGraph,
        data: PreparedData,
        precision: Precision,
        repeats: int = 1,
        *,
        is_pretrained: bool = True,
    ) -> Material:
        """Of a backbone and prepared pictures.

        Args:
            cuts: The backbone's stages.
            data: The pictures.
            precision: Of the frozen part.
            repeats: Seeds of a trial.
            is_pretrained: Whether all seeds have the same frozen layers; random ones are drawn from each.
        """
        from trainables.backbones.heads import head_flops

        head = cuts.head
        folds, networks = data.config.folds, 1 if is_pretrained else repeats
        return cls(
            stage_flops=tuple(stage.flops for stage in cuts.stages),
            head_flops=cuts.head.flops,
            feature_bytes=tuple(math.prod(stage.output_shape) * ITEM_BYTES[precision] for stage in cuts.stages),
            num_train=networks * data.size("train"),
            num_val=networks * data.size("train" if folds else "val"),
            train_passes=repeats // networks * float(folds - 1 if folds else 1),
            val_passes=float(repeats // networks),
            other_heads={kind: head_flops(kind, head.in_features, head.num_classes) for kind in OTHER_HEADS},
        )


def materials_of(spec: SweepSpec, networks: Mapping[str, Network], data: PreparedData) -> dict[str, Material]:
    """Of each of a sweep's backbones, by name."""
    return {name: _material_of(spec, name, network, data) for name, network in networks.items()}


def _material_of(spec: SweepSpec, name: str, network: Network, data: PreparedData) -> Material:
    """Of one of a sweep's backbones."""
    precision = spec.compute_of(name).without_auto().prefix_precision
    is_pretrained = network.choice.is_pretrained
    return Material.of(network.cuts, data, precision, spec.search.repeats, is_pretrained=is_pretrained)
