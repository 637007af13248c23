"""What augmentation means here: a view is a pure function of a picture, a policy and a number.

In: uint8 pixels of any size, and an `AugmentationConfig`. Out: uint8 pixels of one size, in channels-last memory and
never shared with the input. Chance comes from a counter-based generator keyed by content, so a view is the same in
every process and order, and torch's random state is neither read nor moved.

Axes: C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from trainables.config import AugmentationConfig

CROP_AREA = (0.5, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
NUM_OPERATIONS = 2
MAGNITUDE_STEPS = 30

_PER_ATTEMPT = 4
_NUM_DRAWS = CROP_ATTEMPTS * _PER_ATTEMPT + 1 + 2 * NUM_OPERATIONS


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def view_index(policy: AugmentationConfig, epoch: int) -> int:
    """The number of the view that an epoch (from 0) trains on.

    Raises:
        ValueError: The policy has no view at all.
    """
    if policy.policy == "none":
        return 0
    if policy.num_views == "unlimited":
        return epoch
    if policy.num_views < 1:
        raise ValueError(f"num_views: {policy.num_views}: give at least 1, or 'unlimited'")
    return epoch % policy.num_views


def eval_view(image_CHW: torch.Tensor, size_px: int) -> torch.Tensor:
    """The picture as evaluation sees it: its middle square, resized (bilinear, antialiased) to [3, size_px, size_px].

    Cutting first costs less than resizing first and then cutting, and as much for a panorama as for a square.
    """
    _, height, width = image_CHW.shape
    side = min(height, width)
    return _resized(image_CHW, Box((height - side) // 2, (width - side) // 2, side, side), size_px)


def view(image_CHW: torch.Tensor, policy: AugmentationConfig, image_id: str, index: int, size_px: int) -> torch.Tensor:
    """One view of a picture.

    `none`: `eval_view`. `flip`: the same, mirrored or not. `flip_crop`: a part of the picture (half to all of its
    area, 3:4 to 4:3), mirrored or not; Szegedy et al. 2014, arXiv 1409.4842, section 6, with a milder crop.
    `randaugment`: the last, then two operations of one magnitude; Cubuk et al. 2019, arXiv 1909.13719, with
    torchvision's operations.

    Args:
        image_CHW: uint8 [3, H, W].
        policy: Which family of views. The magnitude counts for `randaugment` only.
        image_id: The picture's content id.
        index: The number of the view.
        size_px: Side of the result.

    Returns:
        uint8 [3, size_px, size_px], in channels-last memory of its own.
    """
    if policy.policy == "none":
        return eval_view(image_CHW, size_px)
    draws = _draws(policy, image_id, index)
    mirrored = draws[CROP_ATTEMPTS * _PER_ATTEMPT] < 0.5  # noqa: PLR2004
    if policy.policy == "flip":
        seen = eval_view(image_CHW, size_px)
    else:
        seen = _resized(image_CHW, crop_box(image_CHW.shape[1], image_CHW.shape[2], draws), size_px)
    if mirrored:
        seen = seen.flip(-1)
    if policy.policy == "randaugment":
        for number in range(NUM_OPERATIONS):
            choice, sign = draws[CROP_ATTEMPTS * _PER_ATTEMPT + 1 + 2 * number :][:2]
            name = OPERATION_NAMES[int(choice * len(OPERATION_NAMES))]
            seen = apply_operation(seen, name, policy.magnitude, negative=sign < 0.5)  # noqa: PLR2004
    return seen.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _draws(policy: AugmentationConfig, image_id: str, index: int) -> list[float]:
    """Uniform numbers in [0, 1), always as many, so that what one of them decides never shifts the others."""
    magnitude = policy.magnitude if policy.policy == "randaugment" else 0
    text = f"{policy.seed} {policy.policy} {magnitude} {image_id} {index}"
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    # The raw stream: NumPy promises that it stays the same, and does not for what is made of it.
    raw = np.random.Philox(key=key).random_raw(_NUM_DRAWS)
    return ((raw >> 11) * 2.0**-53).tolist()


def crop_box(height: int, width: int, draws: list[float]) -> Box:
    """Torchvision's rule for a random resized crop, on given draws: the first part that fits, else the middle."""
    low, high = math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])
    for attempt in range(CROP_ATTEMPTS):
        area, aspect, down, right = draws[attempt * _PER_ATTEMPT :][:_PER_ATTEMPT]
        target = height * width * (CROP_AREA[0] + area * (CROP_AREA[1] - CROP_AREA[0]))
        ratio = math.exp(low + aspect * (high - low))
        box_width, box_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(down * (height - box_height + 1)), int(right * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_width = min(width, round(height * CROP_ASPECT[1]))
    box_height = min(height, round(width / CROP_ASPECT[0]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def _resized(image_CHW: torch.Tensor, box: Box, size_px: int) -> torch.Tensor:
    part = image_CHW[:, box.top : box.top + box.height, box.left : box.left + box.width]
    # A part of a channels-last picture is contiguous in no layout, and then torch would answer in the other one.
    part = part.permute(1, 2, 0).clone(memory_format=torch.contiguous_format).permute(2, 0, 1)
    return F.resize_image(part, [size_px, size_px], antialias=True)


def _shear(image: torch.Tensor, horizontal: float, vertical: float) -> torch.Tensor:
    shear = [math.degrees(math.atan(horizontal)), math.degrees(math.atan(vertical))]
    return F.affine_image(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])


def _translate(image: torch.Tensor, right: float, down: float) -> torch.Tensor:
    return F.affine_image(image, angle=0.0, translate=[int(right), int(down)], scale=1.0, shear=[0.0, 0.0])


def _contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """`adjust_contrast_image`, but with an exact mean: torch's depends on the number of threads above 256 px."""
    grey = F.rgb_to_grayscale_image(image)
    mean = int(grey.sum(dtype=torch.int64)) / grey.numel()
    return image.mul(factor).add_((1.0 - factor) * mean).clamp_(0, 255).to(torch.uint8)


# Per operation: what it does with a signed strength, the strength at full magnitude, and whether it has a sign. As
# torchvision's `RandAugment` with 31 bins; posterize and solarize count downwards.
_OPERATIONS: dict[str, tuple[Callable[[torch.Tensor, float], torch.Tensor], float, bool]] = {
    "Identity": (lambda image, _: image, 0.0, False),
    "ShearX": (lambda image, strength: _shear(image, strength, 0.0), 0.3, True),
    "ShearY": (lambda image, strength: _shear(image, 0.0, strength), 0.3, True),
    "TranslateX": (lambda image, strength: _translate(image, strength * image.shape[-1], 0.0), 150 / 331, True),
    "TranslateY": (lambda image, strength: _translate(image, 0.0, strength * image.shape[-2]), 150 / 331, True),
    "Rotate": (F.rotate_image, 30.0, True),
    "Brightness": (lambda image, strength: F.adjust_brightness_image(image, 1.0 + strength), 0.9, True),
    "Color": (lambda image, strength: F.adjust_saturation_image(image, 1.0 + strength), 0.9, True),
    "Contrast": (lambda image, strength: _contrast(image, 1.0 + strength), 0.9, True),
    "Sharpness": (lambda image, strength: F.adjust_sharpness_image(image, 1.0 + strength), 0.9, True),
    "Posterize": (lambda image, strength: F.posterize_image(image, 8 - round(strength)), 4.0, False),
    "Solarize": (lambda image, strength: F.solarize_image(image, 255.0 * (1.0 - strength)), 1.0, False),
    "AutoContrast": (lambda image, _: F.autocontrast_image(image), 0.0, False),
    "Equalize": (lambda image, _: F.equalize_image(image), 0.0, False),
}
OPERATION_NAMES = tuple(_OPERATIONS)


def apply_operation(image_CHW: torch.Tensor, name: str, magnitude: int, *, negative: bool) -> torch.Tensor:
    """One of RandAugment's operations at `magnitude` thirtieths of its full strength.

    Args:
        image_CHW: uint8 [3, H, W]; not written to.
        name: One of `OPERATION_NAMES`.
        magnitude: 0 to 30.
        negative: Turns the other way, darkens instead of brightening; no meaning for operations without a sign.
    """
    operation, full_strength, is_signed = _OPERATIONS[name]
    strength = full_strength * magnitude / MAGNITUDE_STEPS
    return operation(image_CHW, -strength if negative and is_signed else strength)
