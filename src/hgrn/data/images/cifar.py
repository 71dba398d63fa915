"""CIFAR-10 and CIFAR-100 in their two published formats, binary and Python pickle.

A pickle is a program; `plain_pickle` reads one of plain data, and runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hgrn.data.images.plain_pickle import load_plain_pickle
from hgrn.data.images.source import TensorSource
from hgrn.errors import UserError
from hgrn.untrusted import read_bytes

PIXELS = 3 * 32 * 32
LARGEST_NAMES = 1 << 20  # bytes of a file of names


@dataclass(frozen=True)
class Layout:
    """Files of one published form. label_bytes: how many come before the pixels; the last of them counts."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    classes: int
    label_bytes: int = 1
    labels_key: bytes = b""
    names_key: bytes = b""


CIFAR10 = (
    Layout(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
        10,
    ),
    Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{n}" for n in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        10,
        labels_key=b"labels",
        names_key=b"label_names",
    ),
)
LAYOUTS = (
    *CIFAR10,
    Layout(
        "cifar-100-binary",
        ("train.bin",),
        ("test.bin",),
        "fine_label_names.txt",
        100,
        label_bytes=2,
    ),
    Layout(
        "cifar-100-python",
        ("train",),
        ("test",),
        "meta",
        100,
        labels_key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
)


def open_cifar(folder: Path, split: str) -> TensorSource:
    """The "train" (all of it) or "test" part. folder: one of the published folders, or the folder it is in."""
    layout, folder = _layout(folder)
    parts = [read_batch(folder / file, layout) for file in getattr(layout, split)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    source = f"{folder} {split}"
    return TensorSource(
        source,
        torch.from_numpy(images.reshape(-1, 3, 32, 32)),
        torch.from_numpy(labels),
        _names(folder, layout),
    )


def read_batch(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """One file: pixels uint8 [N, 3072], red, then green, then blue, and labels int64 [N]. Raises UserError if it is damaged."""
    return (_read_pickle if layout.labels_key else _read_binary)(path, layout)


def _layout(folder: Path) -> tuple[Layout, Path]:
    for place in (folder, *(folder / layout.folder for layout in LAYOUTS)):
        for layout in LAYOUTS:
            if (place / layout.train[0]).is_file() and (place / layout.names).is_file():
                return layout, place
    raise UserError(
        f"{folder} holds no CIFAR: there must be {', '.join(layout.folder for layout in LAYOUTS)}, or the files of one"
    )


def _read_binary(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    record = layout.label_bytes + PIXELS
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if data.size == 0 or data.size % record:
        raise UserError(
            f"{path} is truncated: {data.size} bytes are not whole records of {record}; fetch it again"
        )
    data = data.reshape(-1, record)
    return data[:, layout.label_bytes :], data[:, layout.label_bytes - 1].astype(np.int64)


def _read_pickle(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    content = _dictionary(path)
    key = layout.labels_key
    if b"data" not in content or key not in content:
        raise UserError(f"{path} must be a dictionary with data and {key.decode()}")
    images = content[b"data"]
    labels = content[key]
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 2
        or images.shape[1] != PIXELS
    ):
        raise UserError(f"{path}: data must be uint8 [N, {PIXELS}], 3 channels of 32 x 32")
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    fits = isinstance(labels, list) and len(labels) == len(images)
    if not fits or not all(type(label) is int and abs(label) < 2**63 for label in labels):
        raise UserError(
            f"{path}: {key.decode()} must be {len(images)} integers, one for each image"
        )
    return images, np.array(labels, dtype=np.int64)


def _dictionary(path: Path) -> dict[bytes, object]:
    """The dictionary in a pickle. Python 3 may have written its keys as text."""
    content = load_plain_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a dictionary; it is a {type(content).__name__.strip('_')}")
    return {
        key.encode("utf-8", "replace") if isinstance(key, str) else key: value
        for key, value in content.items()
    }


def _names(folder: Path, layout: Layout) -> list[str]:
    path = folder / layout.names
    try:
        if layout.names_key:
            found = _dictionary(path).get(layout.names_key)
            found = found if isinstance(found, list) else []
            names = [name.decode() if isinstance(name, bytes) else name for name in found]
        else:
            names = read_bytes(path, LARGEST_NAMES).decode().split()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must name the classes in UTF-8: {error}") from None
    if len(names) != layout.classes or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} must name {layout.classes} classes; it names {len(names)}")
    return names
