"""The on-disk cache of tokenised text: written once as a stream, then read a window at a time.

An entry is a folder with `tokens.bin` (uint16, or uint32 for a vocabulary above 65,536),
`documents.bin` (int64, where each document starts) and `meta.json`. It is written under a temporary
name and renamed when all of it is on disk, so that an entry is whole or absent. `prepare` compares
every byte of an entry with the checksum that was written with it, and an entry that was damaged or
changed is written again. Neither writing nor reading holds or maps more than a window.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from hgrn.data.disk import locked, user_path
from hgrn.data.encoding import ByteEncoder, TextEncoder, make_encoder
from hgrn.data.text import SplitText, TextData
from hgrn.errors import UserError
from hgrn.files import sync

FORMAT = 2  # raise it when the same text and tokenizer give other files
TOKENS = "tokens.bin"
DOCUMENTS = "documents.bin"
META = "meta.json"
STARTS_DTYPE = np.dtype(np.int64)
PAGE = 512  # document starts read at a time
CHECKED = 1 << 20  # bytes read at a time to compare them with their checksum

Progress = Callable[[int, int | None], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says.

    fingerprint is a SHA-256 of the tokens, the document starts and the vocabulary; a checkpoint
    records it. checksum is an XXH3 of the files and of all that stands here: it says that an entry
    is still what was written, and is computed at every start, for which SHA-256 is five times too
    slow.
    """

    num_tokens: int
    num_documents: int
    num_bytes: int
    first_token_bytes: int
    vocab_size: int
    eos_id: int | None
    fingerprint: str
    checksum: str = ""

    @property
    def dtype(self) -> np.dtype:
        return _dtype(self.vocab_size)


class TokenFile:
    """The tokens of one split, on disk; `len` is their number. Safe to use from several threads.

    num_documents, vocab_size, eos_id (None if the tokenizer has none), fingerprint (equal for equal
    tokens, wherever they came from) are as in `meta.json`. For bits per byte: num_bytes is the
    length of the text in bytes (with documents: line, of the lines and the newlines between them),
    of which the first token covers first_token_bytes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.meta = _read_meta(folder)
        # Open files outlive a cache that is emptied while a long run reads it.
        self._tokens = _NumberFile(folder / TOKENS, self.meta.dtype)
        self._documents = _NumberFile(folder / DOCUMENTS, STARTS_DTYPE)

    def verify(self) -> None:
        """Read everything, a second for some GB. Raises DamagedEntry unless it is what was written."""
        found = _checksum(self.meta, self._tokens.digest(), self._documents.digest())
        if found != self.meta.checksum:
            raise DamagedEntry(f"{self.folder} is not what was written")

    def __len__(self) -> int:
        return self.meta.num_tokens

    @property
    def num_documents(self) -> int:
        return self.meta.num_documents

    @property
    def num_bytes(self) -> int:
        return self.meta.num_bytes

    @property
    def first_token_bytes(self) -> int:
        return self.meta.first_token_bytes

    @property
    def vocab_size(self) -> int:
        return self.meta.vocab_size

    @property
    def eos_id(self) -> int | None:
        return self.meta.eos_id

    @property
    def fingerprint(self) -> str:
        return self.meta.fingerprint

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens start to start + length, int64 [length].

        Raises UserError for an id beyond the vocabulary: the file was changed since it was
        verified.
        """
        if not 0 <= start <= start + length <= len(self):
            raise ValueError(f"tokens {start} to {start + length} are not in a file of {len(self)}")
        tokens = self._tokens.read(start, length)
        if length and tokens.max() >= self.vocab_size:
            raise UserError(
                f"{self.folder / TOKENS} was changed while it was in use: it holds token "
                f"{tokens.max()}, and the vocabulary has {self.vocab_size}; start again, and "
                "it is written anew"
            )
        return tokens.astype(np.int64)

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """The positions in [start, stop) at which a document starts, int64, ascending."""
        first = self._documents_before(start)
        last = self._documents_before(stop)
        return self._documents.read(first, last - first)

    def _documents_before(self, position: int) -> int:
        """How many documents start before position."""
        low = 0
        high = self.num_documents
        while high - low > PAGE:
            middle = (low + high) // 2
            if self._documents.read(middle, 1)[0] < position:
                low = middle
            else:
                high = middle
        return low + int(np.searchsorted(self._documents.read(low, high - low), position))


def prepare(data: TextData, split: str, progress: Progress | None = None) -> TokenFile:
    """The tokens of one split, from the cache or tokenised now.

    progress is called with the bytes of text done and in all (None if unknown). Processes that
    prepare the same split wait for the first of them, and each of them verifies what it opens.
    Raises UserError for whatever is wrong with the text (see `SplitText`), for a file that is no
    text, for bytes that the tokenizer cannot take, for a split without text, and for a cache folder
    that cannot be written.
    """
    text = SplitText(data, split)
    encoder = make_encoder(data.tokenizer, by_line=data.documents == "line")
    source = json.dumps([FORMAT, text.signature(), data.documents, encoder.signature])
    folder = _cache_folder(data) / hashlib.sha256(source.encode()).hexdigest()
    try:
        return _open(folder)
    except (OSError, DamagedEntry):
        pass
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            return _open_or_write(folder, text, encoder, progress)
    except OSError as error:
        raise UserError(
            f"the token cache {folder.parent} cannot be written: {error}; make room there, or "
            "set data.cache to another folder"
        ) from error


