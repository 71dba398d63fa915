"""IDX files, the format of MNIST and Fashion-MNIST.

A file has two zero bytes, a byte for the type, a byte for the rank, the sizes as big-endian 32-bit
numbers, then the values.
"""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import torch

from hgrn.data.images.source import TensorSource
from hgrn.errors import UserError

UNSIGNED_BYTES = 0x08
LARGEST = 1 << 31  # bytes of values; the largest published file, of EMNIST, has 547 million
MOST_EXAMPLES = 10_000_000
LARGEST_RANK = 4
BLOCK = 1 << 20  # bytes read at a time
FASHION = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]
DIGITS = [str(digit) for digit in range(10)]
STEMS = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an idx file, plain or gzip.

    Decompresses no more than the header announces, at most `LARGEST` bytes. Raises UserError for
    any other content.
    """
    try:
        with open(path, "rb") as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if is_compressed else open)(path, "rb") as stream:
            shape = _read_shape(path, stream)
            data = _read_values(stream, prod(shape))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read: {error}; the file may be truncated, fetch it again"
        ) from None
    expected = prod(shape)
    if len(data) < expected:
        raise UserError(
            f"{path} is truncated: {shape} needs {expected} bytes, and it has {len(data)}; "
            "fetch it again"
        )
    if len(data) > expected:
        raise UserError(
            f"{path} is longer than it should be: {shape} needs {expected} bytes, and it has more; "
            "fetch it again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_shape(path: Path, stream: IO[bytes] | gzip.GzipFile) -> tuple[int, ...]:
    """Read and check the header; return the sizes. Leaves the stream at the first value."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise UserError(f"{path} is not an idx file: it must start with two zero bytes")
    kind = start[2]
    rank = start[3]
    if kind != UNSIGNED_BYTES:
        raise UserError(
            f"{path} holds values of type 0x{kind:02x}; only unsigned bytes (0x08) are read"
        )
    if not 1 <= rank <= LARGEST_RANK:
        raise UserError(f"{path} holds an array of {rank} axes; images have 3 and labels 1")
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise UserError(f"{path} is truncated: it ends within its header")
    shape = struct.unpack(f">{rank}I", sizes)
    if shape[0] > MOST_EXAMPLES or prod(shape) > LARGEST:
        raise UserError(
            f"{path} announces an array of {' x '.join(map(str, shape))}; at most "
            f"{MOST_EXAMPLES:,} examples and {LARGEST:,} bytes are read"
        )
    if 0 in shape:
        raise UserError(f"{path} holds no values: its sizes are {' x '.join(map(str, shape))}")
    return shape


def _read_values(stream: IO[bytes] | gzip.GzipFile, expected: int) -> bytearray:
    """The values, and one byte more if there is one, which shows that the file is too long."""
    # In blocks, because a damaged header can announce far more than the file has.
    data = bytearray()
    while block := stream.read(min(BLOCK, expected + 1 - len(data))):
        data += block
    return data


def open_idx(folder: Path, split: str, classes: list[str] | None = None) -> TensorSource:
    """The "train" (all of it) or "test" part of a folder with the four files, plain or .gz.

    classes: their names; None takes those of `idx_classes`. Raises UserError if a file is missing
    or damaged, or if images and labels do not fit each other.
    """
    images = read_idx(_find(folder, f"{STEMS[split]}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, f"{STEMS[split]}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1:
        raise UserError(
            f"{folder}: images must be idx3 [N, H, W] and labels idx1 [N]; got "
            f"{list(images.shape)} and {list(labels.shape)}"
        )
    if classes is None:
        classes = idx_classes(folder)
    pixels = torch.from_numpy(images).unsqueeze(1)
    return TensorSource(
        f"{folder} {split}", pixels, torch.from_numpy(labels.astype(np.int64)), classes
    )


def idx_classes(folder: Path) -> list[str]:
    """Class names. The files have none, so they are Fashion-MNIST's if the folder's name says so,
    and digits otherwise."""
    return FASHION if "fashion" in folder.resolve().name.lower() else DIGITS


def idx_files(folder: Path) -> list[Path]:
    """The four files of a folder. Raises UserError where one is missing."""
    return [
        _find(folder, f"{stem}-{kind}-ubyte")
        for stem in STEMS.values()
        for kind in ("images-idx3", "labels-idx1")
    ]


def _find(folder: Path, stem: str) -> Path:
    # Some copies are named train-images.idx3-ubyte.
    names = [
        f"{form}{suffix}" for form in (stem, stem.replace("-idx", ".idx")) for suffix in ("", ".gz")
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} has no {stem} (plain or .gz); an idx folder holds train- and t10k- images and "
        "labels"
    )
