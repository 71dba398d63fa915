"""Folders of image files: one folder for each class, and ImageNet-1k as it is usually laid out."""

import hashlib
import re
from pathlib import Path

import numpy as np
import torch

from hgrn.data.images.decoding import SUFFIXES, decode
from hgrn.data.images.source import CorruptImage, ImageSource
from hgrn.errors import UserError

IMAGENET_CLASSES = 1000
WNID = re.compile(r"n\d{8}")  # a class of ImageNet, by its WordNet number


class FolderSource(ImageSource):
    """The images folder/CLASS/**/*.jpg (.jpeg, .png, .webp), without hidden files.

    Classes are the names of the folders, sorted. classes: None takes them as they are; otherwise
    they must be these, as those of a second split must be those of the training set.
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
            message = f"{folder} has no classes: it must hold one folder of images for each class"
            if any(child.suffix.lower() in SUFFIXES for child in folder.iterdir()):
                message += (
                    ", and its images lie side by side; move each into the folder of its class"
                )
            raise UserError(message)
        if classes is not None and found != classes:
            odd = sorted(set(found) ^ set(classes))
            raise UserError(
                f"{folder} has other classes than the training set: {', '.join(odd[:5])} in one "
                "of them only"
            )
        self.classes = found
        files = [_images(folder / name) for name in found]
        for name, inside in zip(found, files):
            if not inside:
                raise UserError(
                    f"class folder {folder / name} has no {', '.join(SUFFIXES)} files; add some, "
                    "or remove it"
                )
        # An array is one block of memory that all workers share; each would copy a list.
        self.files = np.array([file for inside in files for file in inside])
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

    def fingerprint(self) -> str:
        """A hash of channels, names and sizes; reading all pixels of a large set takes too long."""
        digest = hashlib.sha256(str(self.channels).encode())
        for file in self.files.tolist():
            digest.update(f"{file}\0{(self.folder / file).stat().st_size}\0".encode())
        return digest.hexdigest()


def check_imagenet(source: FolderSource) -> FolderSource:
    """Return the source. Raises UserError unless its classes are the 1000 of ImageNet-1k."""
    odd = [name for name in source.classes if not WNID.fullmatch(name)]
    if odd or len(source.classes) != IMAGENET_CLASSES:
        detail = f"{odd[0]} is not such a name" if odd else f"there are {len(source.classes)}"
        raise UserError(
            f"{source.name} must hold the {IMAGENET_CLASSES} folders n01440764 to n15075141 of "
            f"ImageNet-1k; {detail}. For other folders of classes use format: folder"
        )
    return source


def split_folder(root: Path, split: str) -> Path | None:
    """The folder called as the split (validation: also val or valid), or None."""
    names = {"validation": ("validation", "val", "valid")}.get(split, (split,))
    return next((root / name for name in names if (root / name).is_dir()), None)


def _images(folder: Path) -> list[str]:
    """Paths of the images at any depth, relative to the folder's parent, sorted."""
    inside = (
        path.relative_to(folder.parent)
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
    )
    # Files such as .ipynb_checkpoints/a.png are nobody's images.
    return sorted(
        str(path) for path in inside if not any(part.startswith(".") for part in path.parts)
    )
