"""Folders of image files: one folder for each class, and ImageNet-1k as it is usually laid out."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import torch

from hgrn.data.images.decoding import SUFFIXES, decode
from hgrn.data.images.source import CorruptImage
from hgrn.data.shuffle import shuffled
from hgrn.errors import UserError

IMAGENET_CLASSES = 1000
WNID = re.compile(r"n\d{8}")


class FolderSource:
    """folder/CLASS/**/*.jpg (.jpeg, .png, .webp); classes are the folders' names, sorted. Hidden files are left out.

    classes: None takes those of the folder; else (for another split) they must be these.
    """

    def __init__(self, folder: Path, channels: int, classes: list[str] | None = None):
        self.name = str(folder)
        self.channels = channels
        self.folder = folder
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not a folder; it must hold one folder of images for each class"
            )
        found = sorted(
            child.name
            for child in folder.iterdir()
            if child.is_dir() and not child.name.startswith(".")
        )
        if not found:
            flat = any(child.suffix.lower() in SUFFIXES for child in folder.iterdir())
            raise UserError(
                f"{folder} has no classes: it must hold one folder of images for each class"
                + (
                    ", and its images lie side by side; move each into the folder of its class"
                    if flat
                    else ""
                )
            )
        if classes is not None and found != classes:
            odd = sorted(set(found) ^ set(classes))
            raise UserError(
                f"{folder} has other classes than the training set: {', '.join(odd[:5])} in one of them only"
            )
        self.classes = found
        files = [_images(folder / name) for name in found]
        for name, inside in zip(found, files):
            if not inside:
                raise UserError(
                    f"class folder {folder / name} has no {', '.join(SUFFIXES)} files; add some, or remove it"
                )
        self.files = np.array(
            [file for inside in files for file in inside]
        )  # one block of memory for all workers
        self.labels = np.repeat(np.arange(len(found)), [len(inside) for inside in files])

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.folder / str(self.files[index])
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorruptImage(str(path), error.strerror or str(error)) from None
        return decode(data, str(path), self.channels), int(self.labels[index])

    def order(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        return shuffled(positions, len(self), seed, epoch)

    def fingerprint(self) -> str:
        """Of names, classes and the sizes of files; the pixels of a large set are not read."""
        digest = hashlib.sha256(str(self.channels).encode())
        for file in self.files.tolist():
            digest.update(f"{file}\0{(self.folder / file).stat().st_size}\0".encode())
        return digest.hexdigest()


def check_imagenet(source: FolderSource) -> FolderSource:
    """The source, if its classes are the 1000 of ImageNet-1k by their WordNet names."""
    odd = [name for name in source.classes if not WNID.fullmatch(name)]
    if odd or len(source.classes) != IMAGENET_CLASSES:
        detail = f"{odd[0]} is not such a name" if odd else f"there are {len(source.classes)}"
        raise UserError(
            f"{source.name} must hold the {IMAGENET_CLASSES} folders n01440764 to n15075141 of ImageNet-1k; {detail}. "
            "For other folders of classes use format: folder"
        )
    return source


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split: its name, or val for validation; None if there is none."""
    names = {"validation": ("validation", "val", "valid")}.get(split, (split,))
    return next((root / name for name in names if (root / name).is_dir()), None)


def _images(folder: Path) -> list[str]:
    """Paths of the images at any depth, from the folder's parent, sorted."""
    inside = (
        path.relative_to(folder.parent)
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
    )
    return sorted(
        str(path) for path in inside if not any(part.startswith(".") for part in path.parts)
    )
