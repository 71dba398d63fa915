"""CIFAR-10, pixel by pixel: the arena's Image task, in grey or, as the published runs of HGRN have it, in colour.

Read from the files of its authors, `cifar-10-batches-bin` (a label and 3,072 bytes a record) or
`cifar-10-batches-py` (pickles, of which nothing is run but what makes arrays).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hgrn.data.files import TextFile
from hgrn.data.lra.pathfinder import random_split
from hgrn.data.lra.splits import LabelledData, image_data
from hgrn.data.lra.store import EntryWriter, cached
from hgrn.data.shuffle import hashed
from hgrn.errors import UserError

FORMAT = 1  # raise it when the same files give other arrays
SHAPE = (3, 32, 32)
PIXELS = 3072
TRAIN, TEST = tuple(f"data_batch_{number}" for number in range(1, 6)), "test_batch"
VALIDATION_SHARE = 0.1
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Those of the published runs.
GREY = {"mean": [122.6 / 255], "std": [61.0 / 255]}
COLOUR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.243, 0.261]}
PAD = 4  # of the augmentation
ALLOWED = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
           ("numpy", "dtype")}


@dataclass(frozen=True)
class ImageData:
    """path: the folder of either kind, or the one that it lies in. colour: three channels, or one of grey."""

    __pydantic_config__ = {"extra": "forbid"}

    path: str
    task: Literal["image"] = "image"
    colour: bool = False
    cache: str | None = None


def prepare(data: ImageData) -> LabelledData:
    """45,000, 5,000 and 10,000 images, uint8 [N, C, 32, 32], split as in the published runs. Raises UserError for files
    that are missing or not what they should be."""
    folder, read, suffix = _find(data.path)
    files = {name: TextFile(str(folder / (name + suffix)), folder / (name + suffix)) for name in (*TRAIN, TEST)}
    missing = [file.name for file in files.values() if not file.path.is_file()]
    if missing:
        raise UserError(f"{', '.join(missing)} not found; unpack CIFAR-10 again")
    source = ["image", FORMAT, data.colour, [file.signature() for file in files.values()]]
    return image_data(cached(data.cache, source, lambda writer: _write(writer, files, read, data.colour)))


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


def _find(path: str) -> tuple[Path, Callable[[Path], tuple[np.ndarray, np.ndarray]], str]:
    outer = Path(path).expanduser()
    for folder in (outer, outer / "cifar-10-batches-bin", outer / "cifar-10-batches-py"):
        for read, suffix in ((_read_binary, ".bin"), (_read_pickle, "")):
            if (folder / (TRAIN[0] + suffix)).is_file():
                return folder, read, suffix
    raise UserError(f"path {path} has no {TRAIN[0]}.bin and no {TRAIN[0]}; name the folder cifar-10-batches-bin or "
                    "cifar-10-batches-py of CIFAR-10")


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.fromfile(path, dtype=np.uint8)
    if content.size == 0 or content.size % (1 + PIXELS):
        raise UserError(f"{path} must hold records of {1 + PIXELS} bytes; it has {content.size} bytes")
    records = content.reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels, labels = content[b"data"], np.array(content[b"labels"], dtype=np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
            raise ValueError(f"{len(labels)} labels and data of {pixels.dtype} {pixels.shape}")
    except (pickle.UnpicklingError, ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError) as error:
        raise UserError(f"{path} is not a batch of CIFAR-10: {error}") from None
    return pixels, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays and plain data; whatever else a pickle asks for is refused, not run."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _write(writer: EntryWriter, files: dict[str, TextFile], read: Callable[[Path], tuple[np.ndarray, np.ndarray]],
           colour: bool) -> dict:
    def load(*names: str) -> tuple[np.ndarray, np.ndarray]:
        parts = [read(files[name].path) for name in names]
        for name, (_, labels) in zip(names, parts):
            if not ((labels >= 0) & (labels < len(CLASSES))).all():
                raise UserError(f"{files[name].name} has labels that are not from 0 to {len(CLASSES) - 1}")
        pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *SHAPE)
        return pixels if colour else to_grey(pixels), np.concatenate([labels for _, labels in parts])

    images, labels = load(*TRAIN)
    train = int(len(images) * (1 - VALIDATION_SHARE))
    for split, chosen in zip(("train", "validation"), random_split(len(images), [train, len(images) - train])):
        writer.append(f"{split}/images", images[chosen])
        writer.append(f"{split}/labels", labels[chosen])
    images, labels = load(TEST)
    writer.append("test/images", images)
    writer.append("test/labels", labels)
    return {"classes": list(CLASSES), **(COLOUR if colour else GREY)}
