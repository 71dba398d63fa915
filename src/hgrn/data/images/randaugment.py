"""RandAugment (Cubuk et al., 2020) on a batch of tensors, each image with operations of its own.

Operations and strengths are those of `rand-m9-mstd0.5-inc1`, with which the published image models
were trained: each image gets two operations, drawn with replacement, each applied with probability
one half; a larger magnitude makes all of them stronger. kornia's own RandAugment draws one pair of
operations for a whole batch, so we use only its functions.
"""

import math
from collections.abc import Callable

import torch

LAYERS = 2
PROBABILITY = 0.5
MAXIMUM = 10.0
IMAGE_MEAN = (0.485, 0.456, 0.406)  # the colour of the corners that a shift or turn leaves empty

# Takes images [B, C, H, W] and a strength for each, [B], from 0 to 1 (signed: from -1 to 1).
Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def rand_augment(images: torch.Tensor, magnitude: float, deviation: float) -> torch.Tensor:
    """Augment images [B, C, H, W] in [0, 1]. Draws from torch's global CPU generator.

    magnitude: 0 to 10. Each application draws its own strength from a normal distribution around it
    with this deviation, cut to [0, 10].
    """
    names = list(OPERATIONS)
    images = images.clone()
    for _ in range(LAYERS):
        count = len(images)
        choice = torch.randint(len(names), (count,))
        applied = torch.rand(count) < PROBABILITY
        strengths = (magnitude + deviation * torch.randn(count)).clamp(0, MAXIMUM) / MAXIMUM
        signs = torch.randint(2, (count,)) * 2.0 - 1
        # Together, all images of this layer that drew the same operation.
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
    dropped = 4 + (levels * 4).floor()[:, None, None, None]  # lowest bits of 8 that become 0
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

    if images.shape[1] == 1:
        return images
    return adjust_saturation_with_gray_subtraction(images, _factors(levels))


def _contrast(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    return adjust_contrast_with_mean_subtraction(images, _factors(levels))


def _brightness(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return images * _factors(levels)[:, None, None, None]


def _sharpness(images: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    from kornia.enhance import sharpness

    return sharpness(images, _factors(levels))


def _factors(levels: torch.Tensor) -> torch.Tensor:
    """How much is kept of the image against its grey, black or blurred version; 1 keeps it all."""
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


def _warp(
    images: torch.Tensor,
    xx: torch.Tensor,
    xy: torch.Tensor,
    yx: torch.Tensor,
    yy: torch.Tensor,
    shift_x: torch.Tensor | float = 0.0,
    shift_y: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Move each pixel (x, y) to (xx x + xy y + shift_x, yx x + yy y + shift_y).

    x, y: in pixels from the centre. All coefficients are [B].
    """
    from kornia.geometry import warp_affine

    height, width = images.shape[-2:]
    # kornia counts from the corner: the last column moves the centre there and back.
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
# Operations with a direction, which is drawn for each image.
SIGNED = {
    *("rotate", "shear x", "shear y", "translate x", "translate y"),
    *("color", "contrast", "brightness", "sharpness"),
}
