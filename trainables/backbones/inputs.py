"""What pretrained weights expect of pictures, as far as their file says it: normalisation, its range, size, channels.

In: tensors and the metadata beside them. Out: tensors that read red, green and blue, the normalisation of pictures in
[0, 1], and a sentence for each thing that was found or adapted. What cannot be adapted is refused. Pure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainables.errors import InputError

Channels = tuple[float, float, float]
"""A number for red, green and blue."""

_CONFIGS = ("pretrained_cfg", "default_cfg")  # as timm writes them, into the checkpoint or as JSON into the metadata
_MEANS, _STDS, _SIZES = ("mean", "image_mean"), ("std", "image_std"), ("input_size", "image_size", "img_size")
_RGB = 3
_LARGEST_BYTE = 255.0


@dataclass(frozen=True)
class StatedInput:
    """What a file says of the pictures that its weights were trained on.

    Attributes:
        mean: Of pictures in [0, 1], by channel; None where nothing is said.
        std: Likewise.
        remarks: What was found and adapted, in sentences for people.
    """

    mean: Channels | None = None
    std: Channels | None = None
    remarks: tuple[str, ...] = ()


def read_stated(metadata: Mapping[str, Any], place: str) -> StatedInput:
    """Reads the metadata beside a state dict.

    Args:
        metadata: A safetensors file's texts, or what stands beside ``state_dict`` in a checkpoint.
        place: How error messages name the file.

    Raises:
        InputError: Mean and standard deviation are stated and cannot be those of pictures.
    """
    telling = (*_CONFIGS, *_MEANS, *_STDS, *_SIZES)  # and nothing else: a checkpoint may hold much beside
    known = {key: _parsed(metadata[key]) for key in telling if key in metadata}
    for name in _CONFIGS:
        if isinstance(known.get(name), Mapping):
            known = {**known[name], **known}
    remarks = list(_remarks_on_size(known))
    mean, std = (_first(known, names) for names in (_MEANS, _STDS))
    if mean is None or std is None:
        return StatedInput(remarks=tuple(remarks))
    mean_of_each, std_of_each = _channels(mean), _channels(std)
    found = None if mean_of_each is None or std_of_each is None else _in_unit_range(mean_of_each, std_of_each)
    if found is None:
        raise InputError(
            f"{place} states the mean {mean!r} and the std {std!r}, which no pictures of three channels from 0 to 1, "
            "or from 0 to 255, have; state those that it was trained with, or leave both out"
        )
    if found != (mean_of_each, std_of_each):
        remarks.append("its mean and std are those of pixels from 0 to 255: divided by 255")
    remarks.append(f"pictures are normalised as its file says: mean {_spelt(found[0])}, std {_spelt(found[1])}")
    return StatedInput(*found, tuple(remarks))


def read_rgb(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], place: str
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors, those of a network for grey pictures made to read the mean of red, green and blue.

    Of a grey picture that is the same number, so the network computes what it computed.

    Args:
        state: Tensors by name.
        expected: What the network has; the first convolution is the one that reads three channels.
        place: How error messages name the file.

    Returns:
        The tensors, and what was adapted.

    Raises:
        InputError: The first convolution reads another number of channels than one or three.
    """
    tensors = dict(state)
    remarks = []
    for key, pattern in expected.items():
        given = state.get(key)
        if given is None or pattern.ndim != 4 or pattern.shape[1] != _RGB or given.ndim != 4:  # noqa: PLR2004
            continue
        is_else_alike = given.shape[0] == pattern.shape[0] and given.shape[2:] == pattern.shape[2:]
        if not is_else_alike or given.shape[1] == _RGB:
            continue
        if given.shape[1] != 1:
            raise InputError(
                f"{place} was trained on pictures of {given.shape[1]} channels ({key}), and pictures here have red, "
                "green and blue; take weights that were trained on RGB or grey pictures"
            )
        tensors[key] = given.repeat(1, _RGB, 1, 1) / _RGB
        remarks.append("it was trained on grey pictures: it reads the mean of red, green and blue")
    return tensors, tuple(remarks)


def _parsed(value: Any) -> Any:
    """What a text of a safetensors file means; everything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _first(known: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((known[name] for name in names if known.get(name) is not None), None)


def _channels(value: Any) -> Channels | None:
    """A number, a list of one, or a list of three, for each channel; None where it is none of these."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) not in (1, _RGB) or not all(_is_number(each) for each in values):
        return None
    red, green, blue = (float(each) for each in (values * _RGB if len(values) == 1 else values))
    return red, green, blue


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _in_unit_range(mean: Channels, std: Channels) -> tuple[Channels, Channels] | None:
    """Mean and standard deviation of pictures in [0, 1]; None where pictures cannot have such."""
    if min(std) <= 0 or min(mean) < 0:
        return None
    if max(*mean, *std) <= 1:
        return mean, std
    red, green, blue = (each / _LARGEST_BYTE for each in mean)
    other = tuple(each / _LARGEST_BYTE for each in std)
    return ((red, green, blue), (other[0], other[1], other[2])) if max(red, green, blue, *other) <= 1 else None


def _remarks_on_size(known: Mapping[str, Any]) -> Iterator[str]:
    size = _first(known, _SIZES)
    side = size[-1] if isinstance(size, (list, tuple)) and size else size
    if isinstance(side, int) and not isinstance(side, bool) and side > 1:
        yield f"it was trained on pictures of {side} px"


def _spelt(values: Channels) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
