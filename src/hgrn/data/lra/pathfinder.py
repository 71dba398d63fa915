"""Pathfinder: do two marked ends belong to one dashed contour? At 128 pixels it is called Path-X.

For each size and difficulty the release has `imgs/<batch>/sample_<n>.png` and
`metadata/<batch>.npy`. In spite of their names the latter are plain text. Each line describes an
image: folder, file, number, label and seven parameters of the drawing. The original generator
writes the same table with `numpy.save`; both can be read. Only the hard set,
`curv_contour_length_14`, belongs to the arena.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from hgrn.data.cache import EntryWriter, cache_folder, cached
from hgrn.data.images.decoding import opened
from hgrn.data.images.source import CorruptImage
from hgrn.data.lra.npy import NUMPY_MAGIC, read_table
from hgrn.data.lra.splits import SPLITS, LabelledData, image_data, random_split
from hgrn.errors import UserError
from hgrn.files import expanded
from hgrn.untrusted import read_bytes

FORMAT = 1  # raise it when the same files give other arrays
HARD = "curv_contour_length_14"
SHARE = 0.1  # of the images, for validation and for test each
LARGEST_TABLE = 1 << 28  # bytes of one file of metadata; those of the release have some 10,000
CLASSES = ("different contours", "one contour")


@dataclass(frozen=True)
class PathfinderData:
    """The section `data` of a recipe for Pathfinder.

    path: the folder of one size (pathfinder32, ..., pathfinder256). difficulty: a folder in it.
    cache: the folder of encoded data, None for the user's cache folder.
    """

    __pydantic_config__ = {"extra": "forbid"}

    path: str
    task: Literal["pathfinder"] = "pathfinder"
    difficulty: str = HARD
    cache: str | None = None


@dataclass(frozen=True)
class Sample:
    """One image of the metadata. where: file and line, for messages."""

    where: str
    path: Path
    label: int


def prepare(data: PathfinderData) -> LabelledData:
    """The three splits, grey images uint8 [N, 1, H, W].

    Empty image files are left out with a warning; the release has one. Raises UserError for files
    that are missing or not what the metadata say.
    """
    folder = expanded(data.path) / data.difficulty
    tables = sorted((folder / "metadata").glob("*.npy"), key=_number)
    if not tables:
        raise UserError(
            f"path {data.path} has no {data.difficulty}/metadata/*.npy; name the folder of one "
            "size of the Long Range Arena (such as pathfinder32), or make it with `hgrn data "
            "pathfinder`"
        )
    samples = [sample for table in tables for sample in _samples(folder, table)]
    stamps = [[table.name, table.stat().st_size, table.stat().st_mtime_ns] for table in tables]
    # The sizes and times of all images, since a folder keeps its time when an image in it changes.
    # 200,000 images take a second or two.
    images = hashlib.sha256()
    for sample in samples:
        status = _stat(sample)
        images.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    source = ["pathfinder", FORMAT, str(folder.resolve()), stamps, images.hexdigest()]

    def write(writer: EntryWriter) -> dict:
        return _write(writer, samples, data)

    return image_data(cached(cache_folder("lra", data.cache), source, write))


def _number(table: Path) -> int:
    """The batch of a file of metadata."""
    try:
        return int(table.stem)
    except ValueError:
        raise UserError(
            f"{table}: a file of metadata must be called by the number of its batch"
        ) from None


def _samples(folder: Path, table: Path) -> Iterator[Sample]:
    """The images that a file of metadata names. Raises UserError for any other content."""
    content = read_bytes(table, LARGEST_TABLE)
    try:
        if content.startswith(NUMPY_MAGIC):
            rows = read_table(content)
        else:
            rows = [line.split() for line in content.decode("ascii").splitlines()]
    except ValueError as error:  # a damaged array, or bytes that are no text
        raise UserError(f"{table} is neither a table of text nor an array of it: {error}") from None
    for number, row in enumerate(rows, start=1):
        where = f"{table}:{number}"
        if len(row) < 4 or str(row[3]) not in ("0", "1"):
            raise UserError(
                f"{where}: a row must start with folder, file, number and a label of 0 or 1; got "
                f"{str(row)[:200]}"
            )
        path = folder / _inside(where, str(row[0])) / _inside(where, str(row[1]))
        yield Sample(where, path, int(row[3]))


def _inside(where: str, name: str) -> str:
    """The name of a folder or file. Raises UserError if it leads out of the folder of the data."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not name.isprintable():
        raise UserError(f"{where}: {name[:200]!r} is not a name inside of the folder of the data")
    return name


def _write(writer: EntryWriter, samples: list[Sample], data: PathfinderData) -> dict:
    """Write the three splits; return the facts."""
    kept = [sample for sample in samples if _stat(sample).st_size > 0]
    if len(kept) < len(samples):
        names = [str(sample.path) for sample in samples if sample.path.stat().st_size == 0]
        warnings.warn(
            f"{len(names)} empty image files are left out: {', '.join(names[:3])}", stacklevel=2
        )
    share = int(SHARE * len(kept))
    if share == 0:
        raise UserError(
            f"path {data.path} has {len(kept)} images in {data.difficulty}; splits need 10 at least"
        )
    shape: tuple[int, int] | None = None
    parts = random_split(len(kept), [len(kept) - 2 * share, share, share])
    for split, chosen in zip(SPLITS, parts):
        for number in chosen.tolist():
            image = _read(kept[number])
            shape = shape or image.shape
            if image.shape != shape:
                raise UserError(
                    f"{kept[number].path} has {image.shape} pixels, and others have {shape}; a "
                    "data set must be of one size"
                )
            writer.append(f"{split}/images", image[None, None])
        labels = [kept[number].label for number in chosen.tolist()]
        writer.append(f"{split}/labels", np.array(labels, dtype=np.int64))
    return {"classes": list(CLASSES), "mean": [0.5], "std": [0.5]}


def _stat(sample: Sample) -> os.stat_result:
    """Size and time of an image. Raises UserError if there is none."""
    try:
        return os.stat(sample.path)
    except OSError as error:
        raise UserError(
            f"{sample.where}: the image {sample.path} cannot be read: {error.strerror}"
        ) from None


def _read(sample: Sample) -> np.ndarray:
    """Grey pixels, uint8 [H, W]."""
    try:
        with opened(sample.path, str(sample.path)) as image:
            return np.array(image.convert("L"))
    except CorruptImage as error:
        raise UserError(
            f"{sample.where}: the image {sample.path} cannot be read: {error.reason}"
        ) from None
