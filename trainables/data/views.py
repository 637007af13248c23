"""What augmentation means here: a view is a pure function of a picture, a policy and a number.

In: uint8 pixels of any size, and an `AugmentationConfig`. Out: uint8 pixels of one size, in channels-last memory and
never shared with the input. Chance comes from a counter-based generator keyed by content, so a view is the same in
every process and order, and torch's random state is neither read nor moved.

Axes: C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from trainables.config import AugmentationConfig, Fit
from trainables.data.finishes import FINISHES, NUM_OPERATIONS
from trainables.data.fit import PAD_COLOUR, Box, fitted_size, middle_part

CROP_AREA = (0.5, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10

_PER_ATTEMPT = 4
_NUM_DRAWS = CROP_ATTEMPTS * _PER_ATTEMPT + 1 + 2 * NUM_OPERATIONS
_NUM_DRAWS_OF_AUGMIX = 80
_WITHOUT_CROP = ("flip", "color", "industrial")
_WITHOUT_FLIP = ("crop", "color", "industrial")


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


def eval_view(image_CHW: torch.Tensor, size_px: int, fit: Fit = "crop") -> torch.Tensor:
    """The picture as evaluation sees it, resized (bilinear, antialiased) to [3, size_px, size_px].

    `crop`: its middle square; cutting first costs less than resizing first and then cutting, and as much for a
    panorama as for a square. `squash`: all of it, whatever its shape. `pad`: all of it in its own shape, in the middle
    of `PAD_COLOUR`.
    """
    height, width = image_CHW.shape[1:]
    return _fitted(image_CHW, middle_part(height, width, fit), size_px, fit)


def view(
    image_CHW: torch.Tensor,
    policy: AugmentationConfig,
    image_id: str,
    index: int,
    size_px: int,
    fit: Fit = "crop",
) -> torch.Tensor:
    """One view of a picture.

    `none`: `eval_view`. `flip`: the same, mirrored or not. `crop`: a part of the picture (half to all of its area, 3:4
    to 4:3; Szegedy et al. 2014, arXiv 1409.4842, section 6, with a milder crop). `flip_crop`: such a part, mirrored or
    not. `color`: `eval_view` with other brightness, contrast and saturation. `industrial`: `eval_view` moved by some
    pixels (its edge repeated), with other brightness and contrast. All others start from `flip_crop`: `erasing` blanks
    a patch of half of the views (Zhong et al. 2017, arXiv 1708.04896); `randaugment` does two operations of one
    magnitude (Cubuk et al. 2019, arXiv 1909.13719); `trivialaugment` one of any magnitude (Müller and Hutter 2021,
    arXiv 2103.10158); `augmix` mixes three chains of one to three operations with the picture (Hendrycks et al. 2019,
    arXiv 1912.02781). The operations are torchvision's.

    Under the fits `squash` and `pad` a part has 3:4 to 4:3 of the picture's own shape, and gets the size that all of
    the picture would get: no view holds less of a long picture than of a square one.

    Args:
        image_CHW: uint8 [3, H, W].
        policy: Which family of views.
        image_id: The picture's content id.
        index: The number of the view.
        size_px: Side of the result.
        fit: How a picture that is no square is brought to one.

    Returns:
        uint8 [3, size_px, size_px], in channels-last memory of its own.
    """
    if policy.policy == "none":
        return eval_view(image_CHW, size_px, fit)
    draws = _draws(policy, image_id, index)
    if policy.policy in _WITHOUT_CROP:
        seen = eval_view(image_CHW, size_px, fit)
    else:
        height, width = image_CHW.shape[1:]
        seen = _fitted(image_CHW, crop_box(height, width, draws, fit), size_px, fit)
    if policy.policy not in _WITHOUT_FLIP and draws[CROP_ATTEMPTS * _PER_ATTEMPT] < 0.5:  # noqa: PLR2004
        seen = seen.flip(-1)
    if policy.policy in FINISHES:
        seen = FINISHES[policy.policy](seen, policy.magnitude, iter(draws[CROP_ATTEMPTS * _PER_ATTEMPT + 1 :]))
    return seen.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _draws(policy: AugmentationConfig, image_id: str, index: int) -> list[float]:
    """Uniform numbers in [0, 1), always as many, so that what one of them decides never shifts the others."""
    text = f"{policy.seed} {policy.policy} {policy.effective_magnitude or 0} {image_id} {index}"
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    # The raw stream: NumPy promises that it stays the same, and does not for what is made of it.
    raw = np.random.Philox(key=key).random_raw(_NUM_DRAWS_OF_AUGMIX if policy.policy == "augmix" else _NUM_DRAWS)
    return ((raw >> 11) * 2.0**-53).tolist()


def crop_box(height: int, width: int, draws: list[float], fit: Fit = "crop") -> Box:
    """Torchvision's rule for a random resized crop, on given draws: the first part that fits, else the middle.

    Its aspect is that of the square, or, where all of a picture is used, the picture's own.
    """
    own = 1.0 if fit == "crop" else width / height
    low, high = math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])
    for attempt in range(CROP_ATTEMPTS):
        area, aspect, down, right = draws[attempt * _PER_ATTEMPT :][:_PER_ATTEMPT]
        target = height * width * (CROP_AREA[0] + area * (CROP_AREA[1] - CROP_AREA[0]))
        ratio = own * math.exp(low + aspect * (high - low))
        box_width, box_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(down * (height - box_height + 1)), int(right * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_width = min(width, round(height * own * CROP_ASPECT[1]))
    box_height = min(height, round(width / (own * CROP_ASPECT[0])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def _fitted(image_CHW: torch.Tensor, box: Box, size_px: int, fit: Fit) -> torch.Tensor:
    """A part of a picture as a square."""
    own_height, own_width = image_CHW.shape[1:]
    height, width = fitted_size(own_height, own_width, fit, size_px)
    resized = _resized(image_CHW, box, height, width)
    if (height, width) == (size_px, size_px):
        return resized
    square = torch.tensor(PAD_COLOUR, dtype=torch.uint8).expand(size_px, size_px, 3).contiguous().permute(2, 0, 1)
    top, left = (size_px - height) // 2, (size_px - width) // 2
    square[:, top : top + height, left : left + width] = resized
    return square


def _resized(image_CHW: torch.Tensor, box: Box, height: int, width: int) -> torch.Tensor:
    part = image_CHW[:, box.top : box.top + box.height, box.left : box.left + box.width]
    # A part of a channels-last picture is contiguous in no layout, and then torch would answer in the other one.
    part = part.permute(1, 2, 0).clone(memory_format=torch.contiguous_format).permute(2, 0, 1)
    return F.resize_image(part, [height, width], antialias=True)
