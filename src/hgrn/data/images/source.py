"""A set of labelled images: a length, class names, and images by index."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch

from hgrn.data.shuffle import shuffled
from hgrn.errors import UserError


class CorruptImage(Exception):
    """One image that cannot be decoded. name: where it is; reason: what is wrong with it."""

    def __init__(self, name: str, reason: str):
        # Both go to Exception, so that the error can be pickled on its way out of a worker process.
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class ImageSource:
    """A base for splits of labelled images.

    name: what messages call the split. classes: the names of the classes, by label. channels: 1 or
    3.
    """

    name: str
    classes: list[str]
    channels: int

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        """Image uint8 [C, H, W] and its label. Raises CorruptImage if it cannot be decoded."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A text that changes when the images or labels do."""
        raise NotImplementedError

    def order(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The images at some positions of an epoch's order, int64.

        The order is that of `shuffled`, unless a subclass has one that is faster to read.
        """
        return shuffled(positions, len(self), seed, epoch)


class TensorSource(ImageSource):
    """Images of one size, all in memory: images uint8 [N, C, H, W], labels int64 [N]."""

    def __init__(
        self, name: str, images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
    ):
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                f"{name}: images must be uint8 [N, C, H, W] with 1 or 3 channels; got "
                f"{images.dtype} {list(images.shape)}"
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

    def part(self, name: str, start: int, stop: int) -> "TensorSource":
        """Images start to stop, in memory shared with the whole."""
        return TensorSource(name, self.images[start:stop], self.labels[start:stop], self.classes)

    def fingerprint(self) -> str:
        # Of all pixels, since they are in memory anyway.
        digest = hashlib.sha256(json.dumps([list(self.images.shape), self.classes]).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


class Subset(ImageSource):
    """Some images of another source: indices int64 [n], ascending for quick reading."""

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

    def fingerprint(self) -> str:
        whole = self.whole.fingerprint().encode()
        return hashlib.sha256(whole + self.indices.tobytes()).hexdigest()


def check_labels(name: str, labels: np.ndarray, classes: int) -> None:
    """Raises UserError unless every label is in [0, classes)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise UserError(
            f"{name}: label {labels[wrong[0]]} of image {wrong[0]} is out of range; {classes} "
            f"classes have labels 0 to {classes - 1}"
        )


def hold_out(source: ImageSource, count: int, validation: bool) -> Subset:
    """The `count` images that are kept for validation, or all the others.

    Raises UserError if there are not more than `count` images.
    """
    if not 0 < count < len(source):
        raise UserError(
            f"{source.name} has no validation split, and validation: {count} images cannot be held "
            f"out of {len(source)}; give a number between 1 and {len(source) - 1}"
        )
    # A fixed seed: every run, whatever its own seed, holds out the same images.
    held = np.sort(shuffled(np.arange(count), len(source), seed=0, epoch=0))
    kept = held if validation else np.setdiff1d(np.arange(len(source)), held)
    return Subset(f"{source.name} ({'validation' if validation else 'train'})", source, kept)
