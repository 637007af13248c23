"""A network for pictures the size of a digit: trains in seconds on one core.

In: RGB pictures of 8 to 64 px. Out: logits. In the spirit of LeNet-5 (LeCun et al. 1998), with today's parts.
"""

from __future__ import annotations

import torch
from torch import nn


class LeNet(nn.Module):
    """Three blocks of convolution, BatchNorm, ReLU and pooling, one hidden layer, one head.

    Args:
        num_classes: Number of logits.
        width: Channels of the first block; each further block has twice as many.
        dropout: Probability in front of the head.
    """

    def __init__(self, num_classes: int = 10, *, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        self.block1 = _block(3, width)
        self.block2 = _block(width, 2 * width)
        self.block3 = _block(2 * width, 4 * width)
        # 2 x 2 is what 16 px leave: coarse places survive, and any picture size fits the hidden layer.
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(16 * width, 8 * width)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes] of normalised images [B, 3, H, W]."""
        features = self.pool(self.block3(self.block2(self.block1(images_BCHW))))
        hidden_BD = self.relu(self.hidden(torch.flatten(features, 1)))
        logits_BK: torch.Tensor = self.head(self.dropout(hidden_BD))
        return logits_BK


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
