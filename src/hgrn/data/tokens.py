"""Tokenised text on disk: written once as a stream, then read a window at a time.

An entry of the cache has `tokens.bin` (uint16, or uint32 for a vocabulary above 65,536) and
`documents.bin` (int64, where each document starts). Neither writing nor reading holds or maps more
than a window.
"""

import hashlib
import json
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hgrn.data.cache import EntryWriter, cache_folder, cached, open_entry
from hgrn.data.encoding import ByteEncoder, TextEncoder, make_encoder
from hgrn.data.text import SplitText, TextData
from hgrn.errors import UserError

FORMAT = 2  # raise it when the same text and tokenizer give other files
TOKENS = "tokens.bin"
DOCUMENTS = "documents.bin"
PAGE = 512  # document starts read at a time

Progress = Callable[[int, int | None], None]


class TokenFile:
    """The tokens of one split, on disk; `len` is their number. Safe to use from several threads.

    vocab_size, eos_id (None if the tokenizer has none): of the tokenizer. num_documents: how many
    documents the text has. num_bytes: the length of the text in bytes (with documents: line, of the
    lines and the newlines between them), of which the first token covers first_token_bytes; bits
    per byte need both. fingerprint: a SHA-256 of tokens, document starts and vocabulary, equal for
    equal tokens, wherever they came from; checkpoints record it.

    Raises FileNotFoundError or DamagedEntry for a folder that is not a whole entry.
    """

    vocab_size: int
    eos_id: int | None
    num_bytes: int
    first_token_bytes: int

    def __init__(self, folder: Path):
        entry = open_entry(folder)
        self.folder = folder
        self.vocab_size = entry.facts["vocab_size"]
        self.eos_id = entry.facts["eos_id"]
        self.num_bytes = entry.facts["num_bytes"]
        self.first_token_bytes = entry.facts["first_token_bytes"]
        tokens = entry.stored[TOKENS]
        documents = entry.stored[DOCUMENTS]
        self.num_documents = documents.shape[0]
        self.dtype = np.dtype(tokens.dtype)
        content = json.dumps([self.vocab_size, tokens.sha256, documents.sha256])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()
        self._length = tokens.shape[0]
        # Open files outlive a cache that is emptied while a long run reads it.
        self._tokens = _NumberFile(folder / TOKENS, self.dtype)
        self._documents = _NumberFile(folder / DOCUMENTS, np.dtype(documents.dtype))

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens start to start + length, int64 [length].

        Raises UserError for an id beyond the vocabulary: the file was changed since it was checked.
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
        # Halve the range by single reads until it fits into a page; the page is searched in memory.
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
    source = ["tokens", FORMAT, text.signature(), data.documents, encoder.signature]

    def write(writer: EntryWriter) -> dict:
        return _write(writer, text, encoder, progress)

    return TokenFile(cached(cache_folder("tokens", data.cache), source, write).folder)


def _write(
    writer: EntryWriter,
    text: SplitText,
    encoder: ByteEncoder | TextEncoder,
    progress: Progress | None,
) -> dict:
    text.check_content()
    dtype = np.dtype(np.uint16 if encoder.vocab_size <= 1 << 16 else np.uint32)
    total_bytes = text.total_bytes
    num_tokens = 0
    num_bytes = 0
    first_token = None
    for encoded in encoder.encode(text.units(encoder.whole_characters)):
        writer.append(TOKENS, encoded.tokens.astype(dtype, copy=False))
        writer.append(DOCUMENTS, encoded.starts + num_tokens)
        if first_token is None and encoded.tokens.size:
            first_token = int(encoded.tokens[0])
        num_tokens += encoded.tokens.size
        num_bytes += encoded.num_bytes
        if progress is not None:
            progress(num_bytes, total_bytes)
    if first_token is None or num_bytes == 0:
        raise UserError(f"{text.name} holds no text; check its files, span and select")
    return {
        "vocab_size": encoder.vocab_size,
        "eos_id": encoder.eos_id,
        "num_bytes": num_bytes,
        "first_token_bytes": encoder.first_token_bytes(first_token),
    }


class _NumberFile:
    """An open file of numbers of one type, read a window at a time from any thread."""

    def __init__(self, path: Path, dtype: np.dtype):
        self.path = path
        self.dtype = dtype
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._turn = threading.Lock()

    def read(self, start: int, length: int) -> np.ndarray:
        """Numbers start to start + length, [length]."""
        data = self._bytes(start * self.dtype.itemsize, length * self.dtype.itemsize)
        if len(data) != length * self.dtype.itemsize:
            raise UserError(
                f"{self.path} became shorter while it was in use; start again, and it is "
                "written anew"
            )
        return np.frombuffer(data, dtype=self.dtype)

    def _bytes(self, start: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, length, start)
        with self._turn:  # Windows has one position for all threads
            os.lseek(self._descriptor, start, os.SEEK_SET)
            return os.read(self._descriptor, length)
