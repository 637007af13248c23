"""The moving average of a trial's weights, which is judged and kept in their place.

In: the trained part, after each step of its optimizer. Out: averages of its parameters and of BatchNorm's statistics.
The raw weights go on training; they are out of place only while `WeightAverage.in_place` lasts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of what a module holds (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).

    BatchNorm's running statistics are averaged like the parameters, as `torch.optim.swa_utils.AveragedModel` does with
    ``use_buffers``: statistics of the raw weights do not fit averaged ones, and to measure them anew would take a pass
    over the pictures per epoch. Whole numbers, such as BatchNorm's count of batches, are copied.

    Args:
        module: What trains; the average begins with what it holds now.
        decay: Share of the average that a step leaves in place, once there were many steps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        # `state_dict` hands out the tensors themselves, which optimizer and BatchNorm change in place.
        self._live: dict[str, torch.Tensor] = dict(module.state_dict())
        self._averages = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after a step into the average.

        The decay of step t is min(decay, (1 + t) / (10 + t)), as in TensorFlow's ``ExponentialMovingAverage``: a trial
        may have fewer steps than ``1 / (1 - decay)``, and its average would be mostly what it started from.

        Args:
            step: How many steps of the optimizer there were before this one.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        moving = [name for name, tensor in self._live.items() if tensor.is_floating_point()]
        take_in = get_ema_multi_avg_fn(decay)
        take_in([self._averages[name] for name in moving], [self._live[name] for name in moving], step)
        for name in self._live.keys() - set(moving):
            self._averages[name].copy_(self._live[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts the module holds the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            raw = live.clone()
            live.copy_(self._averages[name])
            self._averages[name].copy_(raw)

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The averages by the module's names; they change with the next step."""
        return self._averages

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Goes on from averages that `tensors` gave."""
        for name, average in self._averages.items():
            average.copy_(tensors[name])
