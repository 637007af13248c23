"""Which settings of a trial may change while it trains, as a population changes them, and what values they may take.

In: the space. Out: their values by field. They are those that neither the trained tensors nor the optimizer's state
depend on: depth, network, optimizer and head stay those of the weights, and so do batches and the schedule, whose
steps go on, and the policy of augmentation, on which other fields depend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.dimension import Dimension

if TYPE_CHECKING:
    from search_spaces.space import SearchSpace

PERTURBED = (
    "lr",
    "backbone_lr_ratio",
    "layer_decay",
    "weight_decay",
    "grad_clip_norm",
    "magnitude",
    "label_smoothing",
    "mixup_alpha",
    "cutmix_alpha",
)


def perturbed_dimensions(space: SearchSpace) -> dict[str, Dimension]:
    """The values of the settings that change, without those that have only one."""
    alone = space.alone(space.backbones[0])  # they are the same for every network
    dimensions = {name: alone.dimension(name) for name in PERTURBED}
    return {name: dimension for name, dimension in dimensions.items() if not dimension.is_fixed}


def trains_heads_alone(space: SearchSpace) -> bool:
    """Whether every trial of the space trains the head and nothing else."""
    return all((alone := space.alone(name)).depths == (alone.num_stages,) for name in space.backbones)
