"""Small networks and cards that several tests save."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainables.config import SplitConfig
from tuner.models.model_file import ModelCard

CLASSES = ("ants", "bees", "wasps")


def card(**changes: Any) -> ModelCard:
    settings: dict[str, Any] = {
        "class_names": CLASSES,
        "image_size_px": 16,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.25, 0.3),
        "backbone": "tiny",
        "data_fingerprint": "f" * 64,
        "split": SplitConfig(),
    }
    return ModelCard(**(settings | changes))


def tiny_network(num_classes: int = 3, seed: int = 0) -> nn.Module:
    """Convolution, BatchNorm with statistics of its own, dropout and a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(4, num_classes),
        )
        network.train()(torch.randn(8, 3, 16, 16))
    return network.eval()
