"""The on-disk cache of tokenised text: written once as a stream, then read a window at a time.

An entry is a folder with `tokens.bin` (uint16, or uint32 for a vocabulary above 65,536), `documents.bin`
(int64, where each document starts) and `meta.json`. It is written under a temporary name and renamed when all
of it is on disk, so that an entry is whole or absent. Neither writing nor reading holds or maps more than a
window.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hgrn.data.encoding import ByteEncoder, TextEncoder, make_encoder
from hgrn.data.text import SplitText, TextData
from hgrn.errors import UserError

FORMAT = 1  # raise it when the same text and tokenizer give other files
TOKENS, DOCUMENTS, META = "tokens.bin", "documents.bin", "meta.json"
STARTS_DTYPE = np.dtype(np.int64)
PAGE = 512  # document starts read at a time

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says. fingerprint is a hash of the tokens, the document starts and the vocabulary."""

    num_tokens: int
    num_documents: int
    num_bytes: int
    first_token_bytes: int
    vocab_size: int
    eos_id: int | None
    fingerprint: str

    @property
    def dtype(self) -> np.dtype:
        return _dtype(self.vocab_size)


class TokenFile:
    """The tokens of one split, on disk; `len` is their number. Safe to use from several threads.

    num_documents, vocab_size, eos_id (None if the tokenizer has none), fingerprint (equal for equal tokens,
    wherever they came from) are as in `meta.json`. For bits per byte: num_bytes is the length of the text in
    bytes (with documents: line, of the lines and the newlines between them), of which the first token covers
    first_token_bytes.
    """

    def __init__(self, folder: Path):
        self.meta = _read_meta(folder)
        # Open files outlive a cache that is emptied while a long run reads it.
        self._tokens = os.open(folder / TOKENS, os.O_RDONLY)
        weakref.finalize(self, os.close, self._tokens)
        self._documents = os.open(folder / DOCUMENTS, os.O_RDONLY)
        weakref.finalize(self, os.close, self._documents)

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
        """Tokens start to start + length, int64 [length]."""
        if not 0 <= start <= start + length <= len(self):
            raise ValueError(f"tokens {start} to {start + length} are not in a file of {len(self)}")
        return _read(self._tokens, self.meta.dtype, start, length).astype(np.int64)

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """The positions in [start, stop) at which a document starts, int64, ascending."""
        first, last = self._documents_before(start), self._documents_before(stop)
        return _read(self._documents, STARTS_DTYPE, first, last - first)

    def _documents_before(self, position: int) -> int:
        """How many documents start before position."""
        low, high = 0, self.num_documents
        while high - low > PAGE:
            middle = (low + high) // 2
            if _read(self._documents, STARTS_DTYPE, middle, 1)[0] < position:
                low = middle
            else:
                high = middle
        return low + int(np.searchsorted(_read(self._documents, STARTS_DTYPE, low, high - low), position))


def prepare(data: TextData, split: str, progress: Progress | None = None) -> TokenFile:
    """The tokens of one split, from the cache or tokenised now.

    progress is called with the bytes of text done and in all (None if unknown). Processes that prepare the
    same split wait for the first of them. Raises UserError for whatever is wrong with the text (see
    `SplitText`), for bytes that the tokenizer cannot take, for a split without text, and for a cache folder
    that cannot be written.
    """
    text = SplitText(data, split)
    encoder = make_encoder(data.tokenizer, by_line=data.documents == "line")
    source = json.dumps([FORMAT, text.signature(), data.documents, encoder.signature])
    folder = _cache_folder(data) / hashlib.sha256(source.encode()).hexdigest()
    try:
        return TokenFile(folder)
    except (OSError, DamagedEntry):
        pass
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            return _open_or_write(folder, text, encoder, progress)
    except OSError as error:
        raise UserError(f"the token cache {folder.parent} cannot be written: {error}; make room there, or "
                        "set data.cache to another folder") from error


def default_cache_folder() -> Path:
    """`hgrn/tokens` in the user's cache folder: $XDG_CACHE_HOME, or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "hgrn" / "tokens"


class DamagedEntry(ValueError):
    """A cache entry whose files are not what its meta.json says; it is written again."""


def _cache_folder(data: TextData) -> Path:
    return Path(data.cache).expanduser() if data.cache is not None else default_cache_folder()


def _open_or_write(folder: Path, text: SplitText, encoder: ByteEncoder | TextEncoder,
                   progress: Progress | None) -> TokenFile:
    try:
        return TokenFile(folder)  # another process was first
    except (FileNotFoundError, DamagedEntry):
        shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: we hold the lock
    partial.mkdir()
    try:
        _write(partial, text, encoder, progress)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)
    return TokenFile(folder)


def _write(folder: Path, text: SplitText, encoder: ByteEncoder | TextEncoder,
           progress: Progress | None) -> None:
    dtype, total_bytes = _dtype(encoder.vocab_size), text.total_bytes
    num_tokens = num_documents = num_bytes = 0
    first_token = None
    tokens_hash, starts_hash = hashlib.sha256(), hashlib.sha256()
    with open(folder / TOKENS, "xb") as tokens_file, open(folder / DOCUMENTS, "xb") as starts_file:
        for encoded in encoder.encode(text.units(encoder.whole_characters)):
            tokens = encoded.tokens.astype(dtype, copy=False)
            starts = encoded.starts + num_tokens
            tokens_file.write(tokens)
            tokens_hash.update(tokens)
            starts_file.write(starts)
            starts_hash.update(starts)
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
    meta = Meta(num_tokens=num_tokens, num_documents=num_documents, num_bytes=num_bytes,
                first_token_bytes=encoder.first_token_bytes(first_token), vocab_size=encoder.vocab_size,
                eos_id=encoder.eos_id, fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest())
    with open(folder / META, "x") as file:
        json.dump({**asdict(meta), "dtype": dtype.name}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _read_meta(folder: Path) -> Meta:
    with open(folder / META) as file:
        try:
            content = json.load(file)
            content.pop("dtype")
            meta = Meta(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedEntry(f"{folder / META}: {error}") from None
    for name, size in ((TOKENS, meta.num_tokens * meta.dtype.itemsize),
                       (DOCUMENTS, meta.num_documents * STARTS_DTYPE.itemsize)):
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise DamagedEntry(f"{path} is not a file of {size} bytes")
    return meta


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _read(descriptor: int, dtype: np.dtype, start: int, length: int) -> np.ndarray:
    data = os.pread(descriptor, length * dtype.itemsize, start * dtype.itemsize)
    if len(data) != length * dtype.itemsize:
        raise OSError("a token file became shorter while it was in use; prepare the data again")
    return np.frombuffer(data, dtype=dtype)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file; the system lets go of it when the process ends, however it ends."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync_folder(folder: Path) -> None:
    """Waits until the entries of a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
