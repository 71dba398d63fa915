"""Finds and reads the files of text that a recipe names.

Plain text is a stream of bytes. JSON Lines (`.jsonl`, `.ndjson`), `.json`, `.csv`, `.tsv` and
`.parquet` are streams of records. Each may be compressed. Nothing here holds more of a file than
one block or one record.
"""

import bz2
import glob
import gzip
import hashlib
import importlib.resources
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hgrn.data import records
from hgrn.data.content import not_text
from hgrn.errors import UserError, near

BLOCK = 1 << 22  # bytes read at a time
CORPUS_PREFIX = "corpus:"
CORPORA = {"shakespeare": "shakespeare.txt.xz"}
JSON_LINES = (".jsonl", ".ndjson")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
RECORDS = (*JSON_LINES, ".json", *DELIMITERS, PARQUET)
PICKLES = (".pkl", ".pickle")  # the oldest pickles look like text
SUFFIXES_IN_FOLDERS = (".txt", ".md", ".jsonl")
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
OTHER_COMPRESSION = (".zst", ".lz4", ".zip", ".7z")
# Bytes after decompression. A limit is needed, because a few compressed bytes can stand for any
# number of them.
LONGEST_LINE = 1 << 28
EDGE = 1 << 20  # bytes at either end of a file that tell two versions of it apart


@dataclass(frozen=True)
class TextFile:
    """One file; `name` is what messages call it."""

    name: str
    path: Path

    @property
    def has_records(self) -> bool:
        return _text_suffix(self.path) in RECORDS

    @property
    def size_on_disk(self) -> int | None:
        """Bytes of text; None for a compressed file, which would have to be read."""
        return None if _suffix(self.path) in OPENERS else self.path.stat().st_size

    def size(self) -> int:
        """Bytes of text after decompression."""
        known = self.size_on_disk
        return sum(len(block) for block in self.blocks()) if known is None else known

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes from start to stop (None: the end), in blocks of at most `BLOCK`."""
        with self._open() as stream:
            stream.seek(start)
            left = stop - start if stop is not None else None
            while block := stream.read(BLOCK if left is None else min(BLOCK, left)):
                yield block
                left = None if left is None else left - len(block)

    def records(
        self, text_field: str = "text", number_field: str | None = None
    ) -> Iterator[tuple[str, dict]]:
        """Each record with its place, as "file:line". Blank lines are skipped.

        The fields of a table are text, so `number_field` is turned into a number. Of parquet only
        these two columns are read.
        """
        suffix = _text_suffix(self.path)
        if suffix in JSON_LINES:
            yield from records.json_lines(self.lines(), self.name)
            return
        with self._open() as stream:
            if suffix == PARQUET:
                wanted = [text_field] if number_field is None else [text_field, number_field]
                yield from records.parquet_rows(stream, self.name, wanted)
                return
            with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
                if suffix in DELIMITERS:
                    yield from records.csv_rows(text, self.name, DELIMITERS[suffix], number_field)
                else:
                    yield from records.json_values(text, self.name)

    def count_records(self) -> int:
        suffix = _text_suffix(self.path)
        if suffix in JSON_LINES:
            return sum(1 for _ in self.lines())
        if suffix == PARQUET:
            with self._open() as stream:
                return records.count_parquet_rows(stream, self.name)
        return sum(1 for _ in self.records())

    def check_content(self) -> None:
        """Raises UserError if the file is no text by its first bytes."""
        suffix = _text_suffix(self.path)
        if suffix == PARQUET:  # its reader checks it
            return
        found = not_text(b"".join(self.blocks(0, EDGE)))
        if suffix in PICKLES:
            found = found or ("a pickle", "save its text as plain text or JSON Lines")
        if found is not None:
            what, remedy = found
            raise UserError(f"{self.name} is {what}, and is not read as text: {remedy}")

    def character_border(self, position: int) -> int:
        """The first byte at or after position that does not continue a UTF-8 character."""
        # A character has at most three continuing bytes, 0x80 to 0xBF.
        if position == 0:
            return 0
        with self._open() as stream:
            stream.seek(position)
            ahead = stream.read(3)
        return position + len(ahead) - len(ahead.lstrip(bytes(range(0x80, 0xC0))))

    def signature(self) -> list:
        """Plain data that changes when the file does, made without reading all of it."""
        if self.name.startswith(CORPUS_PREFIX):  # its mtime is that of the installation
            return [self.path.name, hashlib.sha256(self.path.read_bytes()).hexdigest()]
        digest = hashlib.sha256()
        try:
            stat = self.path.stat()
            with open(self.path, "rb") as stream:
                digest.update(stream.read(EDGE))
                stream.seek(max(0, stat.st_size - EDGE))
                digest.update(stream.read(EDGE))
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {error.strerror}") from None
        return [self.path.name, stat.st_size, stat.st_mtime_ns, digest.hexdigest()]

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line that is not blank, with its number from 1.

        Raises:
            UserError: a line is longer than `LONGEST_LINE`.
        """
        with self._open() as stream:
            number = 0
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UserError(
                        f"{self.name}:{number}: the line has more than {LONGEST_LINE:,} bytes, "
                        "which no record needs; cut the text into several, or give it as plain text"
                    )
                if not line.isspace():
                    yield number, line

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        opener = OPENERS.get(_suffix(self.path), open)
        try:
            with opener(self.path, "rb") as stream:
                yield stream
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"{self.name} cannot be read: {error}") from None


