"""Encoded examples of a task: sequences of token ids, pairs of them, or images, each with a class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from hgrn.data.cache import Entry, EntryWriter
from hgrn.data.lra.vocabulary import Vocabulary

SplitName = Literal["train", "validation", "test"]
SPLIT_SEED = 42  # of the published runs
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class SequenceSplit:
    """tokens: all sequences end to end; offsets: int64 [N + 1], where they start; labels: int64 [N]."""

    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def sequence(self, index: int) -> np.ndarray:
        """The token ids of one example, <eos> included."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, eq=False)
class PairSplit:
    """Example i is first.sequence(i) against second.sequence(i); labels of all three are the same."""

    first: SequenceSplit
    second: SequenceSplit

    def __len__(self) -> int:
        return len(self.first)

    @property
    def labels(self) -> np.ndarray:
        return self.first.labels

    @cached_property
    def lengths(self) -> np.ndarray:
        """Of the longer one."""
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
    """What `prepare` of a task returns.

    splits: train, validation and test; the last two may be the same. classes: their names, by label.
    vocabulary: None for images. max_length: of a sequence, with its <eos>, or None. mean, std: per channel, of
    pixels scaled to [0, 1], for `normalised`; empty for text. fingerprint: equal for equal examples.
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
        return len(self.classes)

    def normalised(self, images: np.ndarray) -> np.ndarray:
        """uint8 [..., C, H, W] -> float32: scaled to [0, 1], less the mean, over the standard deviation."""
        mean, std = (
            np.array(each, dtype=np.float32)[:, None, None] for each in (self.mean, self.std)
        )
        return (images.astype(np.float32) / 255 - mean) / std


def random_split(number: int, sizes: list[int]) -> list[np.ndarray]:
    """The indices that `torch.utils.data.random_split` of range(number) gives with the seed of the published runs."""
    order = torch.randperm(
        number, generator=torch.Generator().manual_seed(SPLIT_SEED), device="cpu"
    ).numpy()
    return np.split(order, np.cumsum(sizes)[:-1])


def write_sequences(
    writer: EntryWriter, name: str, sequences: Iterable[np.ndarray], dtype: np.dtype
) -> int:
    """Append sequences of token ids as `name/tokens` and `name/offsets`; returns how many there were."""
    ends = [0]
    writer.append(f"{name}/tokens", np.empty(0, dtype))
    for sequence in sequences:
        writer.append(f"{name}/tokens", sequence)
        ends.append(ends[-1] + len(sequence))
    writer.append(f"{name}/offsets", np.array(ends, dtype=np.int64))
    return len(ends) - 1


def sequence_data(entry: Entry) -> LabelledData:
    """The data of an entry whose splits have tokens and offsets, or first/ and second/ of each, and labels."""
    facts = entry.facts
    splits: dict[str, Split] = {}
    for split in SPLITS:
        name = facts["stored"][split]
        labels = entry.arrays[f"{name}/labels"]
        if f"{name}/tokens" in entry.arrays:
            splits[split] = _sequences(entry, name, labels)
        else:
            splits[split] = PairSplit(
                *(_sequences(entry, f"{name}/{half}", labels) for half in ("first", "second"))
            )
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
    splits: dict[str, Split] = {
        split: ImageSplit(entry.arrays[f"{split}/images"], entry.arrays[f"{split}/labels"])
        for split in SPLITS
    }
    return LabelledData(
        splits,
        tuple(facts["classes"]),
        entry.fingerprint,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
    )


def _sequences(entry: Entry, name: str, labels: np.ndarray) -> SequenceSplit:
    return SequenceSplit(entry.arrays[f"{name}/tokens"], entry.arrays[f"{name}/offsets"], labels)
