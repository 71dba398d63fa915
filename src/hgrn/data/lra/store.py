"""The on-disk cache of encoded examples: arrays in files, written once as streams, then memory-mapped.

An entry is a folder with a file of raw numbers for each array of each split and `meta.json`, which says type,
shape and SHA-256 of each. It is written under a temporary name and renamed when all of it is on disk, so that
an entry is whole or absent; opening it compares every file with its hash, and an entry that was damaged is
written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hgrn.data.disk import locked, user_path
from hgrn.data.tokens import DamagedEntry, default_cache_folder
from hgrn.errors import UserError
from hgrn.files import sync

META = "meta.json"
BLOCK = 1 << 24  # bytes hashed at a time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """arrays["train/labels"] is an array of the entry, read-only; facts is plain data of whoever wrote it.

    fingerprint is a hash of both: equal for equal content, wherever it came from.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    fingerprint: str


class EntryWriter:
    """Writes the arrays of an entry, each in pieces along its first axis."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.descriptions: dict[str, dict] = {}
        self._open: dict[str, tuple] = {}

    def append(self, name: str, piece: np.ndarray) -> None:
        """Add rows to array name. Its type and the shape of a row are those of the first piece."""
        if name not in self._open:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open[name] = (open(path, "xb"), hashlib.sha256())
            self.descriptions[name] = {"dtype": piece.dtype.str, "shape": [0, *piece.shape[1:]]}
        description = self.descriptions[name]
        if (
            piece.dtype.str != description["dtype"]
            or list(piece.shape[1:]) != description["shape"][1:]
        ):
            raise ValueError(
                f"array {name} has {description}; got a piece of {piece.dtype} {piece.shape}"
            )
        stream, digest = self._open[name]
        data = np.ascontiguousarray(piece).data
        stream.write(data)
        digest.update(data)
        description["shape"][0] += len(piece)

    def finish(self, facts: dict[str, Any]) -> None:
        """Put all of it on disk, `meta.json` last."""
        for name, (stream, digest) in self._open.items():
            self.descriptions[name]["sha256"] = digest.hexdigest()
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        content = {"facts": facts, "arrays": self.descriptions}
        with open(self.folder / META, "x") as file:
            json.dump({**content, "fingerprint": _fingerprint(content)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        for folder in {self.folder, *((self.folder / name).parent for name in self._open)}:
            sync(folder)

    def close(self) -> None:
        for stream, _ in self._open.values():
            stream.close()


def cached(
    cache: str | None, source: list, write: Callable[[EntryWriter], dict[str, Any]]
) -> Entry:
    """The entry for a source, from the cache or written now.

    cache: the folder of entries, None for the user's cache folder. source: plain data that changes whenever
    the entry would. write appends the arrays and returns the facts. Processes that ask for the same entry
    wait for the first of them. Raises UserError if the folder cannot be written.
    """
    root = (
        user_path(cache, "data.cache")
        if cache is not None
        else default_cache_folder().with_name("lra")
    )
    folder = root / hashlib.sha256(json.dumps(source).encode()).hexdigest()
    try:
        return open_entry(folder)
    except (OSError, DamagedEntry):
        pass
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            try:
                return open_entry(folder)  # another process was first
            except FileNotFoundError:
                pass
            except DamagedEntry as error:
                logger.warning("the data cache is written again: %s", error)
            shutil.rmtree(folder, ignore_errors=True)
            _write(folder, write)
            return open_entry(folder)
    except OSError as error:
        raise UserError(
            f"the data cache {root} cannot be written: {error}; make room there, or set cache to "
            "another folder"
        ) from error


def open_entry(folder: Path) -> Entry:
    """Raises FileNotFoundError if there is none, DamagedEntry if its files are not what `meta.json` says."""
    with open(folder / META) as file:
        try:
            content = json.load(file)
            arrays = {name: _map(folder / name, each) for name, each in content["arrays"].items()}
            fingerprint = content.pop("fingerprint")
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            FileNotFoundError,
            RecursionError,
        ) as error:
            raise DamagedEntry(f"{folder}: {error}") from None
    if fingerprint != _fingerprint(content):
        raise DamagedEntry(f"{folder / META} was changed")
    return Entry(arrays, content["facts"], fingerprint)


def _map(path: Path, description: dict) -> np.ndarray:
    dtype = np.dtype(description["dtype"])
    shape = tuple(description["shape"])
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if path.stat().st_size != size:
        raise DamagedEntry(f"{path} is not a file of {size} bytes")
    if size == 0:  # an empty file cannot be mapped
        return np.empty(shape, dtype)
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != description["sha256"]:
        raise DamagedEntry(f"{path} is not what was written")
    return np.memmap(path, dtype, "r", shape=shape)


def _write(folder: Path, write: Callable[[EntryWriter], dict[str, Any]]) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: we hold the lock
    partial.mkdir()
    writer = EntryWriter(partial)
    try:
        writer.finish(write(writer))
        os.rename(partial, folder)
    finally:
        writer.close()
        shutil.rmtree(partial, ignore_errors=True)
    sync(folder.parent)


def _fingerprint(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
