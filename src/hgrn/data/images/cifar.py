"""CIFAR-10 and CIFAR-100 in their two published formats, binary and Python pickle.

A pickle is a program; `plain_pickle` reads one of plain data, and runs nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrn.data.images.plain_pickle import load_plain_pickle
from hgrn.data.images.source import TensorSource, check_labels
from hgrn.errors import UserError
from hgrn.untrusted import read_bytes

SIZE = 32
PIXELS = 3 * SIZE * SIZE
LARGEST_NAMES = 1 << 20  # bytes of a file of names


@dataclass(frozen=True)
class Layout:
    """The files of one published form.

    names: the file with the names of the classes. label_bytes: how many bytes come before the
    pixels of a binary record; the last of them is the label. labels_key, names_key: where a pickle
    has labels and names; empty for the binary form.
    """

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
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
        names="batches.meta.txt",
        classes=10,
    ),
    Layout(
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        names="batches.meta",
        classes=10,
        labels_key=b"labels",
        names_key=b"label_names",
    ),
)
CIFAR100 = (
    Layout(
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        names="fine_label_names.txt",
        classes=100,
        label_bytes=2,  # the coarse label, then the fine one
    ),
    Layout(
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        names="meta",
        classes=100,
        labels_key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
)
# What `batches.meta` says; the arena reads copies without that file.
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def open_cifar(folder: Path, split: str) -> TensorSource:
    """The "train" (all of it) or "test" part, with the class names of the files.

    folder: one of the published folders, or the folder it is in. Raises UserError if there is none,
    or if a file is missing or damaged.
    """
    layouts = (*CIFAR10, *CIFAR100)
    for place, layout in find_layouts(folder, layouts):
        if (place / layout.names).is_file():
            return read_split(place, layout, split, _names(place, layout))
    names = ", ".join(layout.folder for layout in layouts)
    raise UserError(f"{folder} holds no CIFAR: there must be {names}, or the files of one")


def find_layouts(folder: Path, layouts: tuple[Layout, ...]) -> Iterable[tuple[Path, Layout]]:
    """Where training files of these layouts are, in the folder itself or in a published folder."""
    for place in (folder, *(folder / layout.folder for layout in layouts)):
        for layout in layouts:
            if (place / layout.train[0]).is_file():
                yield place, layout


def read_split(folder: Path, layout: Layout, split: str, classes: Iterable[str]) -> TensorSource:
    """The "train" or "test" part of a folder whose layout is known, uint8 [N, 3, 32, 32].

    Raises UserError for a damaged file and for a label that is out of range.
    """
    read = _read_pickle if layout.labels_key else _read_binary
    images = []
    labels = []
    for name in layout.train if split == "train" else layout.test:
        pixels, numbers = read(folder / name, layout)
        check_labels(str(folder / name), numbers, layout.classes)
        images.append(pixels)
        labels.append(numbers)
    return TensorSource(
        f"{folder} {split}",
        torch.from_numpy(np.concatenate(images).reshape(-1, 3, SIZE, SIZE)),
        torch.from_numpy(np.concatenate(labels)),
        list(classes),
    )


def _read_binary(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, 3072], red, then green, then blue, and labels int64 [N], of one file."""
    record = layout.label_bytes + PIXELS
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if data.size == 0 or data.size % record:
        raise UserError(
            f"{path} is truncated: {data.size} bytes are not whole records of {record}; fetch it "
            "again"
        )
    data = data.reshape(-1, record)
    return data[:, layout.label_bytes :], data[:, layout.label_bytes - 1].astype(np.int64)


def _read_pickle(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """As `_read_binary`, of a pickle."""
    content = _dictionary(path)
    key = layout.labels_key
    if b"data" not in content or key not in content:
        raise UserError(f"{path} must be a dictionary with data and {key.decode()}")
    images = content[b"data"]
    labels: Any = content[key]
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 2
        or images.shape[1] != PIXELS
    ):
        raise UserError(f"{path}: data must be uint8 [N, {PIXELS}], 3 channels of 32 x 32")
    # The published files have a list; an array of numbers says the same.
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    fits = isinstance(labels, list) and len(labels) == len(images)
    if not fits or not all(type(label) is int and abs(label) < 2**63 for label in labels):
        raise UserError(
            f"{path}: {key.decode()} must be {len(images)} integers, one for each image"
        )
    return images, np.array(labels, dtype=np.int64)


def _dictionary(path: Path) -> dict[object, object]:
    """The dictionary in a pickle, with byte strings as keys: Python 3 may have written text."""
    content = load_plain_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a dictionary; it is a {type(content).__name__.strip('_')}")
    return {
        key.encode("utf-8", "replace") if isinstance(key, str) else key: value
        for key, value in content.items()
    }


def _names(folder: Path, layout: Layout) -> list[str]:
    """The names of the classes. Raises UserError unless there are as many as the layout has."""
    path = folder / layout.names
    try:
        if layout.names_key:
            found = _dictionary(path).get(layout.names_key)
            listed: list[Any] = found if isinstance(found, list) else []
            names = [name.decode() if isinstance(name, bytes) else name for name in listed]
        else:
            names = read_bytes(path, LARGEST_NAMES).decode().split()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must name the classes in UTF-8: {error}") from None
    if len(names) != layout.classes or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} must name {layout.classes} classes; it names {len(names)}")
    return names
