"""WebDataset shards: plain tar files in which neighbouring members with one stem make a sample.

`tarfile` reads the headers once, and we check them. Images are then read by their place in the
file, shard after shard and nearly in order, from any number of processes. Nothing is ever
extracted.
"""

import glob
import hashlib
import itertools
import json
import os
import re
import tarfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np
import torch

from hgrn.data.images.decoding import SUFFIXES, decode
from hgrn.data.images.source import CorruptImage, ImageSource
from hgrn.data.shuffle import shuffled
from hgrn.errors import UserError
from hgrn.untrusted import parse_json

LABEL_SUFFIXES = (".cls", ".json", ".txt")
LARGEST_LABEL = 1 << 20  # bytes
MOST_SHARDS = 100_000
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


class ShardSource(ImageSource):
    """Samples of an image member and a label member.

    pattern: a path with * ? [] and {a,b} {000..099}. A label is a number: the text of .cls or .txt,
    or what .json has under label_key. classes: names, or how many there are. buffer: how many
    samples are shuffled among each other; the order of the shards is shuffled too.

    Raises UserError for any other kind of member, a link, an absolute path, a sample without image
    or label, and a label out of range.
    """

    def __init__(
        self,
        pattern: str,
        channels: int,
        classes: list[str] | int,
        label_key: str = "label",
        buffer: int = 1000,
    ):
        self.name = pattern
        self.channels = channels
        self.buffer = buffer
        if isinstance(classes, int):
            self.classes = [str(number) for number in range(classes)]
        else:
            self.classes = list(classes)
        self.shards = expand_shards(pattern)
        found = [
            _scan(path, number, label_key, len(self.classes))
            for number, path in enumerate(self.shards)
        ]
        self.samples = np.concatenate(found)  # int64 [N, 4]: shard, offset, size, label
        # Samples of shard i are those from _borders[i] to _borders[i + 1].
        self._borders = np.cumsum([0, *map(len, found)])
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        shard, offset, size, label = self.samples[index].tolist()
        name = f"{self.shards[shard]} at byte {offset}"
        try:
            with open(self.shards[shard], "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise CorruptImage(name, error.strerror or str(error)) from None
        return decode(data, name, self.channels), label

    def order(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Shuffles the shards, then takes for each place one of the next `buffer` samples.

        So samples are read nearly in the order of the files, as WebDataset's own readers do.
        """
        return self._order(seed, epoch)[positions]

    def _epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        shards = shuffled(np.arange(len(self.shards)), len(self.shards), seed, epoch)
        borders = self._borders.tolist()
        order = np.concatenate(
            [np.arange(borders[shard], borders[shard + 1]) for shard in shards.tolist()]
        )
        draws = np.random.default_rng((seed % 2**64, epoch)).integers(self.buffer, size=len(order))
        for place, step in enumerate(draws.tolist()):
            other = min(place + step, len(order) - 1)
            order[place], order[other] = order[other], order[place]
        return order

    # A cached method cannot be pickled, so each worker process makes its own.
    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def fingerprint(self) -> str:
        """A hash of the shards' names and sizes, and of every sample's place and label."""
        names = [[path.name, path.stat().st_size] for path in self.shards]
        content = json.dumps([names, self.classes]).encode() + self.samples.tobytes()
        return hashlib.sha256(content).hexdigest()


def expand_shards(pattern: str) -> list[Path]:
    """The files that a pattern stands for, sorted.

    Raises UserError if the pattern, or a part of its braces, has no files.
    """
    if not pattern.isprintable():
        raise UserError(f"a pattern of shards must have printable characters only; got {pattern!r}")
    found = []
    for each in _expand_braces(os.path.expanduser(pattern)):
        paths = sorted(glob.glob(each)) if glob.has_magic(each) else [each]
        paths = [path for path in paths if os.path.isfile(path)]
        if not paths:
            origin = f" (of {pattern})" if each != pattern else ""
            raise UserError(f"no shard {each}{origin}")
        found += paths
    if not found:
        raise UserError(f"no shard {pattern}: a range in braces must go up")
    return [Path(path) for path in dict.fromkeys(found)]


def _expand_braces(pattern: str) -> list[str]:
    """All texts that a{0..2}b or a{x,y}b stands for; numbers keep their leading zeros."""
    parts = BRACES.split(pattern)  # text, braces, text, braces, ..., text
    choices = []
    names = 1
    for number, part in enumerate(parts):
        if number % 2 == 0:
            choices.append([part])
        elif match := RANGE.fullmatch(part):
            first, last = match.groups()
            # Not the whole range: it could be too long even to count.
            values = range(int(first), min(int(last), int(first) + MOST_SHARDS) + 1)
            choices.append([str(value).zfill(len(first)) for value in values])
        else:
            choices.append(part.split(","))
        names *= max(len(choices[-1]), 1)
        if names > MOST_SHARDS:
            raise UserError(
                f"the pattern {pattern[:100]} stands for more than {MOST_SHARDS:,} files"
            )
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _scan(path: Path, number: int, label_key: str, classes: int) -> np.ndarray:
    """The samples of one shard, int64 [n, 4]: shard, offset, size, label."""
    samples = []
    members: dict[str, tarfile.TarInfo] = {}  # of the sample that is being read, by suffix
    key = None  # its stem
    try:
        whole = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not 0 <= member.size <= whole - member.offset_data:
                    raise UserError(
                        f"{path} is truncated: member {member.name!r} is not all there; fetch it "
                        "again"
                    )
                if member.isdir():
                    _check_path(path, member)
                    continue
                stem, suffix = _check(path, member)
                if stem != key:
                    if key is not None:
                        samples.append(_sample(path, tar, key, members, label_key, classes))
                    key = stem
                    members = {}
                if suffix in members:
                    raise UserError(f"{path}: sample {stem} has two members {suffix}")
                members[suffix] = member
            if key is not None:
                samples.append(_sample(path, tar, key, members, label_key, classes))
            end = tar.offset
    except UserError:
        raise
    # A damaged header has numbers that are none or too large, and names that never end.
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path} is not a whole plain tar file: {error}; decompress it, or fetch it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not samples:
        raise UserError(f"{path} holds no samples")
    if whole < end:
        raise UserError(f"{path} is truncated: its last member is not all there; fetch it again")
    return np.array([(number, *sample) for sample in samples], dtype=np.int64)


def _check_path(path: Path, member: tarfile.TarInfo) -> None:
    parts = PurePosixPath(member.name)
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(
            f"{path}: member {member.name!r} has a path that leads out of the shard; only relative "
            "paths are read"
        )


def _check(path: Path, member: tarfile.TarInfo) -> tuple[str, str]:
    """Stem and suffix of a member. Raises UserError unless it is a file that samples have."""
    _check_path(path, member)
    if not member.isreg() or member.issparse():
        raise UserError(
            f"{path}: member {member.name!r} is a link or a special file; only plain files are read"
        )
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")  # WebDataset: everything after the first dot
    suffix = "." + suffix.lower()
    if suffix not in SUFFIXES + LABEL_SUFFIXES:
        raise UserError(
            f"{path}: member {member.name!r} is neither an image ({', '.join(SUFFIXES)}) nor a "
            f"label ({', '.join(LABEL_SUFFIXES)})"
        )
    return f"{folder}/{stem}", suffix


def _sample(
    path: Path,
    tar: tarfile.TarFile,
    key: str,
    members: dict[str, tarfile.TarInfo],
    label_key: str,
    classes: int,
) -> tuple[int, int, int]:
    """Offset and size of the image, and the label."""
    images = [suffix for suffix in members if suffix in SUFFIXES]
    labels = [suffix for suffix in LABEL_SUFFIXES if suffix in members]
    if len(images) != 1 or not labels:
        raise UserError(
            f"{path}: sample {key.lstrip('/')} needs one image and a label, and has "
            f"{', '.join(members)}"
        )
    member = members[labels[0]]
    if member.size > LARGEST_LABEL:
        raise UserError(
            f"{path}: member {member.name!r} has {member.size} bytes, too many for a label"
        )
    with cast(IO[bytes], tar.extractfile(member)) as file:  # None only for what is no file
        text = file.read().decode("utf-8", "replace")
    label = _label(text, labels[0], label_key)
    if label is None:
        form = "a whole number"
        if labels[0] == ".json":
            form = f"a JSON object with a whole number under {label_key!r}"
        raise UserError(f"{path}: member {member.name!r} must be {form}; it starts {text[:40]!r}")
    if not 0 <= label < classes:
        raise UserError(
            f"{path}: member {member.name!r} has label {label}; {classes} classes have labels 0 to "
            f"{classes - 1}"
        )
    return members[images[0]].offset_data, members[images[0]].size, label


def _label(text: str, suffix: str, label_key: str) -> int | None:
    """The number in a label member, or None if there is none."""
    try:
        if suffix != ".json":
            return int(text.strip())
        content = parse_json(text)
        label = content.get(label_key) if isinstance(content, dict) else None
        return label if isinstance(label, int) and not isinstance(label, bool) else None
    except ValueError:
        return None
