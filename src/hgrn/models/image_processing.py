"""HGRNImageProcessor: images to the `pixel_values` of a model, with Pillow and NumPy alone."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.processing_utils import ImagesKwargs
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hgrn.models.loader import write_loader

_BICUBIC = 3  # of Pillow, which only `__call__` needs
_LARGEST_SIDE = 10_000  # pixels
_MODES = {1: "L", 3: "RGB"}


class HGRNImageProcessorKwargs(ImagesKwargs, total=False):
    """What `HGRNImageProcessor` takes beyond transformers' own arguments."""

    num_channels: int


class HGRNImageProcessor(PilBackend):
    """Decodes, resizes, crops and norms images.

    It makes `pixel_values` float32 `[B, num_channels, height, width]`. The defaults are those of
    the evaluation of the authors' image models: the shorter edge to 256 pixels (bicubic), the
    middle 224 x 224 of it, values between 0 and 1, mean and deviation of ImageNet. Here or in a
    call, it takes all arguments of transformers' image processors (size, crop_size, image_mean,
    image_std, do_resize, ...), and:

    Args:
        num_channels: 3, or 1 for grey images; files and Pillow's images are converted.

    Raises:
        ValueError: num_channels is something else, or mean and deviation have another number of
            values.

    Example, for pixels of grey images of 32 x 32:
        HGRNImageProcessor(
            num_channels=1, do_resize=False, do_center_crop=False, image_mean=[0.5], image_std=[0.5]
        )
    """

    valid_kwargs = HGRNImageProcessorKwargs
    num_channels = 3
    resample = _BICUBIC
    size = {"shortest_edge": 256}
    crop_size = {"height": 224, "width": 224}
    default_to_square = False
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True

    def __init__(self, **kwargs: Any):
        _check_settings(kwargs)
        super().__init__(**kwargs)
        self.auto_map = {"AutoImageProcessor": "modeling_hgrn.HGRNImageProcessor"}
        self._check(self.num_channels, self.do_normalize, self.image_mean, self.image_std)

    def process_image(self, image: Any, num_channels: int = 3, **kwargs: Any) -> np.ndarray:
        """One image to an array `[num_channels, height, width]`."""
        if hasattr(image, "convert"):  # it is Pillow's
            image = image.convert(_MODES[num_channels])
        image = super().process_image(image, **kwargs)
        if image.shape[0] != num_channels:
            raise ValueError(
                f"images must have {num_channels} channel(s), got an array of {image.shape[0]}; "
                "convert it, or set num_channels"
            )
        return image

    def center_crop(self, image: np.ndarray, size: Any, **kwargs: Any) -> np.ndarray:
        """The middle of the image, as in our evaluation while training and in torchvision.

        Where the middle is between two pixels, it starts at the even one. transformers' own starts
        at the lower one, which is a pixel off in every fourth case.
        """
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:  # transformers pads it
            return super().center_crop(image, size, **kwargs)
        top = round((height - size.height) / 2)
        left = round((width - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers does."""
        given = {
            name: kwargs.get(name, getattr(self, name))
            for name in ("num_channels", "do_normalize", "image_mean", "image_std")
        }
        self._check(**given)
        return super().preprocess(images, *args, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers does, and the loader file, for programs that do not import hgrn."""
        write_loader(save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoImageProcessor") -> None:
        """Does nothing, as `HGRNConfig.register_for_auto_class`."""

    @staticmethod
    def _check(
        num_channels: object, do_normalize: object, image_mean: object, image_std: object
    ) -> None:
        if num_channels not in tuple(_MODES):
            raise ValueError(f"num_channels must be 3 (colour) or 1 (grey), got {num_channels!r}")
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if do_normalize and isinstance(values, (list, tuple)) and len(values) != num_channels:
                raise ValueError(
                    f"{name} must have a value for each of {num_channels} channel(s), got "
                    f"{values!r}; give {name} too"
                )


def _check_settings(given: Mapping[str, Any]) -> None:
    """Raise ValueError for settings of a wrong type or size.

    transformers would take them, and fail at the first image.
    """
    problems = []
    for name in (
        "do_resize",
        "do_center_crop",
        "do_rescale",
        "do_normalize",
        "do_convert_rgb",
        "do_pad",
        "default_to_square",
    ):
        if not isinstance(value := given.get(name), bool | None):
            problems.append(f"{name} must be True or False, got {value!r}")
    for name in ("size", "crop_size", "pad_size"):
        if not _are_sides(value := given.get(name)):
            problems.append(
                f"{name} must be whole numbers from 1 to {_LARGEST_SIDE:,} for the sides, got "
                f"{value!r}"
            )
    for name in ("image_mean", "image_std", "rescale_factor"):
        value = given.get(name)
        if value is None:
            continue
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(x, (int, float)) and abs(x) < float("inf") for x in numbers):
            problems.append(f"{name} must be a number, or one for each channel, got {value!r}")
        elif name == "image_std" and 0 in numbers:
            problems.append(f"image_std must not be 0, got {value!r}")
    if (resample := given.get("resample")) is not None and resample not in range(6):
        problems.append(
            f"resample must be one of the numbers 0 to 5 of Pillow's filters, got {resample!r}"
        )
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"HGRNImageProcessor has {len(problems)} problem(s):\n  {listed}")


def _are_sides(value: object) -> bool:
    """Whether a size from a file has sides that an image can have.

    None and objects of transformers pass.
    """
    if isinstance(value, Mapping):
        sides = [side for side in value.values() if side is not None]
    elif isinstance(value, (int, float, str, list)):
        sides = [value]
    else:
        return True
    return all(isinstance(side, int) and 0 < side <= _LARGEST_SIDE for side in sides)
