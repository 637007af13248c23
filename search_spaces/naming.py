"""What a sweep calls a network that it searches at several sizes: one name for each size.

Torchvision's names have no dash, so a network's own name can be told from it.
"""

from __future__ import annotations


def at_size(network: str, size_px: object) -> str:
    """``resnet18-128px``: a network at one size."""
    return f"{network}-{size_px}px"


def network_of(name: str) -> str:
    """Torchvision's name of a network, at whichever size."""
    return name.partition("-")[0]
