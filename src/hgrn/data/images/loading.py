"""Batches of images: read, decoded in worker processes if asked, augmented, mixed, in an order that can be resumed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hgrn.data.images.augment import EvaluationTransform, TrainingTransform
from hgrn.data.images.mixing import Mixing, mix
from hgrn.data.images.sampling import ImageSampler
from hgrn.data.images.source import CorruptImage, ImageSource, TensorSource
from hgrn.data.labelled import LabelledBatch
from hgrn.data.shuffle import hashed
from hgrn.errors import UserError

logger = logging.getLogger(__name__)

FITTING, AUGMENTING, MIXING = range(3)  # so that each kind of draw has numbers of its own


@dataclass(frozen=True, eq=False)
class ImageBatch(LabelledBatch):
    """images: float32 [B, C, S, S], normalised. labels: int64 [B]. mixed: targets float32 [B, K] when mixed or smoothed."""

    images: torch.Tensor
    labels: torch.Tensor
    mixed: torch.Tensor | None = None

    def inputs(self) -> dict[str, torch.Tensor]:
        """What a model is called with."""
        return {"pixel_values": self.images}

    @property
    def targets(self) -> torch.Tensor:
        """What a loss compares answers with: float32 [B, K] when mixed or smoothed, else the labels."""
        return self.labels if self.mixed is None else self.mixed


class CorruptLimit:
    """Names each corrupt image once, in the log, and raises UserError when there are more than limit of them."""

    def __init__(self, limit: int):
        self.limit = limit
        self.names = set()

    def note(self, found: list[tuple[str, str]]) -> None:
        for name, reason in found:
            if name in self.names:
                continue
            self.names.add(name)
            if len(self.names) > self.limit:
                raise UserError(
                    f"more than {self.limit} images cannot be read, the last {name}: {reason}; mend or remove them, "
                    "or raise max_corrupt"
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

    The batch at a position depends on (seed, epoch, index), rank and world alone, not on the number of workers
    or on what was read before. A corrupt image is skipped: the next one that can be read stands in for it, so
    that every batch has its full size. max_corrupt: how many distinct ones are allowed. patch: the model's
    patch size; a smaller image is an error. workers: processes that decode, 0 for none.
    """

    def __init__(
        self,
        sampler: ImageSampler,
        transform: TrainingTransform,
        mixing: Mixing = Mixing(),
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
        self._steps = _Steps(sampler, transform, max_corrupt, patch)
        self._ahead: Iterator | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.sampler.steps_per_epoch

    def next(self) -> ImageBatch:
        """The batch at the position, which moves on by one. Raises UserError for what is wrong with the images."""
        sampler = self.sampler
        if self._ahead is None:
            self._ahead = self._start()
        images, labels, corrupt, error = next(self._ahead)
        if error is not None:
            raise UserError(error)
        self.corrupt.note(corrupt)
        position = (sampler.seed, sampler.epoch, sampler.index, sampler.rank)
        sampler.advance()
        images = images.to(self.device)
        labels = labels.to(self.device)
        images = self.transform(images, _seed(*position, AUGMENTING))
        if not (self.mixing.mixup or self.mixing.cutmix or self.mixing.smoothing):
            return ImageBatch(images, labels)
        images, targets = mix(
            images, labels, len(sampler.source.classes), self.mixing, _seed(*position, MIXING)
        )
        return ImageBatch(images, labels, targets)

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch, whatever workers have read ahead of it."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.load_state_dict(state)
        self._ahead = None

    def close(self) -> None:
        """Ends the workers; a later `next` starts others."""
        self._ahead = None

    def _start(self) -> Iterator:
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
    """Every image once, in order; batch_size is of this rank, which takes images rank, rank + world, ...

    The last batch may be smaller. A corrupt image is left out, so count what comes.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    corrupt = CorruptLimit(max_corrupt)
    chunks = _Chunks(source, transform, np.arange(rank, len(source), world), batch_size, patch)
    for images, labels, found, error in DataLoader(chunks, batch_size=None, num_workers=workers):
        if error is not None:
            raise UserError(error)
        corrupt.note(found)
        if len(labels):
            yield ImageBatch(transform(images), labels)


class _Positions:
    """(epoch, index) from where a sampler is, without end."""

    def __init__(self, sampler: ImageSampler):
        self.sampler, self.start = sampler, (sampler.epoch, sampler.index)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start
        while True:
            yield position
            position = self.sampler.after(*position)


class _Steps(Dataset):
    """Position -> (images uint8 [B, C, S, S], labels [B], corrupt ones, an error's message or None).

    Errors travel as text: those raised in a worker arrive with its traceback, which is not for the user.
    """

    def __init__(
        self, sampler: ImageSampler, transform: TrainingTransform, max_corrupt: int, patch: int
    ):
        self.sampler = sampler
        self.transform = transform
        self.max_corrupt = max_corrupt
        self.patch = patch

    def __getitem__(self, position: tuple[int, int]) -> tuple:
        source = self.sampler.source
        corrupt = []
        rows = []
        indices = self.sampler.at(*position)
        numbers = (self.sampler.seed, *position, self.sampler.rank, FITTING)
        try:
            if isinstance(source, TensorSource):
                return (
                    *_from_tensors(source, indices, self.transform, _seed(*numbers), self.patch),
                    [],
                    None,
                )
            for row, index in enumerate(indices.tolist()):
                rows.append(self._readable(source, index, _seed(*numbers, row), corrupt))
        except UserError as error:
            return None, None, [], str(error)
        return *_stacked(rows), corrupt, None

    def _readable(
        self, source: ImageSource, index: int, seed: int, corrupt: list
    ) -> tuple[torch.Tensor, int]:
        for step in range(
            min(self.max_corrupt + 1, len(source))
        ):  # after so many, the limit is passed anyway
            try:
                return _fitted(
                    source, (index + step) % len(source), self.transform, seed, self.patch
                )
            except CorruptImage as error:
                corrupt.append((error.name, error.reason))
        name, reason = corrupt[-1]
        raise UserError(
            f"{step + 1} images in a row cannot be read, the last {name}: {reason}; mend or remove them, "
            "or raise max_corrupt"
        )


class _Chunks(Dataset):
    """Like `_Steps`, over given images in order; corrupt ones are left out."""

    def __init__(
        self,
        source: ImageSource,
        transform: EvaluationTransform,
        indices: np.ndarray,
        batch_size: int,
        patch: int,
    ):
        self.source = source
        self.transform = transform
        self.indices = indices
        self.batch_size = batch_size
        self.patch = patch

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, number: int) -> tuple:
        rows = []
        corrupt = []
        indices = self.indices[number * self.batch_size : (number + 1) * self.batch_size]
        try:
            if isinstance(self.source, TensorSource):
                return *_from_tensors(self.source, indices, self.transform, 0, self.patch), [], None
            for index in indices.tolist():
                try:
                    rows.append(_fitted(self.source, index, self.transform, 0, self.patch))
                except CorruptImage as error:
                    corrupt.append((error.name, error.reason))
        except UserError as error:
            return None, None, [], str(error)
        return *_stacked(rows), corrupt, None


def _fitted(
    source: ImageSource, index: int, transform, seed: int, patch: int
) -> tuple[torch.Tensor, int]:
    image, label = source.read(index)
    _check(source, index, image.shape, patch)
    if not 0 <= label < len(source.classes):
        raise UserError(
            f"image {index} of {source.name} has label {label}; {len(source.classes)} classes have labels 0 to "
            f"{len(source.classes) - 1}"
        )
    return transform.fit(image, seed), label


def _from_tensors(
    source: TensorSource, indices: np.ndarray, transform, seed: int, patch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fitted images and labels; a source of tensors has one size, and its labels were checked when it was made."""
    _check(source, int(indices[0]), source.images.shape[1:], patch)
    chosen = torch.from_numpy(indices)
    return transform.fit_batch(source.images[chosen], seed), source.labels[chosen]


def _check(source: ImageSource, index: int, shape: torch.Size, patch: int) -> None:
    channels, height, width = shape
    if channels != source.channels:
        raise UserError(
            f"image {index} of {source.name} has {channels} channels; {source.channels} are expected"
        )
    if min(height, width) < patch:
        raise UserError(
            f"image {index} of {source.name} is {height} x {width}, smaller than a patch of {patch} x {patch}; "
            "remove it, or use a model with smaller patches"
        )


def _stacked(rows: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([image for image, _ in rows]) if rows else torch.empty(0, device="cpu")
    return images, torch.tensor([label for _, label in rows], dtype=torch.int64, device="cpu")


def _seed(*numbers: int) -> int:
    return hashed(*numbers) >> 1  # torch takes 63 bits from every source of seeds
