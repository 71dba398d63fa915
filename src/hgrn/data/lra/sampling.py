"""Batches of labelled examples. Which batch comes next depends on the position alone: (epoch, index, seed).

Shapes: B examples of a step (over all ranks), R of this rank, T the longest of a step or a fixed length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from hgrn.data.lra.splits import ImageSplit, LabelledData, PairSplit, SequenceSplit
from hgrn.data.lra.vocabulary import PAD
from hgrn.data.shuffle import shuffled
from hgrn.errors import UserError


@dataclass(frozen=True, eq=False)
class ExampleBatch:
    """R examples: sequences (input_ids and attention_mask), pairs (those and the fields that end in _b), or images.

    input_ids, input_ids_b: int64 [R, T], padded on the right; attention_mask, attention_mask_b: int64 [R, T], 1
    at tokens and 0 at padding. pixel_values: float32 [R, C, H, W], normalised. labels: int64 [R]. What an
    example does not have is None.
    """

    labels: torch.Tensor
    input_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    input_ids_b: torch.Tensor | None = None
    attention_mask_b: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self) -> dict[str, torch.Tensor]:
        """Everything that there is, by name, labels too: what a model is called with."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    def to(self, device: torch.device | str) -> ExampleBatch:
        return replace(self, **{name: value.to(device) for name, value in self.inputs().items()})


class ExampleSampler:
    """Endless shuffled batches of one split.

    batch_size is B, the examples of a step over all ranks; each rank takes its slice of consecutive ones. An
    epoch takes every example once, in an order of its own, and leaves out the last incomplete batch. Sequences
    are padded to the longest of the step, on all ranks alike, so that a model that sees its padding computes
    the same whatever the number of ranks; with pad_to, to that length always.

    Raises UserError for a split that is smaller than a batch, or has sequences longer than pad_to; ValueError
    for numbers that do not fit each other.
    """

    def __init__(self, data: LabelledData, split: str, batch_size: int, seed: int, rank: int = 0, world: int = 1,
                 pad_to: int | None = None):
        _check_ranks(batch_size, rank, world)
        self._reader = _Reader(data, split, pad_to)
        self.batch_size = batch_size
        self.epoch, self.index, self.seed = 0, 0, seed
        self._rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.size = len(data.splits[split])
        self.steps_per_epoch = self.size // batch_size
        if self.steps_per_epoch == 0:
            raise UserError(f"split {split} has {self.size} examples, fewer than a batch of {batch_size}; use more "
                            "data or a smaller batch size")

    def next(self) -> ExampleBatch:
        """The batch at the position, which moves on by one."""
        places = np.arange(self.index * self.batch_size, (self.index + 1) * self.batch_size)
        examples = shuffled(places, self.size, self.seed, self.epoch)
        self.index += 1
        if self.index == self.steps_per_epoch:
            self.epoch, self.index = self.epoch + 1, 0
        return self._reader.read(examples, self._rows)

    def state_dict(self) -> dict[str, int]:
        """The position: epoch, index of the next step in it, seed."""
        return {"epoch": self.epoch, "index": self.index, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position. Raises ValueError for one that this split, with this batch size, does not have."""
        if not 0 <= state["index"] < self.steps_per_epoch or state["epoch"] < 0:
            raise ValueError(f"position {state} is not in a split of {self.steps_per_epoch} steps per epoch; was it "
                             "saved with other data or batch size?")
        self.epoch, self.index, self.seed = state["epoch"], state["index"], state["seed"]


def in_order(data: LabelledData, split: str, batch_size: int, rank: int = 0, world: int = 1,
             pad_to: int | None = None) -> Iterator[ExampleBatch]:
    """Every example of a split once, in order, for evaluation; the last batch may be smaller.

    Each rank gets its share of every batch, all ranks equally many batches; a share may be empty (no rows,
    one column of padding).
    """
    _check_ranks(batch_size, rank, world)
    reader, size = _Reader(data, split, pad_to), len(data.splits[split])
    rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
    return (reader.read(np.arange(start, min(start + batch_size, size)), rows) for start in range(0, size, batch_size))


def _check_ranks(batch_size: int, rank: int, world: int) -> None:
    for name, value in (("batch_size", batch_size), ("world", world)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if batch_size % world:
        raise ValueError(f"batch_size {batch_size} must be a multiple of the {world} ranks")
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in [0, {world}); got {rank}")


class _Reader:
    def __init__(self, data: LabelledData, split: str, pad_to: int | None):
        if split not in data.splits:
            raise UserError(f"data has no split {split!r}; there is {', '.join(data.splits)}")
        self.data, self.examples, self.pad_to = data, data.splits[split], pad_to
        if pad_to is not None:
            if isinstance(self.examples, ImageSplit):
                raise ValueError("pad_to is for sequences, and these are images")
            longest = int(self.examples.lengths.max(initial=0))
            if longest > pad_to:
                raise UserError(f"pad_to {pad_to} is less than the longest sequence of split {split}, {longest}; give at "
                                "least that, or a smaller max_length of the data")

    def read(self, step: np.ndarray, rows: slice) -> ExampleBatch:
        """The given rows of a step of which these are the examples."""
        mine, examples = step[rows], self.examples
        labels = torch.from_numpy(np.asarray(examples.labels[mine], dtype=np.int64))
        if isinstance(examples, ImageSplit):
            pixels = self.data.normalised(np.asarray(examples.images[mine]))
            return ExampleBatch(labels, pixel_values=torch.from_numpy(pixels))
        length = self.pad_to if self.pad_to is not None else max(1, int(examples.lengths[step].max()))
        if isinstance(examples, PairSplit):  # both halves alike: they go through a model as one batch
            return ExampleBatch(labels, *_padded(examples.first, mine, length), *_padded(examples.second, mine, length))
        return ExampleBatch(labels, *_padded(examples, mine, length))


def _padded(split: SequenceSplit, examples: np.ndarray, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, int64 [R, length]."""
    ids = np.full((len(examples), length), PAD, dtype=np.int64)
    mask = np.zeros((len(examples), length), dtype=np.int64)
    for row, example in enumerate(examples.tolist()):
        sequence = split.sequence(example)
        ids[row, :len(sequence)] = sequence
        mask[row, :len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