def default_cache_folder() -> Path:
    """`hgrn/tokens` in the user's cache folder: $XDG_CACHE_HOME, or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    cache = Path(root) if root else user_path("~/.cache", "XDG_CACHE_HOME or data.cache")
    return cache / "hgrn" / "tokens"


class DamagedEntry(ValueError):
    """A cache entry whose files are not what its meta.json says; it is written again."""


def _cache_folder(data: TextData) -> Path:
    return user_path(data.cache, "data.cache") if data.cache is not None else default_cache_folder()


def _open(folder: Path) -> TokenFile:
    """The entry, verified."""
    tokens = TokenFile(folder)
    tokens.verify()
    return tokens


def _open_or_write(
    folder: Path, text: SplitText, encoder: ByteEncoder | TextEncoder, progress: Progress | None
) -> TokenFile:
    try:
        return _open(folder)  # another process was first
    except FileNotFoundError as error:
        if folder.exists():
            logger.warning("the token cache is written again: %s is missing", error.filename)
    except DamagedEntry as error:
        logger.warning("the token cache is written again: %s", error)
    shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: we hold the lock
    partial.mkdir()
    try:
        _write(partial, text, encoder, progress)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(folder.parent)
    return _open(folder)


def _write(
    folder: Path, text: SplitText, encoder: ByteEncoder | TextEncoder, progress: Progress | None
) -> None:
    text.check_content()
    dtype = _dtype(encoder.vocab_size)
    total_bytes = text.total_bytes
    num_tokens = num_documents = num_bytes = 0
    first_token = None
    tokens_hash = hashlib.sha256()
    starts_hash = hashlib.sha256()
    tokens_check = xxhash.xxh3_128()
    starts_check = xxhash.xxh3_128()
    with open(folder / TOKENS, "xb") as tokens_file, open(folder / DOCUMENTS, "xb") as starts_file:
        for encoded in encoder.encode(text.units(encoder.whole_characters)):
            tokens = encoded.tokens.astype(dtype, copy=False)
            starts = encoded.starts + num_tokens
            tokens_file.write(tokens)
            tokens_hash.update(tokens)
            tokens_check.update(tokens)
            starts_file.write(starts)
            starts_hash.update(starts)
            starts_check.update(starts)
            if first_token is None and tokens.size:
                first_token = int(tokens[0])
            num_tokens += tokens.size
            num_documents += starts.size
            num_bytes += encoded.num_bytes
            if progress is not None:
                progress(num_bytes, total_bytes)
        if first_token is None or num_bytes == 0:
            raise UserError(f"{text.name} holds no text; check its files, span and select")
        for file in (tokens_file, starts_file):
            file.flush()
            os.fsync(file.fileno())
    content = [encoder.vocab_size, tokens_hash.hexdigest(), starts_hash.hexdigest()]
    meta = Meta(
        num_tokens=num_tokens,
        num_documents=num_documents,
        num_bytes=num_bytes,
        first_token_bytes=encoder.first_token_bytes(first_token),
        vocab_size=encoder.vocab_size,
        eos_id=encoder.eos_id,
        fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )
    checksum = _checksum(meta, tokens_check.hexdigest(), starts_check.hexdigest())
    meta = replace(meta, checksum=checksum)
    with open(folder / META, "x", encoding="utf-8") as file:
        json.dump({**asdict(meta), "dtype": dtype.name}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(folder)


def _read_meta(folder: Path) -> Meta:
    with open(folder / META, encoding="utf-8") as file:
        try:
            content = json.load(file)
            content.pop("dtype")
            meta = Meta(**content)
            sizes = {
                TOKENS: meta.num_tokens * meta.dtype.itemsize,
                DOCUMENTS: meta.num_documents * STARTS_DTYPE.itemsize,
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedEntry(f"{folder / META}: {error}") from None
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise DamagedEntry(f"{path} is not a file of {size} bytes")
    return meta


def _checksum(meta: Meta, tokens: str, starts: str) -> str:
    """Of an entry, from the digests of its two files."""
    content = [asdict(replace(meta, checksum="")), tokens, starts]
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class _NumberFile:
    """An open file of numbers of one type, read a window at a time from any thread."""

    def __init__(self, path: Path, dtype: np.dtype):
        self.path = path
        self.dtype = dtype
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._turn = threading.Lock()

    def read(self, start: int, length: int) -> np.ndarray:
        data = self._bytes(start * self.dtype.itemsize, length * self.dtype.itemsize)
        if len(data) != length * self.dtype.itemsize:
            raise UserError(
                f"{self.path} became shorter while it was in use; start again, and it is "
                "written anew"
            )
        return np.frombuffer(data, dtype=self.dtype)

    def digest(self) -> str:
        """The XXH3 of the whole file."""
        digest = xxhash.xxh3_128()
        position = 0
        while block := self._bytes(position, CHECKED):
            digest.update(block)
            position += len(block)
        return digest.hexdigest()

    def _bytes(self, start: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, length, start)
        with self._turn:  # Windows has one position for all threads
            os.lseek(self._descriptor, start, os.SEEK_SET)
            return os.read(self._descriptor, length)
