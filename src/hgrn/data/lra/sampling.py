"""Batches of arena examples; the position (epoch, index, seed) alone decides which comes next.

Shapes: B examples of a step over all ranks, R of this rank, T the longest sequence of a step or a
fixed length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from hgrn.data.labelled import LabelledBatch
from hgrn.data.lra.image import augmented
from hgrn.data.lra.splits import ImageSplit, LabelledData, SequenceSplit
from hgrn.data.lra.vocabulary import PAD
from hgrn.data.position import Positioned, share_of
from hgrn.data.shuffle import hashed, shuffled
from hgrn.errors import UserError

GROUP = 50  # steps whose examples are sorted together


@dataclass(frozen=True, eq=False)
class ExampleBatch(LabelledBatch):
    """R examples: sequences, pairs or images. A field that an example does not have is None.

    labels: int64 [R]. input_ids: int64 [R, T], padded on the right; attention_mask: int64 [R, T], 1
    at tokens and 0 at padding. input_ids_b, attention_mask_b: the same, for the second half of
    pairs. pixel_values: float32 [R, C, H, W], normalised.
    """

    labels: torch.Tensor
    input_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    input_ids_b: torch.Tensor | None = None
    attention_mask_b: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None

    def inputs(self) -> dict[str, torch.Tensor]:
        """The arguments of a model: every field that is not None, without the labels."""
        return {name: value for name, value in self._present().items() if name != "labels"}

    @property
    def targets(self) -> torch.Tensor:
        """What a loss compares the model's output with: int64 [R]."""
        return self.labels


class ExampleSampler(Positioned):
    """Endless shuffled batches of one split.

    batch_size is B; each rank takes a slice of consecutive examples. An epoch takes every example
    at most once, in its own order, and leaves out the last incomplete batch.

    pad_to: the length of all sequences; None pads to the longest of the step, on all ranks alike,
    so that a model that sees its padding computes the same for any number of ranks.
    group_by_length: sort the examples of each `GROUP` steps by length, so that a step has sequences
    of similar length and little padding; the steps are then shuffled. augment: change images as
    `image.augmented` does, differently in each epoch.

    Raises UserError for a split that is smaller than a batch or has sequences longer than pad_to,
    ValueError for numbers that do not fit each other.
    """

    def __init__(
        self,
        data: LabelledData,
        split: str,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        pad_to: int | None = None,
        group_by_length: bool = False,
        augment: bool = False,
    ):
        self._rows = share_of(batch_size, rank, world)
        self._reader = _Reader(data, split, pad_to)
        examples = data.splits[split]
        if augment and not isinstance(examples, ImageSplit):
            raise ValueError("augment is for images, and these are sequences")
        self._augment = augment
        self._lengths: np.ndarray | None = None  # to group by, if that is wanted
        if group_by_length:
            if isinstance(examples, ImageSplit):
                raise ValueError("group_by_length is for sequences, and these are images")
            self._lengths = examples.lengths
        self.batch_size = batch_size
        self.size = len(examples)
        super().__init__("a split", self.size // batch_size, seed)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"split {split} has {self.size} examples, fewer than a batch of {batch_size}; use "
                "more data or a smaller batch size"
            )

    def next(self) -> ExampleBatch:
        """The batch at the position; the position moves on by one."""
        if self._lengths is None:
            examples = self._drawn(self.index, 1)[0]
        else:
            examples = self._grouped(self._lengths)
        changed_by = (self.seed, self.epoch) if self._augment else None
        self.advance()
        return self._reader.read(examples, self._rows, changed_by)

    def _drawn(self, first: int, steps: int) -> np.ndarray:
        """The examples of some steps of the epoch, from step `first` on, [steps, B]."""
        places = np.arange(first * self.batch_size, (first + steps) * self.batch_size)
        return shuffled(places, self.size, self.seed, self.epoch).reshape(steps, self.batch_size)

    def _grouped(self, lengths: np.ndarray) -> np.ndarray:
        """The examples of the step at the position, of similar length, [B]."""
        first = self.index - self.index % GROUP
        steps = min(GROUP, self.steps_per_epoch - first)
        examples = self._drawn(first, steps).ravel()
        by_length = examples[np.argsort(lengths[examples], kind="stable")]
        # Without this second shuffle each group would begin with its shortest sequences.
        place = np.array([self.index - first])
        step = shuffled(place, steps, self.seed, hashed(self.epoch, first))[0]
        return by_length.reshape(steps, self.batch_size)[step]


def in_order(
    data: LabelledData,
    split: str,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    pad_to: int | None = None,
) -> Iterator[ExampleBatch]:
    """Every example of a split once, in order, for evaluation; the last batch may be smaller.

    Each rank gets its share of every batch, so all ranks get equally many batches. A share may be
    empty: no rows, and one column of padding.
    """
    rows = share_of(batch_size, rank, world)
    reader = _Reader(data, split, pad_to)
    size = len(data.splits[split])
    return (
        reader.read(np.arange(start, min(start + batch_size, size)), rows)
        for start in range(0, size, batch_size)
    )


class _Reader:
    """Makes batches of numbered examples of one split."""

    def __init__(self, data: LabelledData, split: str, pad_to: int | None):
        if split not in data.splits:
            raise UserError(f"data has no split {split!r}; there is {', '.join(data.splits)}")
        self.data = data
        self.examples = data.splits[split]
        self.pad_to = pad_to
        if pad_to is not None:
            if isinstance(self.examples, ImageSplit):
                raise ValueError("pad_to is for sequences, and these are images")
            longest = int(self.examples.lengths.max(initial=0))
            if longest > pad_to:
                raise UserError(
                    f"pad_to {pad_to} is less than the longest sequence of split {split}, "
                    f"{longest}; give at least that, or a smaller max_length of the data"
                )

    def read(
        self, step: np.ndarray, rows: slice, changed_by: tuple[int, int] | None = None
    ) -> ExampleBatch:
        """Some rows of a step, whose examples over all ranks are `step`.

        changed_by: seed and epoch of an augmentation, or None.
        """
        mine = step[rows]
        examples = self.examples
        labels = torch.from_numpy(np.asarray(examples.labels[mine], dtype=np.int64))
        if isinstance(examples, ImageSplit):
            images = np.asarray(examples.images[mine])
            if changed_by is not None:
                images = augmented(images, mine, *changed_by)
            return ExampleBatch(labels, pixel_values=self.data.normalised(images))
        # The longest of the whole step, not of this rank's rows.
        length = self.pad_to
        if length is None:
            length = max(1, int(examples.lengths[step].max()))
        if isinstance(examples, SequenceSplit):
            return ExampleBatch(labels, *_padded(examples, mine, length))
        # Both halves get one length, because they go through a model as one batch.
        first = _padded(examples.first, mine, length)
        second = _padded(examples.second, mine, length)
        return ExampleBatch(labels, *first, *second)


def _padded(
    split: SequenceSplit, examples: np.ndarray, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, int64 [R, length]."""
    ids = np.full((len(examples), length), PAD, dtype=np.int64)
    mask = np.zeros((len(examples), length), dtype=np.int64)
    for row, example in enumerate(examples.tolist()):
        sequence = split.sequence(example)
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
