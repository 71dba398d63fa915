"""CIFAR-10, pixel by pixel: the arena's Image task, in grey or, as the published runs of HGRN have it, in colour.

Read from the files of its authors, `cifar-10-batches-bin` (a label and 3,072 bytes a record) or
`cifar-10-batches-py` (pickles, of which nothing is run but what makes arrays).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hgrn.data.files import TextFile
from hgrn.data.images.cifar import CIFAR10, Layout, read_batch
from hgrn.data.lra.splits import LabelledData, image_data, random_split
from hgrn.data.lra.store import EntryWriter, cached
from hgrn.data.shuffle import hashed
from hgrn.errors import UserError

FORMAT = 1  # raise it when the same files give other arrays
SHAPE = (3, 32, 32)
VALIDATION_SHARE = 0.1
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Those of the published runs.
GREY = {"mean": [122.6 / 255], "std": [61.0 / 255]}
COLOUR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.243, 0.261]}
PAD = 4  # of the augmentation


@dataclass(frozen=True)
class ImageData:
    """path: the folder of either kind, or the one that it lies in. colour: three channels, or one of grey. augment: as
    `augmented` does, images of training only."""

    __pydantic_config__ = {"extra": "forbid"}

    path: str
    task: Literal["image"] = "image"
    colour: bool = False
    augment: bool = False
    cache: str | None = None


def prepare(data: ImageData) -> LabelledData:
    """45,000, 5,000 and 10,000 images, uint8 [N, C, 32, 32], split as in the published runs. Raises UserError for files
    that are missing or not what they should be."""
    folder, layout = _find(data.path)
    files = [TextFile(str(folder / name), folder / name) for name in (*layout.train, *layout.test)]
    missing = [file.name for file in files if not file.path.is_file()]
    if missing:
        raise UserError(f"{', '.join(missing)} not found; unpack CIFAR-10 again")
    source = ["image", FORMAT, data.colour, [file.signature() for file in files]]
    return image_data(cached(data.cache, source, lambda writer: _write(writer, folder, layout, data.colour)))


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
        top, left, flip = number % (2 * PAD + 1), (number >> 16) % (2 * PAD + 1), number >> 32 & 1
        crop = padded[row, :, top:top + height, left:left + width]
        result[row] = crop[:, :, ::-1] if flip else crop
    return result


def _find(path: str) -> tuple[Path, Layout]:
    outer = Path(path).expanduser()
    for folder in (outer, *(outer / layout.folder for layout in CIFAR10)):
        for layout in CIFAR10:
            if (folder / layout.train[0]).is_file():
                return folder, layout
    firsts = " and no ".join(layout.train[0] for layout in CIFAR10)
    folders = " or ".join(layout.folder for layout in CIFAR10)
    raise UserError(f"path {path} has no {firsts}; name the folder {folders} of CIFAR-10")


def _write(writer: EntryWriter, folder: Path, layout: Layout, colour: bool) -> dict:
    def load(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        parts = [read_batch(folder / name, layout) for name in names]
        for name, (_, labels) in zip(names, parts):
            if not ((labels >= 0) & (labels < len(CLASSES))).all():
                raise UserError(f"{folder / name} has labels that are not from 0 to {len(CLASSES) - 1}")
        pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *SHAPE)
        return pixels if colour else to_grey(pixels), np.concatenate([labels for _, labels in parts])

    images, labels = load(layout.train)
    train = int(len(images) * (1 - VALIDATION_SHARE))
    for split, chosen in zip(("train", "validation"), random_split(len(images), [train, len(images) - train])):
        writer.append(f"{split}/images", images[chosen])
        writer.append(f"{split}/labels", labels[chosen])
    images, labels = load(layout.test)
    writer.append("test/images", images)
    writer.append("test/labels", labels)
    return {"classes": list(CLASSES), **(COLOUR if colour else GREY)}
