"""From a trial's delta checkpoint back to the whole network that it trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.config import TrialConfig

if TYPE_CHECKING:
    from torch import nn


def whole_network(config: TrialConfig, checkpoint_uri: str) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """The whole trained network from a delta checkpoint, in eval mode, with the mean and std of its pictures.

    Raises:
        CheckpointError: The checkpoint is damaged, or stands on other weights.
    """
    from trainables.backbones.zoo import load_backbone
    from trainables.training.checkpoint import load_checkpoint
    from trainables.training.trained_part import split_network

    backbone = load_backbone(
        config.backbone.name,
        config.backbone.weights,
        num_classes=len(config.data.class_names),
        input_size_px=config.data.image_size_px,
        seed=config.seed,
        head=config.head,
    )
    delta = load_checkpoint(checkpoint_uri).tail_for(split_network(backbone, config.freeze_depth).prefix_hash)
    _, whole = backbone.graph.split(0)
    whole.load_state_dict({**backbone.model.state_dict(), **delta}, strict=True)
    return whole.eval(), backbone.mean, backbone.std
