"""CIFAR-10 and CIFAR-100 in their two published formats, binary and Python pickle.

A pickle is a program. The reader here runs only one that builds dictionaries, lists, strings, numbers and
numpy arrays; anything else is refused before it is called.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrn.data.images.source import TensorSource
from hgrn.errors import UserError

PIXELS = 3 * 32 * 32


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
    Layout("cifar-10-batches-bin", tuple(f"data_batch_{n}.bin" for n in range(1, 6)), ("test_batch.bin",), "batches.meta.txt", 10),
    Layout("cifar-10-batches-py", tuple(f"data_batch_{n}" for n in range(1, 6)), ("test_batch",), "batches.meta", 10,
           labels_key=b"labels", names_key=b"label_names"),
)  # fmt: skip
LAYOUTS = (
    *CIFAR10,
    Layout("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", 100, label_bytes=2),
    Layout("cifar-100-python", ("train",), ("test",), "meta", 100, labels_key=b"fine_labels", names_key=b"fine_label_names"),
)  # fmt: skip


def open_cifar(folder: Path, split: str) -> TensorSource:
    """The "train" (all of it) or "test" part. folder: one of the published folders, or the folder it is in."""
    layout, folder = _layout(folder)
    parts = [read_batch(folder / file, layout) for file in getattr(layout, split)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    source = f"{folder} {split}"
    return TensorSource(source, torch.from_numpy(images.reshape(-1, 3, 32, 32)), torch.from_numpy(labels), _names(folder, layout))


def read_batch(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """One file: pixels uint8 [N, 3072], red, then green, then blue, and labels int64 [N]. Raises UserError if it is damaged."""
    return (_read_pickle if layout.labels_key else _read_binary)(path, layout)


def load_plain_pickle(path: Path) -> Any:
    """What a pickle of plain data holds, strings of Python 2 as bytes. Raises UserError for one that is not plain."""
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged pickle fails in any way: EOFError, IndexError, ValueError, KeyError, ...
        raise UserError(f"{path} is not a whole pickle: {type(error).__name__}: {error}; fetch it again") from None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _allowed().get((module.replace("numpy.core", "numpy._core"), name))
        if found is None:
            raise UserError(f"the pickle asks for {module}.{name}, which plain data never needs; it was not run. "
                            "Get the file from its publisher, or use the binary version")
        return found


def _allowed() -> dict[tuple[str, str], Callable]:
    import numpy._core.multiarray as multiarray
    import numpy._core.numeric as numeric

    return {
        ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
        ("numpy._core.numeric", "_frombuffer"): numeric._frombuffer,
        ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _encode_latin1,
    }  # fmt: skip


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Python 3 writes bytes in this way for old readers; other codecs decompress or look modules up."""
    if encoding not in ("latin1", "latin-1"):
        raise UserError(f"the pickle asks for the codec {encoding!r}; only latin1 is plain data")
    return text.encode("latin1")


def _layout(folder: Path) -> tuple[Layout, Path]:
    for place in (folder, *(folder / layout.folder for layout in LAYOUTS)):
        for layout in LAYOUTS:
            if (place / layout.train[0]).is_file() and (place / layout.names).is_file():
                return layout, place
    raise UserError(f"{folder} holds no CIFAR: there must be {', '.join(layout.folder for layout in LAYOUTS)}, or the files of one")


def _read_binary(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    record = layout.label_bytes + PIXELS
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if data.size == 0 or data.size % record:
        raise UserError(f"{path} is truncated: {data.size} bytes are not whole records of {record}; fetch it again")
    data = data.reshape(-1, record)
    return data[:, layout.label_bytes :], data[:, layout.label_bytes - 1].astype(np.int64)


def _read_pickle(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    content = load_plain_pickle(path)
    key = layout.labels_key
    if not isinstance(content, dict) or b"data" not in content or key not in content:
        raise UserError(f"{path} must be a dictionary with data and {key.decode()}")
    images, labels = content[b"data"], np.asarray(content[key])
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != PIXELS:
        raise UserError(f"{path}: data must be uint8 [N, {PIXELS}], 3 channels of 32 x 32")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: {key.decode()} must be {len(images)} integers, one for each image")
    return images, labels.astype(np.int64)


def _names(folder: Path, layout: Layout) -> list[str]:
    path = folder / layout.names
    if layout.names_key:
        content = load_plain_pickle(path)
        names = content.get(layout.names_key, []) if isinstance(content, dict) else []
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    else:
        names = path.read_text().split()
    if len(names) != layout.classes:
        raise UserError(f"{path} must name {layout.classes} classes; it names {len(names)}")
    return names
