"""IDX files, as MNIST and Fashion-MNIST are published: four bytes of type and rank, sizes, then the values."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from hgrn.data.images.source import TensorSource
from hgrn.errors import UserError

UNSIGNED_BYTES = 0x08
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
DIGITS = [str(digit) for digit in range(10)]
STEMS = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an idx file, plain or gzip. Raises UserError for any other content."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; the file may be truncated, fetch it again") from None
    if len(data) < 4 or data[:2] != b"\0\0":
        raise UserError(f"{path} is not an idx file: it must start with two zero bytes")
    kind, rank = data[2], data[3]
    if kind != UNSIGNED_BYTES:
        raise UserError(f"{path} holds values of type 0x{kind:02x}; only unsigned bytes (0x08) are read")
    start = 4 + 4 * rank
    if len(data) < start:
        raise UserError(f"{path} is truncated: it ends within its header")
    shape = struct.unpack(f">{rank}I", data[4:start])
    expected = int(np.prod(shape, dtype=np.int64))
    if len(data) - start != expected:
        problem = "is truncated" if len(data) - start < expected else "is longer than it should be"
        raise UserError(f"{path} {problem}: {shape} needs {expected} bytes, and it has {len(data) - start}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def open_idx(folder: Path, split: str, classes: list[str] | None = None) -> TensorSource:
    """The "train" (all of it) or "test" part of a folder with the four published files, plain or .gz.

    classes: names; None takes those of `idx_classes`.
    """
    images = read_idx(_find(folder, f"{STEMS[split]}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, f"{STEMS[split]}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1:
        raise UserError(f"{folder}: images must be idx3 [N, H, W] and labels idx1 [N]; got {list(images.shape)} and "
                        f"{list(labels.shape)}")
    if classes is None:
        classes = idx_classes(folder)
    pixels = torch.from_numpy(images.copy()).unsqueeze(1)  # a copy: the file's bytes are read-only
    return TensorSource(f"{folder} {split}", pixels, torch.from_numpy(labels.astype(np.int64)), classes)


def idx_classes(folder: Path) -> list[str]:
    """Fashion-MNIST's if the folder's name says so, digits otherwise: the files do not tell."""
    return FASHION if "fashion" in folder.resolve().name.lower() else DIGITS


def idx_files(folder: Path) -> list[Path]:
    """The four files of a folder. Raises UserError where one is missing."""
    return [_find(folder, f"{stem}-{kind}-ubyte") for stem in STEMS.values() for kind in ("images-idx3", "labels-idx1")]


def _find(folder: Path, stem: str) -> Path:
    # Some copies are named train-images.idx3-ubyte.
    names = [f"{form}{suffix}" for form in (stem, stem.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no {stem} (plain or .gz); an idx folder holds train- and t10k- images and labels")
