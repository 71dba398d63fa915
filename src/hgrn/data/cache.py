"""The on-disk caches of prepared data: folders of arrays, written once and checked when opened.

An entry is a folder with one file of raw numbers for each array and `meta.json`, which describes
the arrays and holds the checksums. Its name is a hash of what it was made from. `cached` writes an
entry under another name and renames it when all of it is on disk, so an entry is whole or absent.
At every later start it compares each byte with its checksum, and writes a damaged entry again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hgrn.data.disk import locked, user_path
from hgrn.files import remove, whole_folder, writing

FORMAT = 1  # raise it when the same arrays and facts give other files
META = "meta.json"

logger = logging.getLogger(__name__)


class DamagedEntry(ValueError):
    """A cache entry is not what was written."""


@dataclass
class StoredArray:
    """What `meta.json` says of an array.

    dtype: numpy's code, such as "<u2". sha256: goes into the fingerprint of the data, which
    checkpoints record. xxh3: tells at every start whether the file is still what was written;
    SHA-256 would take five times as long.
    """

    dtype: str
    shape: list[int]
    sha256: str = ""
    xxh3: str = ""

    @property
    def num_bytes(self) -> int:
        """The size of the file."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Entry:
    """One entry of a cache; `open_entry` reads it.

    stored: what is known of each array, by the name of its file. facts: plain data from whoever
    wrote the entry.
    """

    folder: Path
    stored: dict[str, StoredArray]
    facts: dict[str, Any]

    def verify(self) -> None:
        """Read all arrays, a second for some GB. Raises DamagedEntry for any other byte."""
        for name, array in self.stored.items():
            with open(self.folder / name, "rb") as file:
                found = hashlib.file_digest(file, xxhash.xxh3_128)
            if found.hexdigest() != array.xxh3:
                raise DamagedEntry(f"{self.folder} is not what was written: {name} was changed")

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, read-only and mapped into memory."""
        return {name: _map(self.folder / name, array) for name, array in self.stored.items()}

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of arrays and facts: equal for equal content, wherever it came from."""
        arrays = {name: asdict(array) for name, array in self.stored.items()}
        for array in arrays.values():
            del array["xxh3"]
        return _sha256({"facts": self.facts, "arrays": arrays})


@dataclass
class EntryWriter:
    """Writes the arrays of an entry into a folder, each in pieces along its first axis."""

    folder: Path
    stored: dict[str, StoredArray] = field(default_factory=dict)
    _open: dict[str, tuple] = field(default_factory=dict)

    def append(self, name: str, piece: np.ndarray) -> None:
        """Add rows to an array. Its first piece decides its type and the shape of a row."""
        if name not in self.stored:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stored[name] = StoredArray(piece.dtype.str, [0, *piece.shape[1:]])
            file = open(path, "xb")  # noqa: SIM115, stays open until `close`
            self._open[name] = (file, hashlib.sha256(), xxhash.xxh3_128())
        array = self.stored[name]
        if piece.dtype.str != array.dtype or list(piece.shape[1:]) != array.shape[1:]:
            raise ValueError(
                f"array {name} has {array}; got a piece of {piece.dtype} {piece.shape}"
            )
        file, sha256, xxh3 = self._open[name]
        data = np.ascontiguousarray(piece).data  # its bytes, not copied
        file.write(data)
        sha256.update(data)
        xxh3.update(data)
        array.shape[0] += len(piece)

    def finish(self, facts: dict[str, Any]) -> None:
        """Write `meta.json`, when all pieces are there."""
        self.close()
        for name, (_, sha256, xxh3) in self._open.items():
            self.stored[name].sha256 = sha256.hexdigest()
            self.stored[name].xxh3 = xxh3.hexdigest()
        arrays = {name: asdict(array) for name, array in self.stored.items()}
        content = {"facts": facts, "arrays": arrays}
        with open(self.folder / META, "x", encoding="utf-8") as meta:
            json.dump({**content, "checksum": _sha256(content)}, meta, indent=1)

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        for file, *_ in self._open.values():
            file.close()


def cache_folder(kind: str, cache: str | None = None) -> Path:
    """The folder of entries: `cache`, or else `hgrn/<kind>` in the user's cache folder.

    The user's cache folder is $XDG_CACHE_HOME, or ~/.cache. Raises UserError for an empty path, and
    where the user has no home.
    """
    if cache is not None:
        return user_path(cache, "data.cache")
    root = os.environ.get("XDG_CACHE_HOME")
    user = Path(root) if root else user_path("~/.cache", "XDG_CACHE_HOME or data.cache")
    return user / "hgrn" / kind


def cached(root: Path, source: list, write: Callable[[EntryWriter], dict[str, Any]]) -> Entry:
    """The entry for a source, checked byte by byte: from the cache, or written now.

    root: the folder of entries. source: plain data that changes whenever the entry would. write:
    appends the arrays and returns the facts. Processes that ask for the same entry wait for the
    first of them. Raises UserError if the folder cannot be written.
    """
    folder = root / hashlib.sha256(json.dumps([FORMAT, source]).encode()).hexdigest()
    try:
        return _verified(folder)
    except (OSError, DamagedEntry):
        pass  # the words about it follow under the lock, if it is still so then
    # The lock lets only one process write an entry; `whole_folder` makes it whole or absent, even
    # if this process is killed.
    remedy = "make room there, or set data.cache to another folder"
    with writing(root, remedy):
        root.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            try:
                return _verified(folder)  # another process was first
            except FileNotFoundError as error:
                if folder.exists():
                    logger.warning("the data cache is written again: no %s", error.filename)
            except DamagedEntry as error:
                logger.warning("the data cache is written again: %s", error)
            remove(folder)
            with whole_folder(folder, remedy) as draft:
                writer = EntryWriter(draft)
                try:
                    writer.finish(write(writer))
                finally:
                    writer.close()
            return _verified(folder)


def open_entry(folder: Path) -> Entry:
    """The entry in a folder; of its arrays only the sizes are checked (see `Entry.verify`).

    Raises FileNotFoundError if there is no `meta.json`, DamagedEntry if that was changed or if a
    file is missing or of another size.
    """
    with open(folder / META, encoding="utf-8") as file:
        try:
            content = json.load(file)
            checksum = content.pop("checksum")
            stored = {name: StoredArray(**array) for name, array in content["arrays"].items()}
            entry = Entry(folder, stored, content["facts"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedEntry(f"{folder} is not what was written: {META}: {error}") from None
    if checksum != _sha256(content):
        raise DamagedEntry(f"{folder} is not what was written: {META} was changed")
    for name, array in stored.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != array.num_bytes:
            raise DamagedEntry(f"{path} is not a file of {array.num_bytes} bytes")
    return entry


def _verified(folder: Path) -> Entry:
    entry = open_entry(folder)
    entry.verify()
    return entry


def _map(path: Path, array: StoredArray) -> np.ndarray:
    shape = tuple(array.shape)
    if array.num_bytes == 0:  # an empty file cannot be mapped
        return np.empty(shape, array.dtype)
    return np.memmap(path, array.dtype, "r", shape=shape)


def _sha256(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
