"""The frozen stages of a network as they run: without gradient, and in one form of batch and of result.

In: normalised images, or features of a cut. Out: features of deeper cuts. The prefix always runs in batches of one
canonical size, the last one padded, so that a picture's features are the same bits whatever stands beside it.

Axes: B pictures of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn

from trainables.config import ComputeConfig, Precision

_IMAGE_AXES = 4
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class FrozenPrefix:
    """The frozen stages of a network, run one after another in batches of one canonical size, without gradient.

    What each stage hands on has the prefix's precision and one memory layout: the form in which it is stored. So a
    deeper cut has the same bits whether it is computed from pictures or from the stored features of a cut before it.

    Args:
        stages: The leading stages in order, see ``CutGraph.stage_modules``; in eval mode from here on.
        compute: Precision of the prefix and its canonical batch size.
        beat: Called for each batch, as a sign of life.
    """

    def __init__(
        self, stages: Sequence[nn.Module], compute: ComputeConfig, beat: Callable[[], object] = lambda: None
    ) -> None:
        self._beat = beat
        self._stages = tuple(stage.eval() for stage in stages)
        self.batch_size = compute.prefix_batch_size
        self._dtype = DTYPES[compute.prefix_precision]
        self._layout = memory_format(compute)

    @property
    def depth(self) -> int:
        """Number of stages."""
        return len(self._stages)

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Features [B, ...] of the deepest cut, of at most ``batch_size`` normalised images."""
        return self.between(images_BCHW, 0, (self.depth,))[self.depth]

    @torch.no_grad()
    def between(self, inputs: torch.Tensor, start: int, cuts: Collection[int]) -> dict[int, torch.Tensor]:
        """The features of some cuts, computed from those of a cut before them.

        Args:
            inputs: At most ``batch_size`` rows: features of cut ``start``, or normalised images where it is 0.
            start: Number of stages that ``inputs`` have been through.
            cuts: Behind which stages features are wanted; each is more than ``start``.

        Returns:
            Features [B, ...] by cut, ascending.

        Raises:
            ValueError: A cut that is not behind ``start``, or more rows than a canonical batch has.
        """
        self._beat()
        wanted = sorted(set(cuts))
        if wanted and not 0 <= start < wanted[0] <= wanted[-1] <= self.depth:
            raise ValueError(f"cuts {wanted} from cut {start} of {self.depth} stages")
        found: dict[int, torch.Tensor] = {}
        features, num_rows = self._padded(inputs), len(inputs)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            for cut in range(start + 1, wanted[-1] + 1 if wanted else 0):
                features = laid_out(self._stages[cut - 1](features).to(self._dtype), self._layout)
                if cut in wanted:
                    found[cut] = features[:num_rows]
        return found

    def _padded(self, inputs: torch.Tensor) -> torch.Tensor:
        """A canonical batch; the rows that are missing are zeros."""
        num_rows = len(inputs)
        if num_rows > self.batch_size:
            raise ValueError(f"{num_rows} rows for a canonical batch of {self.batch_size}")
        if num_rows < self.batch_size:
            whole = inputs.new_zeros(self.batch_size, *inputs.shape[1:])
            # Laid out first: a batch's layout must not depend on how many of its rows are padding.
            whole = laid_out(whole, self._layout)
            whole[:num_rows] = inputs
            return whole
        return laid_out(inputs, self._layout)


def laid_out(features: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """The same numbers [B, ...] as they lie when they come from the store: maps in ``layout``, all else row by row.

    The strides are set even where a dimension of size 1 leaves them open: layers choose their kernels by them.
    """
    if features.dim() == _IMAGE_AXES and layout == torch.channels_last:
        _, channels, height, width = features.shape
        as_maps = (height * width * channels, 1, width * channels, channels)
        return features.contiguous(memory_format=layout).as_strided(features.shape, as_maps)
    strides = tuple(math.prod(features.shape[axis + 1 :]) for axis in range(features.dim()))
    return features.contiguous().as_strided(features.shape, strides)


def memory_format(compute: ComputeConfig) -> torch.memory_format:
    """How images and the weights of convolutions lie in memory."""
    return torch.channels_last if compute.channels_last else torch.contiguous_format
