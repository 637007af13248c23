"""What augmentation policies do with a view last: RandAugment's operations, and what is built of them or beside them.

In: uint8 pixels [3, H, W], a strength, numbers that chance drew before. Out: uint8 pixels of the same shape. Nothing
here draws numbers by itself, and nothing is written to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torchvision.transforms.v2 import functional as F

NUM_OPERATIONS = 2
MAGNITUDE_STEPS = 30
_MOST_SHIFT, _MOST_JITTER, _MOST_TINT = 0.15, 0.45, 0.9
_ERASED_AREA, _ERASED_ASPECT = (0.02, 0.2), (0.3, 1 / 0.3)
_AUGMIX_CHAINS, _AUGMIX_DEPTH = 3, 3


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


def _operate(seen: torch.Tensor, magnitude: int, draws: Iterator[float]) -> torch.Tensor:
    """One operation that chance chooses, either way."""
    name = OPERATION_NAMES[int(next(draws) * len(OPERATION_NAMES))]
    return apply_operation(seen, name, magnitude, negative=next(draws) < 0.5)  # noqa: PLR2004


def _randaugment(seen: torch.Tensor, magnitude: int, draws: Iterator[float]) -> torch.Tensor:
    for _ in range(NUM_OPERATIONS):
        seen = _operate(seen, magnitude, draws)
    return seen


def _trivialaugment(seen: torch.Tensor, _: int, draws: Iterator[float]) -> torch.Tensor:
    return _operate(seen, int(next(draws) * (MAGNITUDE_STEPS + 1)), draws)


def _augmix(seen: torch.Tensor, magnitude: int, draws: Iterator[float]) -> torch.Tensor:
    """Weights from a flat Dirichlet distribution, the mixture's share from a uniform one (alpha is 1)."""
    share = next(draws)
    exponentials = [-math.log(1 - next(draws)) for _ in range(_AUGMIX_CHAINS)]
    mixed = seen.double().mul(1 - share)
    for weight in exponentials:
        chain, depth = seen, 1 + int(next(draws) * _AUGMIX_DEPTH)
        for step in range(_AUGMIX_DEPTH):
            operated = _operate(chain, magnitude, draws)  # drawn and done whether or not it counts: always as many
            chain = operated if step < depth else chain
        mixed.add_(chain.double(), alpha=share * weight / sum(exponentials))
    return mixed.round_().clamp_(0, 255).to(torch.uint8)


def _color(seen: torch.Tensor, magnitude: int, draws: Iterator[float]) -> torch.Tensor:
    most = _MOST_TINT * magnitude / MAGNITUDE_STEPS
    seen = F.adjust_brightness_image(seen, 1 + most * _signed(draws))
    seen = _contrast(seen, 1 + most * _signed(draws))
    return F.adjust_saturation_image(seen, 1 + most * _signed(draws))


def _industrial(seen: torch.Tensor, magnitude: int, draws: Iterator[float]) -> torch.Tensor:
    size_px = seen.shape[-1]
    most = round(_MOST_SHIFT * size_px * magnitude / MAGNITUDE_STEPS)
    top, left = (int(next(draws) * (2 * most + 1)) for _ in range(2))
    if most:
        padded = F.pad_image(seen, [most] * 4, padding_mode="edge")
        seen = padded[:, top : top + size_px, left : left + size_px]
    most_jitter = _MOST_JITTER * magnitude / MAGNITUDE_STEPS
    seen = F.adjust_brightness_image(seen, 1 + most_jitter * _signed(draws))
    return _contrast(seen, 1 + most_jitter * _signed(draws))


def _erasing(seen: torch.Tensor, _: int, draws: Iterator[float]) -> torch.Tensor:
    """A patch of the view's mean colour, wherever it fits."""
    if next(draws) >= 0.5:  # noqa: PLR2004
        return seen
    size_px = seen.shape[-1]
    area = size_px**2 * (_ERASED_AREA[0] + next(draws) * (_ERASED_AREA[1] - _ERASED_AREA[0]))
    low, high = map(math.log, _ERASED_ASPECT)
    ratio = math.exp(low + next(draws) * (high - low))
    height, width = (max(1, min(size_px, round(math.sqrt(side)))) for side in (area * ratio, area / ratio))
    # One draw places both: its digits behind the row's are as uniform as those before.
    place = next(draws) * (size_px - height + 1)
    top, left = int(place), int((place - int(place)) * (size_px - width + 1))
    mean = seen.sum(dim=(1, 2), dtype=torch.int64).div(size_px**2, rounding_mode="floor").to(torch.uint8)
    seen = seen.clone()
    seen[:, top : top + height, left : left + width] = mean[:, None, None]
    return seen


def _signed(draws: Iterator[float]) -> float:
    return 2 * next(draws) - 1


FINISHES: dict[str, Callable[[torch.Tensor, int, Iterator[float]], torch.Tensor]] = {
    "augmix": _augmix,
    "color": _color,
    "erasing": _erasing,
    "industrial": _industrial,
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
}
"""By policy: what is done with a view last, given the magnitude and numbers drawn from [0, 1)."""
