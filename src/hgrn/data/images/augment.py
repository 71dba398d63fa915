"""Turns decoded images into a model's input: randomly in training, always the same in evaluation.

Each call draws its random numbers on the CPU from a seed of its own, and leaves torch's global
generator as it was. So equal seeds give equal batches on every device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F

from hgrn.data.images.randaugment import rand_augment
from hgrn.errors import UserError

# The box of random erasing: its share of the image, and its aspect ratio; timm's defaults.
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)


@dataclass(frozen=True)
class Augmentation:
    """The section `augmentation` of a recipe; by default, training only brings images to size.

    crop: "centre" (as evaluation does), "padded" (pad by `padding` black pixels, then cut at
    random) or "resized" (take a random part with a share of the area in `scale` and an aspect ratio
    in `ratio`, and bring it to size). flip: the probability of a left-right flip. randaugment: a
    magnitude from 0 to 10, 0 for none, with the standard deviation randaugment_deviation. erasing:
    the probability of a box of noise.
    """

    __pydantic_config__ = {"extra": "forbid"}

    crop: Literal["centre", "padded", "resized"] = "centre"
    padding: int = 2
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    randaugment: float = 0.0
    randaugment_deviation: float = 0.5
    erasing: float = 0.0

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = [
            f"{name} must be in [0, 1]; got {getattr(self, name)}"
            for name in ("flip", "erasing")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.crop not in ("centre", "padded", "resized"):
            found.append(f"crop must be 'centre', 'padded' or 'resized'; got {self.crop!r}")
        if self.padding < 0:
            found.append(f"padding must be at least 0; got {self.padding}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            found.append(
                f"scale must be [low, high] with 0 < low <= high <= 1; got {list(self.scale)}"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            found.append(f"ratio must be [low, high] with 0 < low <= high; got {list(self.ratio)}")
        if not 0 <= self.randaugment <= 10:
            found.append(f"randaugment must be in [0, 10]; got {self.randaugment}")
        if self.randaugment_deviation < 0:
            found.append(
                f"randaugment_deviation must be at least 0; got {self.randaugment_deviation}"
            )
        return found


IMAGENET = Augmentation(crop="resized", flip=0.5, randaugment=9, erasing=0.25)
LIGHT = Augmentation(crop="padded", padding=2, flip=0.5)


class Normalisation:
    """(x - mean) / std by channel, for images [B, C, H, W] in [0, 1].

    mean, std: one number for each channel, std above 0; UserError for anything else.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        if len(mean) != len(std) or min(std) <= 0:
            raise UserError(
                f"mean and std must be as many numbers, std above 0; got {list(mean)} and "
                f"{list(std)}"
            )
        self.mean, self.std = (
            torch.tensor(values, device="cpu").view(-1, 1, 1) for values in (mean, std)
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] != len(self.mean):
            raise UserError(
                f"images have {images.shape[1]} channels, and mean and std {len(self.mean)}; make "
                "them agree"
            )
        return (images - self.mean.to(images)) / self.std.to(images)