def expand(entry: str) -> tuple[list[TextFile], str | None]:
    """The files behind one entry of a recipe, and what is wrong with the entry (or None).

    An entry is a file, a folder, a glob or `corpus:NAME`. A folder stands for its .txt, .md and
    .jsonl files, compressed ones too, at any depth, sorted. Hidden files and folders are left out.
    """
    if entry.startswith(CORPUS_PREFIX):
        return _expand_corpus(entry)
    if not entry.strip():
        return [], f"the name {entry!r} is empty; name a file or a folder (. is the current folder)"
    try:
        return _expand_path(entry, Path(entry).expanduser())
    except (OSError, RuntimeError, ValueError) as error:  # too long, forbidden, ~ of nobody, a NUL
        return [], f"file {entry} cannot be looked up: {error}"


def _expand_path(entry: str, path: Path) -> tuple[list[TextFile], str | None]:
    if path.is_file():
        found = [path]
    elif path.is_dir():
        inside = (child for child in path.rglob("*") if child.is_file())
        found = sorted(child for child in inside if _belongs(child.relative_to(path)))
        if not found:
            kinds = ", ".join(SUFFIXES_IN_FOLDERS)
            return [], (
                f"folder {entry} has no {kinds} files (plain or compressed); others are read if "
                "they are named one by one, or by a pattern such as 'FOLDER/*.parquet'"
            )
    elif glob.has_magic(entry):
        found = sorted(
            Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file()
        )
        if not found:
            return [], f"no file matches {entry}"
    else:
        return [], _missing(entry, path)
    for each in found:
        if _suffix(each) in OTHER_COMPRESSION:
            return [], (
                f"{each} is compressed in a way that is not read here; use "
                f"{', '.join(OPENERS)}, or decompress it"
            )
    return [TextFile(str(each), each) for each in found], None


def _expand_corpus(entry: str) -> tuple[list[TextFile], str | None]:
    name = entry.removeprefix(CORPUS_PREFIX)
    if name not in CORPORA:
        known = ", ".join(CORPUS_PREFIX + each for each in CORPORA)
        return [], f"unknown corpus {name!r}; there is {known}"
    resource = importlib.resources.files("hgrn.data").joinpath("corpora", CORPORA[name])
    return [TextFile(entry, Path(str(resource)))], None


def _belongs(relative: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return not hidden and _text_suffix(relative) in SUFFIXES_IN_FOLDERS


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _text_suffix(path: Path) -> str:
    """The suffix without that of the compression."""
    compressed = _suffix(path) in OPENERS or _suffix(path) in OTHER_COMPRESSION
    return _suffix(path.with_suffix("") if compressed else path)


def _missing(entry: str, path: Path) -> str:
    if not path.parent.is_dir():
        return f"file {entry} not found: there is no folder {path.parent}"
    siblings = [sibling.name for sibling in path.parent.iterdir()]
    return f"file {entry} not found{near(path.name, siblings)}"
