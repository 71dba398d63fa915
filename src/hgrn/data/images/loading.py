"""Batches of images: read, decoded in worker processes if asked, augmented, and mixed.

The order depends on the sampler's position alone, so a run can be resumed.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hgrn.data.images.augment import EvaluationTransform, TrainingTransform
from hgrn.data.images.mixing import Mixing, mix
from hgrn.data.images.sampling import ImageSampler
from hgrn.data.images.source import CorruptImage, ImageSource, TensorSource
from hgrn.data.labelled import LabelledBatch
from hgrn.data.shuffle import hashed
from hgrn.errors import UserError

logger = logging.getLogger(__name__)

# Part of a seed, so that the three kinds of draws at a position are independent.
FITTING = 0
AUGMENTING = 1
MIXING = 2

UNMIXED = Mixing()


@dataclass(frozen=True, eq=False)
class ImageBatch(LabelledBatch):
    """A batch for a classifier of images.

    images: float32 [B, C, S, S], normalised. labels: int64 [B]. mixed: targets float32 [B, K] if
    the images are mixed or the labels smoothed, else None.
    """

    images: torch.Tensor
    labels: torch.Tensor
    mixed: torch.Tensor | None = None

    def inputs(self) -> dict[str, torch.Tensor]:
        """The arguments of a model."""
        return {"pixel_values": self.images}

    @property
    def targets(self) -> torch.Tensor:
        """What a loss compares the model's output with: `mixed`, or else the labels."""
        return self.labels if self.mixed is None else self.mixed


class CorruptLimit:
    """Logs each corrupt image once, and raises UserError when there are more than `limit`."""

    def __init__(self, limit: int):
        self.limit = limit
        self.names: set[str] = set()

    def note(self, found: list[tuple[str, str]]) -> None:
        """Log the names and reasons of images that were not logged before."""
        for name, reason in found:
            if name in self.names:
                continue
            self.names.add(name)
            if len(self.names) > self.limit:
                raise UserError(
                    f"more than {self.limit} images cannot be read, the last {name}: {reason}; "
                    "mend or remove them, or raise max_corrupt"
                )
            logger.warning(
                "skipped corrupt image %s: %s (%d of at most %d)",
                name,
                reason,
                len(self.names),
                self.limit,
            )


class ImageLoader:
    """Endless training batches of this rank; the position is that of `ImageSampler`.

    The batch at a position depends on (seed, epoch, index), rank and world alone, not on the number
    of workers or on what was read before. A corrupt image is skipped, and the next readable one
    stands in for it, so every batch has its full size.

    workers: processes that decode, 0 for none. max_corrupt: how many distinct corrupt images are
    allowed. patch: the model's patch size; a smaller image is an error.
    """

    def __init__(
        self,
        sampler: ImageSampler,
        transform: TrainingTransform,
        mixing: Mixing = UNMIXED,
        *,
        workers: int = 0,
        max_corrupt: int = 10,
        patch: int = 1,
        device: torch.device | str = "cpu",
    ):
        if workers < 0:
            raise ValueError(f"workers must be at least 0; got {workers}")
        if found := mixing.problems():
            raise UserError("; ".join(found))
        self.sampler = sampler
        self.transform = transform
        self.mixing = mixing
        self.workers = workers
        self.device = device
        self.corrupt = CorruptLimit(max_corrupt)
        reader = _Reader(sampler.source, transform, patch, max_corrupt)
        self._steps = _Steps(sampler, reader)
        self._ahead: Iterator[_Found] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.sampler.steps_per_epoch

    def next(self) -> ImageBatch:
        """The batch at the position; the position moves on by one.

        Raises UserError for whatever is wrong with the images.
        """
        sampler = self.sampler
        # Workers are started here, not in the constructor: a position may be loaded in between.
        if self._ahead is None:
            self._ahead = self._start()
        found = next(self._ahead)
        if found.error is not None:
            raise UserError(found.error)
        self.corrupt.note(found.corrupt)
        position = (sampler.seed, sampler.epoch, sampler.index, sampler.rank)
        sampler.advance()
        # The rest of the augmentation is done to whole batches, where the model is.
        images = found.images.to(self.device)
        labels = found.labels.to(self.device)
        images = self.transform(images, _seed(*position, AUGMENTING))
        if not (self.mixing.mixup or self.mixing.cutmix or self.mixing.smoothing):
            return ImageBatch(images, labels)
        images, targets = mix(
            images, labels, len(sampler.source.classes), self.mixing, _seed(*position, MIXING)
        )
        return ImageBatch(images, labels, targets)

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch, however far workers have read ahead."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; ValueError if there is none such."""
        self.sampler.load_state_dict(state)
        self._ahead = None  # what workers have read ahead is for other positions

    def close(self) -> None:
        """End the workers; a later `next` starts others."""
        self._ahead = None

    def _start(self) -> "Iterator[_Found]":
        positions = _Positions(self.sampler)
        if self.workers == 0:
            return map(self._steps.__getitem__, positions)
        return iter(
            DataLoader(self._steps, batch_size=None, sampler=positions, num_workers=self.workers)
        )


