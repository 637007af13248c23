"""What torchvision states of its networks' published weights: size, arithmetic, accuracy, where the file is.

In: a name. Out: a `Published`. Nothing is downloaded, built or measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch.hub
import torchvision.models

from trainables.backbones.families import backbone_names


@dataclass(frozen=True)
class Published:
    """The weights that 'default' stands for.

    Attributes:
        name: Of the network.
        family: Networks of one family share their design: `resnet50` and `resnext50_32x4d`, say.
        weights: Their name, such as ``IMAGENET1K_V2``.
        num_parameters: Of the whole network, ImageNet's head included.
        flops: Forward, for one picture of `input_px`; a multiplication and an addition count as two.
        input_px: Side of the pictures that they were judged on.
        top1: Percent of ImageNet's validation pictures told right.
        url: Where the file is.
    """

    name: str
    family: str
    weights: str
    num_parameters: int
    flops: float
    input_px: int
    top1: float
    url: str

    def gflops_at(self, size_px: int) -> float:
        """About what one picture of another size takes, forward: convolutions cost by area."""
        return self.flops / 1e9 * (size_px / self.input_px) ** 2

    @property
    def is_on_disk(self) -> bool:
        """Whether torchvision has downloaded the file before."""
        return (Path(torch.hub.get_dir()) / "checkpoints" / self.url.rpartition("/")[2]).is_file()


def published(name: str) -> Published | None:
    """What is stated of a network; None where torchvision has no weights for it."""
    if name == "lenet":
        return None
    weights = torchvision.models.get_model_weights(name).DEFAULT
    return Published(
        name=name,
        family=torchvision.models.get_model_builder(name).__module__.rpartition(".")[2],
        weights=weights.name,
        num_parameters=weights.meta["num_params"],
        flops=2e9 * weights.meta["_ops"],  # they count a multiplication and an addition as one
        input_px=weights.transforms().crop_size[0],
        top1=weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
        url=weights.url,
    )


def all_published() -> list[Published]:
    """Of every network that has weights, the most accurate first; of equal ones the smaller."""
    stated = [found for name in backbone_names() if (found := published(name)) is not None]
    return sorted(stated, key=lambda each: (-each.top1, each.num_parameters, each.name))
