"""CIFAR-10, pixel by pixel: the arena's Image task, in grey or, as the published runs of HGRN have it, in colour.

Read from the files of its authors, `cifar-10-batches-bin` (a label and 3,072 bytes a record) or
`cifar-10-batches-py` (pickles, read as data). Fashion-MNIST, or MNIST, in its idx files can stand
in for it: grey images of 28 x 28 with a black border, 32 x 32 in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hgrn.data.cache import EntryWriter, cache_folder, cached
from hgrn.data.files import TextFile
from hgrn.data.images.cifar import CIFAR10, Layout, read_batch
from hgrn.data.images.idx import idx_classes, idx_files, open_idx
from hgrn.data.lra.splits import LabelledData, image_data, random_split
from hgrn.data.shuffle import hashed
from hgrn.errors import UserError
from hgrn.files import expanded

FORMAT = 1  # raise it when the same files give other arrays
SIZE = 32
VALIDATION_SHARE = 0.1
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Those of the published runs.
GREY = {"mean": [122.6 / 255], "std": [61.0 / 255]}
COLOUR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.243, 0.261]}
PAD = 4  # of the augmentation

Part = tuple[np.ndarray, np.ndarray]  # images uint8 [N, C, 32, 32], and their classes


@dataclass(frozen=True)
class ImageData:
    """path: the folder of either kind, or the one that it lies in; or a folder of idx files. colour: three channels, or one of
    grey. augment: as `augmented` does, images of training only."""

    __pydantic_config__ = {"extra": "forbid"}

    path: str
    task: Literal["image"] = "image"
    colour: bool = False
    augment: bool = False
    cache: str | None = None


def prepare(data: ImageData) -> LabelledData:
    """90 % and 10 % of the training images, and those of the test, uint8 [N, C, 32, 32]; split as in the published runs.

    Raises UserError for files that are missing or not what they should be.
    """
    folder, layout = _find(data.path)
    if layout is None:
        if data.colour:
            raise UserError(f"colour must be false for {folder}, whose images are grey")
        paths = idx_files(folder)
        classes = idx_classes(folder)
    else:
        paths = [folder / name for name in (*layout.train, *layout.test)]
        classes = list(CLASSES)
        if missing := [str(path) for path in paths if not path.is_file()]:
            raise UserError(f"{', '.join(missing)} not found; unpack CIFAR-10 again")
    source = [
        "image",
        FORMAT,
        data.colour,
        classes,
        [TextFile(str(path), path).signature() for path in paths],
    ]

    def write(writer: EntryWriter) -> dict:
        parts, facts = _of_idx(folder) if layout is None else _of_cifar(folder, layout, data.colour)
        _write(writer, *parts)
        return facts | {"classes": classes}

    return image_data(cached(cache_folder("lra", data.cache), source, write))


def to_grey(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 3, H, W] -> [N, 1, H, W], by the weights of ITU-R 601 in the whole numbers that Pillow has."""
    red, green, blue = images.astype(np.uint32).swapaxes(0, 1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[:, None]


def augmented(images: np.ndarray, examples: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Each image shifted by up to 4 pixels, its edge mirrored into the gap, and flipped every other time.

    images: [R, C, H, W], of the examples with these numbers [R]; what is done to one depends on its number, seed
    and epoch alone.
    """
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (PAD, PAD), (PAD, PAD)), mode="symmetric")
    result = np.empty_like(images)
    for row, example in enumerate(examples.tolist()):
        number = hashed(seed, epoch, example)
        top = number % (2 * PAD + 1)
        left = (number >> 16) % (2 * PAD + 1)
        flip = number >> 32 & 1
        crop = padded[row, :, top : top + height, left : left + width]
        result[row] = crop[:, :, ::-1] if flip else crop
    return result


def _find(path: str) -> tuple[Path, Layout | None]:
    """The folder, and the form of CIFAR-10 that it has; None for idx files."""
    outer = expanded(path)
    for folder in (outer, *(outer / layout.folder for layout in CIFAR10)):
        for layout in CIFAR10:
            if (folder / layout.train[0]).is_file():
                return folder, layout
    if outer.is_dir() and any(
        "images" in file.name and "idx3" in file.name for file in outer.iterdir()
    ):
        return outer, None
    firsts = " and no ".join(layout.train[0] for layout in CIFAR10)
    folders = " or ".join(layout.folder for layout in CIFAR10)
    raise UserError(
        f"path {path} has no {firsts}; name the folder {folders} of CIFAR-10, or one of idx files"
    )


def _of_cifar(folder: Path, layout: Layout, colour: bool) -> tuple[list[Part], dict]:
    def load(names: tuple[str, ...]) -> Part:
        parts = [read_batch(folder / name, layout) for name in names]
        for name, (_, labels) in zip(names, parts):
            if not ((labels >= 0) & (labels < len(CLASSES))).all():
                raise UserError(
                    f"{folder / name} has labels that are not from 0 to {len(CLASSES) - 1}"
                )
        pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, SIZE, SIZE)
        return pixels if colour else to_grey(pixels), np.concatenate(
            [labels for _, labels in parts]
        )

    return [load(layout.train), load(layout.test)], COLOUR if colour else GREY


def _of_idx(folder: Path) -> tuple[list[Part], dict]:
    parts = []
    for split in ("train", "test"):
        source = open_idx(folder, split)
        height, width = source.images.shape[2:]
        if max(height, width) > SIZE:
            raise UserError(
                f"{folder} {split}: images must have at most {SIZE} x {SIZE} pixels, got {height} x {width}"
            )
        border = [((SIZE - length) // 2, (SIZE - length + 1) // 2) for length in (height, width)]
        parts.append(
            (np.pad(source.images.numpy(), ((0, 0), (0, 0), *border)), source.labels.numpy())
        )
    levels = np.arange(256) / 255
    counts = np.bincount(parts[0][0].ravel(), minlength=256)
    mean = np.average(levels, weights=counts)
    return parts, {
        "mean": [float(mean)],
        "std": [float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))],
    }


def _write(writer: EntryWriter, training: Part, test: Part) -> None:
    images, labels = training
    train = int(len(images) * (1 - VALIDATION_SHARE))
    parts = {
        split: (images[chosen], labels[chosen])
        for split, chosen in zip(
            ("train", "validation"), random_split(len(images), [train, len(images) - train])
        )
    }
    for split, (images, labels) in (parts | {"test": test}).items():
        writer.append(f"{split}/images", images)
        writer.append(f"{split}/labels", labels)