class EvaluationTransform:
    """Brings the shorter side to `resize`, cuts the central `size` x `size`, and normalises."""

    def __init__(self, size: int, normalise: Normalisation, resize: int | None = None):
        self.size = size
        self.normalise = normalise
        self.resize = resize or size
        if not 1 <= self.size <= self.resize:
            raise UserError(
                f"size must be at least 1 and at most resize; got size {self.size}, resize "
                f"{self.resize}"
            )

    def fit(self, image: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Crop one image uint8 [C, H, W] to [C, size, size]; the seed is not used."""
        return self.fit_batch(image.unsqueeze(0))[0]

    def fit_batch(self, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Crop images uint8 [B, C, H, W] of one size to [B, C, size, size]."""
        return resize_and_crop(images, self.resize, self.size)

    def __call__(self, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Normalise cropped images, uint8 [B, C, size, size] to float32."""
        return self.normalise(images.float() / 255)


class TrainingTransform:
    """Augments and normalises: `fit` and `fit_batch` crop, the call does the rest to a batch.

    Cropping is apart because images of different sizes must be cropped before they make a batch,
    which worker processes do.
    """

    def __init__(
        self, settings: Augmentation, size: int, normalise: Normalisation, resize: int | None = None
    ):
        if found := settings.problems():
            raise UserError("; ".join(found))
        self.settings = settings
        self.size = size
        self.normalise = normalise
        self.resize = resize or size
        if settings.crop != "centre" or settings.flip or settings.randaugment or settings.erasing:
            _kornia()  # if it is missing, say so now rather than at the first batch

    def fit(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """Crop one image uint8 [C, H, W] of any size to [C, size, size]."""
        return self.fit_batch(image.unsqueeze(0), seed)[0]

    def fit_batch(self, images: torch.Tensor, seed: int) -> torch.Tensor:
        """Crop images uint8 [B, C, H, W] of one size to [B, C, size, size], in one draw."""
        settings = self.settings
        if settings.crop == "resized":
            with drawing_from(seed):
                return random_resized_crop(images, self.size, settings.scale, settings.ratio)
        # A padded crop is taken from the image at its final size, by the call.
        resize = self.resize if settings.crop == "centre" else self.size
        return resize_and_crop(images, resize, self.size)

    def __call__(self, images: torch.Tensor, seed: int) -> torch.Tensor:
        """Augment and normalise cropped images, uint8 [B, C, size, size] to float32."""
        settings = self.settings
        images = images.float() / 255
        with drawing_from(seed):
            if settings.crop == "padded":
                images = padded_crop(images, settings.padding)
            if settings.flip:
                images = flip(images, settings.flip)
            if settings.randaugment:
                images = rand_augment(images, settings.randaugment, settings.randaugment_deviation)
            images = self.normalise(images)
            return erase(images, settings.erasing) if settings.erasing else images


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Inside this block torch's global CPU generator starts from the seed; kornia draws from it."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def random_resized_crop(
    images: torch.Tensor, size: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> torch.Tensor:
    """A random part of each image, uint8 or float [B, C, H, W], brought to [B, C, size, size].

    kornia draws the parts. We resample them ourselves, because kornia has no low-pass filter, which
    makes large photographs grainy.
    """
    draw = _kornia().RandomResizedCrop((size, size), scale=scale, ratio=ratio)
    # [B, 4, 2]: the corners (x, y), clockwise from the top left; all lie inside the part.
    corners = draw.forward_parameters(images.shape)["src"]
    parts = []
    for row, box in enumerate(corners.round().long().tolist()):
        (left, top), _, (right, bottom), _ = box
        part = images[row : row + 1, :, top : bottom + 1, left : right + 1]
        parts.append(_resample(part, size, size))
    return torch.cat(parts)


def padded_crop(images: torch.Tensor, padding: int) -> torch.Tensor:
    """Move each image [B, C, H, W] by up to `padding` pixels in both directions, black outside."""
    if not padding:
        return images
    return _kornia().RandomCrop(tuple(images.shape[-2:]), padding=padding)(images)


def flip(images: torch.Tensor, probability: float) -> torch.Tensor:
    """Flip each image [B, C, H, W] left to right with a probability."""
    return _kornia().RandomHorizontalFlip(p=probability)(images)


def erase(images: torch.Tensor, probability: float) -> torch.Tensor:
    """Fill a box of each image [B, C, H, W] with normal noise, with a probability."""
    # kornia can only fill with one value: it blackens a white image, and we put noise there.
    draw = _kornia().RandomErasing(scale=ERASED_AREA, ratio=ERASED_RATIO, value=0.0, p=probability)
    kept = draw(torch.ones(len(images), 1, *images.shape[-2:])).to(images.device) > 0
    return torch.where(kept, images, torch.randn(images.shape).to(images))


def resize_and_crop(images: torch.Tensor, resize: int, size: int) -> torch.Tensor:
    """Bring the shorter side of [B, C, H, W] to `resize`, cut the central [B, C, size, size]."""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    if shorter != resize:
        height = resize if height == shorter else int(height * resize / shorter)
        width = resize if width == shorter else int(width * resize / shorter)
        images = _resample(images, height, width)
    top = round((height - size) / 2)
    left = round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def _resample(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize [B, C, H, W] of any dtype as Pillow does, bicubic with antialiasing."""
    if images.shape[-2:] == (height, width):
        return images
    made = F.interpolate(
        images.float(), (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    # Bicubic weights are negative in places, so values can leave the range of the image.
    if images.dtype == torch.uint8:
        return made.round().clamp(0, 255).to(torch.uint8)
    return made.clamp(0, 1)


def _kornia() -> ModuleType:
    """The module kornia.augmentation. Raises a UserError that says what to install."""
    try:
        import kornia.augmentation
    except ImportError:
        raise UserError(
            "augmentation needs kornia: pip install kornia, or turn crop, flip, randaugment and "
            "erasing off"
        ) from None
    return kornia.augmentation
