"""What every set of labelled images is to the rest of the package: a length, class names, images by index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from hgrn.data.shuffle import shuffled
from hgrn.errors import UserError


class CorruptImage(Exception):
    """One image that cannot be decoded. name: where it is; reason: what is wrong with it."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that it survives the way out of a worker process
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class ImageSource(Protocol):
    """A split of labelled images. name is what messages call it; channels is 1 or 3."""

    name: str
    classes: list[str]
    channels: int

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        """Image uint8 [C, H, W] and its label. Raises CorruptImage for one that cannot be decoded."""

    def order(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The images at positions of an epoch's order, int64, as `shuffled`; reading may prefer another."""

    def fingerprint(self) -> str:
        """Changes when the images or labels do."""


class TensorSource:
    """Images of one size, held whole: images uint8 [N, C, H, W], labels int64 [N]."""

    def __init__(
        self, name: str, images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
    ):
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                f"{name}: images must be uint8 [N, C, H, W] with 1 or 3 channels; got {images.dtype} "
                f"{list(images.shape)}"
            )
        if len(images) != len(labels):
            raise UserError(
                f"{name} has {len(images)} images and {len(labels)} labels; they must be as many"
            )
        if len(images) == 0:
            raise UserError(f"{name} holds no images")
        check_labels(name, labels.numpy(), len(classes))
        self.name = name
        self.images = images
        self.labels = labels.long()
        self.classes = list(classes)
        self.channels = images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.labels[index])

    def order(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        return shuffled(positions, len(self), seed, epoch)

    def part(self, name: str, start: int, stop: int) -> TensorSource:
        """Images start to stop, in memory shared with the whole."""
        return TensorSource(name, self.images[start:stop], self.labels[start:stop], self.classes)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([list(self.images.shape), self.classes]).encode())
        digest.update(self.images.contiguous().numpy())
        digest.update(self.labels.contiguous().numpy())
        return digest.hexdigest()


class Subset:
    """Chosen images of another source: indices int64 [n], ascending for quick reading."""

    def __init__(self, name: str, whole: ImageSource, indices: np.ndarray):
        if len(indices) == 0:
            raise UserError(f"{name} holds no images")
        self.name = name
        self.whole = whole
        self.indices = indices
        self.classes = whole.classes
        self.channels = whole.channels

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        return self.whole.read(int(self.indices[index]))

    def order(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        return shuffled(positions, len(self), seed, epoch)

    def fingerprint(self) -> str:
        return hashlib.sha256(
            self.whole.fingerprint().encode() + self.indices.tobytes()
        ).hexdigest()


def check_labels(name: str, labels: np.ndarray, classes: int) -> None:
    """Raises UserError unless every label is in [0, classes)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise UserError(
            f"{name}: label {labels[wrong[0]]} of image {wrong[0]} is out of range; {classes} classes have labels "
            f"0 to {classes - 1}"
        )


def hold_out(source: ImageSource, count: int, validation: bool) -> Subset:
    """The count images kept for validation, or all the others: drawn once, the same in every run."""
    if not 0 < count < len(source):
        raise UserError(
            f"{source.name} has no validation split, and validation: {count} images cannot be held out of "
            f"{len(source)}; give a number between 1 and {len(source) - 1}"
        )
    held = np.sort(shuffled(np.arange(count), len(source), seed=0, epoch=0))
    kept = held if validation else np.setdiff1d(np.arange(len(source)), held)
    return Subset(f"{source.name} ({'validation' if validation else 'train'})", source, kept)