def evaluation_batches(
    source: ImageSource,
    batch_size: int,
    transform: EvaluationTransform,
    *,
    workers: int = 0,
    max_corrupt: int = 10,
    patch: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Iterator[ImageBatch]:
    """Every image once, in order; this rank takes images rank, rank + world, ...

    batch_size: images of this rank; the last batch may be smaller. Corrupt images are left out, so
    count those that arrive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    corrupt = CorruptLimit(max_corrupt)
    indices = np.arange(rank, len(source), world)
    chunks = _Chunks(indices, batch_size, _Reader(source, transform, patch))
    for found in DataLoader(chunks, batch_size=None, num_workers=workers):
        if found.error is not None:
            raise UserError(found.error)
        corrupt.note(found.corrupt)
        if len(found.labels):
            yield ImageBatch(transform(found.images), found.labels)


class _Found(NamedTuple):
    """What a worker sends: images uint8 [B, C, S, S], labels int64 [B], and what went wrong.

    corrupt: names and reasons of images that were skipped. error: the message of a UserError, which
    ends the run. It travels as text, because an exception that a worker raises arrives with the
    worker's traceback, which is not for the user.
    """

    images: torch.Tensor
    labels: torch.Tensor
    corrupt: list[tuple[str, str]]
    error: str | None = None


class _Positions(Sampler[tuple[int, int]]):
    """The positions (epoch, index) from where a sampler is, without end."""

    def __init__(self, sampler: ImageSampler):
        self.sampler = sampler
        self.start = (sampler.epoch, sampler.index)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start
        while True:
            yield position
            position = self.sampler.after(*position)


@dataclass
class _Reader:
    """Reads, checks and crops images.

    max_corrupt: how many corrupt images in a row the next readable one may stand in for; None
    leaves corrupt ones out.
    """

    source: ImageSource
    transform: TrainingTransform | EvaluationTransform
    patch: int
    max_corrupt: int | None = None

    def read(self, indices: np.ndarray, numbers: tuple[int, ...] = ()) -> _Found:
        """The images at some indices. numbers: what the random crops depend on."""
        source = self.source
        corrupt: list[tuple[str, str]] = []
        rows: list[tuple[torch.Tensor, int]] = []
        try:
            if isinstance(source, TensorSource):
                # All images have one size, so that one draw serves the whole batch; and the source
                # has checked the labels.
                self._check(int(indices[0]), source.images.shape[1:])
                chosen = torch.from_numpy(indices)
                images = self.transform.fit_batch(source.images[chosen], _seed(*numbers))
                return _Found(images, source.labels[chosen], corrupt)
            for row, index in enumerate(indices.tolist()):
                rows += self._readable(index, _seed(*numbers, row), corrupt)
        except UserError as error:
            empty = torch.empty(0, device="cpu")
            return _Found(empty, empty, [], str(error))
        images = torch.stack([image for image, _ in rows]) if rows else torch.empty(0, device="cpu")
        labels = torch.tensor([label for _, label in rows], dtype=torch.int64, device="cpu")
        return _Found(images, labels, corrupt)

    def _readable(
        self, index: int, seed: int, corrupt: list[tuple[str, str]]
    ) -> list[tuple[torch.Tensor, int]]:
        """The image at an index or its stand-in, and the label; none if it is left out.

        Adds to `corrupt`.
        """
        # With more than max_corrupt in a row the limit is passed anyway.
        tries = min((self.max_corrupt or 0) + 1, len(self.source))
        for step in range(tries):
            try:
                return [self._cropped((index + step) % len(self.source), seed)]
            except CorruptImage as error:
                corrupt.append((error.name, error.reason))
        if self.max_corrupt is None:
            return []
        name, reason = corrupt[-1]
        raise UserError(
            f"{tries} images in a row cannot be read, the last {name}: {reason}; mend or remove "
            "them, or raise max_corrupt"
        )

    def _cropped(self, index: int, seed: int) -> tuple[torch.Tensor, int]:
        source = self.source
        image, label = source.read(index)
        self._check(index, image.shape)
        if not 0 <= label < len(source.classes):
            raise UserError(
                f"image {index} of {source.name} has label {label}; {len(source.classes)} classes "
                f"have labels 0 to {len(source.classes) - 1}"
            )
        return self.transform.fit(image, seed), label

    def _check(self, index: int, shape: torch.Size) -> None:
        source = self.source
        patch = self.patch
        channels, height, width = shape
        if channels != source.channels:
            raise UserError(
                f"image {index} of {source.name} has {channels} channels; {source.channels} are "
                "expected"
            )
        if min(height, width) < patch:
            raise UserError(
                f"image {index} of {source.name} is {height} x {width}, smaller than a patch of "
                f"{patch} x {patch}; remove it, or use a model with smaller patches"
            )


@dataclass
class _Steps(Dataset):
    """The cropped images of this rank at a position."""

    sampler: ImageSampler
    reader: _Reader

    def __getitem__(self, position: tuple[int, int]) -> _Found:
        sampler = self.sampler
        numbers = (sampler.seed, *position, sampler.rank, FITTING)
        return self.reader.read(sampler.at(*position), numbers)


@dataclass
class _Chunks(Dataset):
    """The cropped images at some indices, in order, batch by batch."""

    indices: np.ndarray
    batch_size: int
    reader: _Reader

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, number: int) -> _Found:
        start = number * self.batch_size
        return self.reader.read(self.indices[start : start + self.batch_size])


def _seed(*numbers: int) -> int:
    return hashed(*numbers) >> 1  # torch and numpy both take seeds of 63 bits
