"""The networks Thaw knows by name: torchvision's classification CNNs, and LeNet.

In: a name. Out: an untrained model, a model without numbers, or the numbers its pictures are normalised with.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torchvision.models
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from trainables.backbones.inputs import Channels
from trainables.backbones.lenet import LeNet
from trainables.backbones.tracing import Trace, trace
from trainables.errors import InputError
from trainables.wording import shorten

# Transformers: their tokens pass a class token or shifted windows along, and "stage" and "view size" mean other things.
_TRANSFORMERS = ("vit_", "swin_", "maxvit_")
# The published weights of both expect the input rescaled inside the network; auxiliary heads would only be trained to
# be thrown away.
_INCEPTION = {"aux_logits": False, "init_weights": True, "transform_input": True}
_ARGUMENTS: dict[str, dict[str, Any]] = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}
_HALF = (0.5, 0.5, 0.5)


@functools.cache
def backbone_names() -> tuple[str, ...]:
    """All names, sorted."""
    names = torchvision.models.list_models(module=torchvision.models)
    return tuple(sorted(["lenet", *(name for name in names if not name.startswith(_TRANSFORMERS))]))


def check_name(name: str) -> None:
    """Refuses a name that is not in ``backbone_names()``.

    Raises:
        InputError: It is not; the message names the nearest ones.
    """
    if name in backbone_names():
        return
    near = difflib.get_close_matches(name.lower().replace("-", "_"), backbone_names(), n=3, cutoff=0.5)
    if name.lower().startswith(("vit", "swin", "maxvit")):
        remedy = "transformers have no stages to freeze here; take a CNN such as convnext_tiny"
    else:
        remedy = f"did you mean {' or '.join(near)}?" if near else "take one such as resnet18 or mobilenet_v2"
    raise InputError(f"model.backbone: there is no backbone {shorten(name)}; {remedy}")


def build_model(name: str) -> nn.Module:
    """An untrained model in eval mode, drawn from PyTorch's global random state; no auxiliary heads."""
    if name == "lenet":
        return LeNet().eval()
    model: nn.Module = torchvision.models.get_model(name, weights=None, **_ARGUMENTS.get(name, {}))
    return model.eval()


@functools.cache
def skeleton(name: str) -> tuple[nn.Module, Trace]:
    """The model on the meta device, its head made linear, and its trace. Shared by all callers: not to be changed."""
    with _without_storage():
        model = build_model(name)
    return model, trace(model)


@contextlib.contextmanager
def _without_storage() -> Iterator[None]:
    """Modules that this thread constructs have their parameters and buffers on the meta device.

    Not ``torch.device("meta")``: RegNet's constructor calculates its widths with tensors and needs their values.
    """
    thread = threading.get_ident()

    def parameter_on_meta(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != thread:
            return None  # leaves it as it is
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    def buffer_on_meta(_: nn.Module, __: str, buffer: torch.Tensor | None) -> torch.Tensor | None:
        return None if buffer is None or threading.get_ident() != thread else buffer.to("meta")

    handles = (
        # Annotated by PyTorch as if what they return were not used.
        register_module_parameter_registration_hook(parameter_on_meta),  # type: ignore[arg-type]
        register_module_buffer_registration_hook(buffer_on_meta),  # type: ignore[arg-type]
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def outer_normalisation(name: str, mean: Channels, std: Channels) -> tuple[Channels, Channels]:
    """With what pictures are normalised before a network, so that its first layer sees them as by ``mean``, ``std``.

    With these, but for googlenet and inception_v3, which bring ImageNet's mean and deviation to 0.5 and 0.5 inside.
    """
    if name not in _ARGUMENTS:
        return mean, std
    half = _HALF[0]
    known_mean, known_std = (np.array(values) for values in normalisation(name))
    outer_mean = np.array(mean) + np.array(std) * (known_mean - half) / half
    outer_std = np.array(std) * known_std / half
    return _three(outer_mean), _three(outer_std)


def _three(values: NDArray[np.float64]) -> Channels:
    red, green, blue = values.tolist()
    return red, green, blue


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that pictures in [0, 1] are normalised with."""
    if name == "lenet":
        return _HALF, _HALF
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return tuple(preset.mean), tuple(preset.std)
