"""The arena's Image task: CIFAR-10 pixel by pixel, in grey or, as in HGRN's runs, in colour.

The files are those of CIFAR's authors, binary or pickles (`hgrn.data.images.cifar`). Fashion-MNIST
or MNIST, in idx files, can stand in for them: grey images of 28 x 28 get a black border, 32 x 32 in
all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from hgrn.data.cache import EntryWriter, cache_folder, cached
from hgrn.data.files import TextFile
from hgrn.data.images.cifar import (
    CIFAR10,
    CIFAR10_CLASSES,
    SIZE,
    Layout,
    find_layouts,
    read_split,
)
from hgrn.data.images.idx import idx_classes, idx_files, open_idx
from hgrn.data.images.source import TensorSource
from hgrn.data.lra.splits import LabelledData, image_data, random_split
from hgrn.data.shuffle import hashed
from hgrn.errors import UserError
from hgrn.files import expanded

FORMAT = 1  # raise it when the same files give other arrays
VALIDATION_SHARE = 0.1
# The published runs have these means and deviations.
GREY = {"mean": [122.6 / 255], "std": [61.0 / 255]}
COLOUR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.243, 0.261]}
PAD = 4  # pixels by which `augmented` shifts at most


@dataclass(frozen=True)
class ArenaImageData:
    """The section `data` of a recipe for the Image task.

    path: the folder of CIFAR-10, or the folder around it; or a folder of idx files. colour: three
    channels, or one of grey. augment: change training images as `augmented` does. cache: the folder
    of encoded data, None for the user's cache folder.
    """

    __pydantic_config__ = {"extra": "forbid"}

    path: str
    task: Literal["image"] = "image"
    colour: bool = False
    augment: bool = False
    cache: str | None = None


def prepare(data: ArenaImageData) -> LabelledData:
    """The three splits, images uint8 [N, C, 32, 32]; validation is a tenth of the training images.

    They are drawn as in the published runs. Raises UserError for files that are missing or not what
    they should be.
    """
    folder, layout = _find(data.path)
    if layout is None:
        if data.colour:
            raise UserError(f"colour must be false for {folder}, whose images are grey")
        paths = idx_files(folder)
        classes = idx_classes(folder)
    else:
        paths = [folder / name for name in (*layout.train, *layout.test)]
        classes = list(CIFAR10_CLASSES)
        if missing := [str(path) for path in paths if not path.is_file()]:
            raise UserError(f"{', '.join(missing)} not found; unpack CIFAR-10 again")
    signatures = [TextFile(str(path), path).signature() for path in paths]
    source = ["image", FORMAT, data.colour, classes, signatures]

    def write(writer: EntryWriter) -> dict:
        if layout is None:
            training, test = (_with_border(open_idx(folder, split)) for split in ("train", "test"))
            statistics = _statistics(training.images)
        else:
            training, test = (
                read_split(folder, layout, split, classes) for split in ("train", "test")
            )
            statistics = COLOUR if data.colour else GREY
        _write(writer, training, test, in_grey=layout is not None and not data.colour)
        return statistics | {"classes": classes}

    return image_data(cached(cache_folder("lra", data.cache), source, write))


def to_grey(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 3, H, W] -> [N, 1, H, W], by the weights of ITU-R 601 in Pillow's whole numbers."""
    red, green, blue = images.astype(np.uint32).swapaxes(0, 1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[:, None]


def augmented(images: np.ndarray, examples: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Shift each image by up to 4 pixels, mirror its edge into the gap, and flip every other one.

    images: [R, C, H, W], of the examples with these numbers [R]. What is done to an image depends
    on its number, seed and epoch alone.
    """
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (PAD, PAD), (PAD, PAD)), mode="symmetric")
    result = np.empty_like(images)
    for row, example in enumerate(examples.tolist()):
        # Different bits of one hash: the places in the padded image, and whether to flip.
        number = hashed(seed, epoch, example)
        top = number % (2 * PAD + 1)
        left = (number >> 16) % (2 * PAD + 1)
        flip = number >> 32 & 1
        crop = padded[row, :, top : top + height, left : left + width]
        result[row] = crop[:, :, ::-1] if flip else crop
    return result


def _find(path: str) -> tuple[Path, Layout | None]:
    """The folder, and the layout of CIFAR-10 that it has; None for idx files."""
    outer = expanded(path)
    for found in find_layouts(outer, CIFAR10):
        return found
    if outer.is_dir() and any(
        "images" in file.name and "idx3" in file.name for file in outer.iterdir()
    ):
        return outer, None
    firsts = " and no ".join(layout.train[0] for layout in CIFAR10)
    folders = " or ".join(layout.folder for layout in CIFAR10)
    raise UserError(
        f"path {path} has no {firsts}; name the folder {folders} of CIFAR-10, or one of idx files"
    )


def _with_border(source: TensorSource) -> TensorSource:
    """Smaller images in the middle of a black square of 32 x 32."""
    height, width = source.images.shape[2:]
    if max(height, width) > SIZE:
        raise UserError(
            f"{source.name}: images must have at most {SIZE} x {SIZE} pixels, got {height} x "
            f"{width}"
        )
    top = (SIZE - height) // 2
    left = (SIZE - width) // 2
    images = torch.zeros(len(source), 1, SIZE, SIZE, dtype=torch.uint8, device="cpu")
    images[:, :, top : top + height, left : left + width] = source.images
    return TensorSource(source.name, images, source.labels, source.classes)


def _statistics(images: torch.Tensor) -> dict[str, list[float]]:
    """Mean and standard deviation of grey images [N, 1, H, W], scaled to [0, 1]."""
    # From a histogram: exact, and without a copy of all pixels as floats.
    levels = np.arange(256) / 255
    counts = np.bincount(images.numpy().ravel(), minlength=256)
    mean = np.average(levels, weights=counts)
    variance = np.average((levels - mean) ** 2, weights=counts)
    return {"mean": [float(mean)], "std": [float(np.sqrt(variance))]}


def _write(
    writer: EntryWriter, training: TensorSource, test: TensorSource, *, in_grey: bool
) -> None:
    train = int(len(training) * (1 - VALIDATION_SHARE))
    chosen = random_split(len(training), [train, len(training) - train])
    parts = {
        "train": (training, chosen[0]),
        "validation": (training, chosen[1]),
        "test": (test, np.arange(len(test))),
    }
    for split, (source, numbers) in parts.items():
        images = source.images.numpy()[numbers]
        writer.append(f"{split}/images", to_grey(images) if in_grey else images)
        writer.append(f"{split}/labels", source.labels.numpy()[numbers])
