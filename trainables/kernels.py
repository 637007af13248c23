"""Ways around kernels that are slow on a processor: the same layers, their parameters and names untouched."""

from __future__ import annotations

import torch
from torch import nn

from trainables.config import Precision

_LARGEST_FAST_KERNEL_PX = 3


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 under bf16 autocast, and hands on bf16 like its neighbours."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Convolves ``inputs`` [B, C, H, W]."""
        with torch.autocast(inputs.device.type, enabled=False):
            outputs: torch.Tensor = super().forward(inputs.float())
        return outputs.bfloat16()


def avoid_slow_kernels(tail: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """``tail`` with layers whose bf16 gradients a CPU computes by a reference kernel set to float32.

    oneDNN has fast bf16 gradients for depthwise convolutions of 3 x 3 in steps of one. Measured on a processor with
    AMX, with strides or larger kernels bf16 takes 1.2 to 25 times as long as float32; of a training step of
    mobilenet_v2 at 128 px four strided layers took 40%.
    """
    if device.type != "cpu" or precision != "bf16":
        return tail
    for module in tail.modules():
        if type(module) is nn.Conv2d and _is_slow_in_bf16(module):
            module.__class__ = Float32Conv2d  # adds a method, no state: hooks, parameters and names stay
    return tail


def _is_slow_in_bf16(convolution: nn.Conv2d) -> bool:
    is_depthwise = convolution.groups == convolution.in_channels > 1
    return is_depthwise and (max(convolution.stride) > 1 or max(convolution.kernel_size) > _LARGEST_FAST_KERNEL_PX)
