"""Ways around kernels that are slow, or do not repeat themselves: the same layers, parameters and names untouched."""

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


class RepeatableAvgPool2d(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling by two products of matrices, whose gradients have one order of summation."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Averages [..., H, W] over the areas that ``nn.AdaptiveAvgPool2d`` takes, in at least float32."""
        height, width = inputs.shape[-2:]
        wanted = self.output_size if isinstance(self.output_size, tuple) else (self.output_size, self.output_size)
        num_rows, num_columns = (
            size if size is not None else given for size, given in zip(wanted, (height, width), strict=True)
        )
        if (num_rows, num_columns) == (height, width):
            return inputs
        with torch.autocast(inputs.device.type, enabled=False):
            values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
            shares_RH, shares_CW = _shares(height, num_rows, values), _shares(width, num_columns, values)
            return (shares_RH @ values @ shares_CW.T).to(inputs.dtype)


def _shares(length: int, num_areas: int, like: torch.Tensor) -> torch.Tensor:
    """What each of ``length`` places counts in the mean of each area [num_areas, length]; areas may overlap."""
    areas, places = torch.arange(num_areas, device=like.device), torch.arange(length, device=like.device)
    firsts, ends = areas * length // num_areas, -(-(areas + 1) * length // num_areas)
    is_in = (places >= firsts[:, None]) & (places < ends[:, None])
    return is_in.to(like.dtype) / (ends - firsts)[:, None].to(like.dtype)


def choose_kernels(tail: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """``tail`` with the layers changed whose kernels on a device are much slower than others, or do not repeat.

    On a CPU, layers whose bf16 gradients it computes by a reference kernel are set to float32. oneDNN has fast bf16
    gradients for depthwise convolutions of 3 x 3 in steps of one. Measured on a processor with AMX, with strides or
    larger kernels bf16 takes 1.2 to 25 times as long as float32; of a training step of mobilenet_v2 at 128 px four
    strided layers took 40%.

    On a GPU, gradients of adaptive pooling to more than one place are summed up in any order. Pooling to one place is a
    mean, which repeats itself.
    """
    for module in tail.modules():
        # Another class adds a method, no state: hooks, parameters and names stay.
        if device.type == "cuda" and type(module) is nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1)):
            module.__class__ = RepeatableAvgPool2d
        if device.type == "cpu" and precision == "bf16" and type(module) is nn.Conv2d and _is_slow_in_bf16(module):
            module.__class__ = Float32Conv2d
    return tail


def _is_slow_in_bf16(convolution: nn.Conv2d) -> bool:
    is_depthwise = convolution.groups == convolution.in_channels > 1
    return is_depthwise and (max(convolution.stride) > 1 or max(convolution.kernel_size) > _LARGEST_FAST_KERNEL_PX)
