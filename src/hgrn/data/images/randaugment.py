"""RandAugment (Cubuk et al., 2020) on a batch of tensors, each image with operations of its own.

The operations and their strengths are those of `rand-m9-mstd0.5-inc1`, by which the published image models
were trained: two operations an image, drawn with replacement, each applied with probability one half, all of
them stronger for a larger magnitude. kornia's own RandAugment draws one pair of operations for a whole batch,
so only its functions are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

LAYERS = 2
PROBABILITY = 0.5
MAXIMUM = 10.0
IMAGE_MEAN = (0.485, 0.456, 0.406)  # fills what a shift or turn leaves empty

Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def rand_augment(images: torch.Tensor, magnitude: float, deviation: float) -> torch.Tensor:
    """Images [B, C, H, W] in [0, 1] to the same. Draws from torch's global generator of the CPU.

    magnitude: 0 to 10; each application draws its own from a normal distribution of that deviation, cut to
    [0, 10].
    """
    names = list(OPERATIONS)
    images = images.clone()
    for _ in range(LAYERS):
        count = len(images)
        choice = torch.randint(len(names), (count,))
        applied = torch.rand(count) < PROBABILITY
        strengths = (magnitude + deviation * torch.randn(count)).clamp(0, MAXIMUM) / MAXIMUM
        signs = torch.randint(2, (count,)) * 2.0 - 1
        for number in choice[applied].unique().tolist():
            rows = (choice == number) & applied
            name = names[number]
            levels = strengths[rows] * (signs[rows] if name in SIGNED else 1)
            rows = rows.to(images.device)
            images[rows] = OPERATIONS[name](images[rows], levels.to(images)).clamp(0, 1)
    return images


def _auto_contrast(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    low = images.amin((2, 3), keepdim=True)
    high = images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


def _equalize(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    from kornia.enhance import equalize

    return equalize(images)


def _invert(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return 1 - images


def _posterize(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    dropped = 4 + (levels * 4).floor()[:, None, None, None]  # bits, of 8
    step = torch.exp2(dropped)
    return ((images * 255).round() / step).floor() * step / 255


def _solarize(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    threshold = (256 - (levels * 256).floor())[:, None, None, None] / 255
    return torch.where(images < threshold, images, 1 - images)


def _solarize_add(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    added = (levels * 110).floor()[:, None, None, None] / 255
    return torch.where(images < 128 / 255, images + added, images)


def _color(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    from kornia.enhance import adjust_saturation_with_gray_subtraction

    return (
        images
        if images.shape[1] == 1
        else adjust_saturation_with_gray_subtraction(images, _factors(levels))
    )


def _contrast(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    return adjust_contrast_with_mean_subtraction(images, _factors(levels))


def _brightness(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return images * _factors(levels)[:, None, None, None]


def _sharpness(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    from kornia.enhance import sharpness

    return sharpness(images, _factors(levels))


def _factors(levels: torch.Tensor) -> torch.Tensor:
    """How much of the image, against its grey, black or blurred version; 1 changes nothing."""
    return (1 + 0.9 * levels).clamp(min=0.1)


def _rotate(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    angle = levels * math.radians(30)
    cos = angle.cos()
    sin = angle.sin()
    return _warp(images, cos, sin, -sin, cos)


def _shear_x(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    one = torch.ones_like(levels)
    zero = torch.zeros_like(levels)
    return _warp(images, one, 0.3 * levels, zero, one)


def _shear_y(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    one = torch.ones_like(levels)
    zero = torch.zeros_like(levels)
    return _warp(images, one, zero, 0.3 * levels, one)


def _translate_x(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    one = torch.ones_like(levels)
    zero = torch.zeros_like(levels)
    return _warp(images, one, zero, zero, one, shift_x=0.45 * levels * images.shape[3])


def _translate_y(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    one = torch.ones_like(levels)
    zero = torch.zeros_like(levels)
    return _warp(images, one, zero, zero, one, shift_y=0.45 * levels * images.shape[2])


def _warp(images, xx, xy, yx, yy, shift_x=0.0, shift_y=0.0) -> torch.Tensor:
    """Moves (x, y), from the centre and in pixels, to (xx x + xy y + shift_x, yx x + yy y + shift_y). Each [B]."""
    from kornia.geometry import warp_affine

    height, width = images.shape[-2:]
    x = (width - 1) / 2
    y = (height - 1) / 2
    across = torch.stack([xx, xy, x - xx * x - xy * y + shift_x], dim=1)
    down = torch.stack([yx, yy, y - yx * x - yy * y + shift_y], dim=1)
    matrix = torch.stack([across, down], dim=1)
    if images.shape[1] == 1:  # kornia fills three channels only; the border of grey images is black
        return warp_affine(images, matrix, (height, width), mode="bicubic", padding_mode="zeros")
    mean = torch.tensor(IMAGE_MEAN).to(images)
    return warp_affine(
        images, matrix, (height, width), mode="bicubic", padding_mode="fill", fill_value=mean
    )


OPERATIONS: dict[str, Operation] = {
    "auto contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear x": _shear_x,
    "shear y": _shear_y,
    "translate x": _translate_x,
    "translate y": _translate_y,
}
SIGNED = {
    "rotate",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear x",
    "shear y",
    "translate x",
    "translate y",
}
