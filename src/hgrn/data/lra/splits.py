"""Encoded examples of an arena task: token sequences, pairs of them, or images, with classes."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from hgrn.data.cache import Entry, EntryWriter
from hgrn.data.images.augment import Normalisation
from hgrn.data.lra.vocabulary import Vocabulary

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
SPLIT_SEED = 42  # of the published runs
HALVES = ("first", "second")  # of a pair, as their arrays are called


@dataclass(frozen=True, eq=False)
class SequenceSplit:
    """Sequences of token ids.

    tokens: all sequences end to end. offsets: int64 [N + 1], where each starts. labels: int64 [N].
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, [N]."""
        return np.diff(self.offsets)

    def sequence(self, index: int) -> np.ndarray:
        """The token ids of one example, <eos> included."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, eq=False)
class PairSplit:
    """Pairs: example i is first.sequence(i) and second.sequence(i). Both halves have its labels."""

    first: SequenceSplit
    second: SequenceSplit

    def __len__(self) -> int:
        return len(self.first)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.first.labels

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of the longer half of each example, [N]."""
        # Both halves are padded to one length, so the longer one decides.
        return np.maximum(self.first.lengths, self.second.lengths)


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """images: uint8 [N, C, H, W]; labels: int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


Split = SequenceSplit | PairSplit | ImageSplit


@dataclass(frozen=True, eq=False)
class LabelledData:
    """The data of a task, as `prepare` returns it.

    splits: train, validation and test; the last two may be the same. classes: their names, by
    label. fingerprint: equal for equal examples. vocabulary: None for images. max_length: of a
    sequence, with its <eos>, or None. mean, std: of each channel, of pixels scaled to [0, 1], for
    `normalised`; empty for text.
    """

    splits: dict[str, Split]
    classes: tuple[str, ...]
    fingerprint: str
    vocabulary: Vocabulary | None = None
    max_length: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def normalised(self, images: np.ndarray) -> torch.Tensor:
        """uint8 [N, C, H, W] -> float32: (x / 255 - mean) / std, by channel."""
        return Normalisation(self.mean, self.std)(torch.from_numpy(images).float() / 255)


def random_split(number: int, sizes: list[int]) -> list[np.ndarray]:
    """Indices of the parts that `torch.utils.data.random_split` makes of range(number).

    The seed is that of the published runs, so the parts are theirs as well.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(number, generator=generator, device="cpu").numpy()
    return np.split(order, np.cumsum(sizes)[:-1])


def write_sequences(
    writer: EntryWriter, name: str, sequences: Iterable[np.ndarray], dtype: np.dtype
) -> int:
    """Append sequences of token ids as `name/tokens` and `name/offsets`; return their number."""
    ends = [0]
    writer.append(f"{name}/tokens", np.empty(0, dtype))  # the array exists without any sequence too
    for sequence in sequences:
        writer.append(f"{name}/tokens", sequence)
        ends.append(ends[-1] + len(sequence))
    writer.append(f"{name}/offsets", np.array(ends, dtype=np.int64))
    return len(ends) - 1


def sequence_data(entry: Entry) -> LabelledData:
    """The data of an entry of sequences or pairs.

    Each split has labels, and tokens and offsets or, for pairs, first/ and second/ of both.
    """
    facts = entry.facts
    splits: dict[str, Split] = {}
    for split in SPLITS:
        name = facts["stored"][split]
        if f"{name}/tokens" in entry.stored:
            splits[split] = _sequences(entry, name, name)
        else:
            first, second = (_sequences(entry, f"{name}/{half}", name) for half in HALVES)
            splits[split] = PairSplit(first, second)
    return LabelledData(
        splits,
        tuple(facts["classes"]),
        entry.fingerprint,
        Vocabulary(tuple(facts["vocabulary"])),
        facts["max_length"],
    )


def image_data(entry: Entry) -> LabelledData:
    """The data of an entry whose splits have images and labels."""
    facts = entry.facts
    return LabelledData(
        {
            split: ImageSplit(entry.arrays[f"{split}/images"], entry.arrays[f"{split}/labels"])
            for split in SPLITS
        },
        tuple(facts["classes"]),
        entry.fingerprint,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
    )


def _sequences(entry: Entry, name: str, split: str) -> SequenceSplit:
    arrays = entry.arrays
    return SequenceSplit(
        arrays[f"{name}/tokens"], arrays[f"{name}/offsets"], arrays[f"{split}/labels"]
    )
