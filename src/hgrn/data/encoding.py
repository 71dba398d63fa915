"""Turns text into a stream of tokens, with the end-of-text token between documents."""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hgrn.data.text import Unit
from hgrn.data.tokenizer import (
    BYTE_EOS,
    BYTE_VOCAB_SIZE,
    BYTES,
    bytes_to_ids,
    is_byte_tokenizer,
    load_tokenizer,
)
from hgrn.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 1 << 18  # characters of one document that a tokenizer gets as one text
BATCH = 1 << 22  # characters that it gets at a time, as texts for its threads to share
BATCH_TEXTS = 4096  # so that empty lines end a batch too


@dataclass(frozen=True, eq=False)
class Encoded:
    """A stretch of the token stream.

    starts: where documents start, relative to the stretch.
    num_bytes: how much text the tokens cover. An end-of-text token covers the newline that it
        replaces (`documents: line`), otherwise nothing.
    """

    tokens: np.ndarray
    starts: np.ndarray
    num_bytes: int


class ByteEncoder:
    """Bytes as they are, whatever they are."""

    whole_characters = False
    vocab_size = BYTE_VOCAB_SIZE
    eos_id = BYTE_EOS
    signature = BYTES

    def __init__(self, by_line: bool):
        self.by_line = by_line

    def encode(self, units: Iterable[Unit]) -> Iterator[Encoded]:
        for number, unit in enumerate(units):
            yield _border(self, first=number == 0)
            ending = b""
            for block in unit.blocks:
                block = ending + block
                # Each newline becomes an end-of-text token, which starts the next document. The
                # last newline of a unit starts none, so it waits until more text follows.
                if self.by_line:
                    ending = b"\n" if block.endswith(b"\n") else b""
                    block = block.removesuffix(b"\n")
                tokens = bytes_to_ids(block)
                newlines = (
                    np.flatnonzero(tokens == ord("\n")) if self.by_line else np.empty(0, np.int64)
                )
                tokens[newlines] = self.eos_id
                yield Encoded(tokens, newlines + 1, len(block))

    def first_token_bytes(self, token: int) -> int:
        return int(token != self.eos_id or self.by_line)


class TextEncoder:
    """A Hugging Face tokenizer. Text that spells a special token is text, not the token."""

    whole_characters = True

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", by_line: bool):
        self.tokenizer = tokenizer
        self.by_line = by_line
        vocabulary = tokenizer.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        self.eos_id = tokenizer.eos_token_id
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            content = backend.to_str()
        else:
            content = json.dumps(vocabulary, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        self.signature = [type(tokenizer).__name__, self.eos_id, digest]

    def encode(self, units: Iterable[Unit]) -> Iterator[Encoded]:
        first = True
        for batch in _batches(_pieces(units, self.by_line)):
            texts = [text for text, _ in batch]
            ids = self.tokenizer(
                texts,
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                verbose=False,
            )["input_ids"]
            for (text, starts_document), tokens in zip(batch, ids):
                if starts_document:
                    yield _border(self, first)
                    first = False
                yield Encoded(
                    np.array(tokens, dtype=np.int64), np.empty(0, np.int64), len(text.encode())
                )

    def first_token_bytes(self, token: int) -> int:
        """Exact, unless the token ends inside a character."""
        if token == self.eos_id:
            return int(self.by_line)
        text = self.tokenizer.decode([token])
        assert isinstance(text, str)  # one text, because these are the ids of one
        return len(text.encode())


def make_encoder(tokenizer: str, by_line: bool) -> ByteEncoder | TextEncoder:
    """The encoder for a tokenizer's name or path.

    A saved byte tokenizer is recognised, because only `ByteEncoder` takes bytes that are no text.
    """
    if tokenizer == BYTES:
        return ByteEncoder(by_line)
    loaded = load_tokenizer(tokenizer)
    return ByteEncoder(by_line) if is_byte_tokenizer(loaded) else TextEncoder(loaded, by_line)


def read_text(units: Iterable[Unit]) -> Iterator[str]:
    """The text of all documents in pieces of bounded size, for training a tokenizer."""
    return (text for text, _ in _pieces(units, by_line=False))


def _border(encoder: ByteEncoder | TextEncoder, first: bool) -> Encoded:
    """The start of a document, after an end-of-text token unless it is the first."""
    if first:
        return Encoded(np.empty(0, np.uint16), np.zeros(1, np.int64), 0)
    if encoder.eos_id is None:
        raise UserError(
            "the text has several documents, and the tokenizer has no end-of-text token to put "
            "between them; give one with an eos_token (a folder with tokenizer_config.json)"
        )
    return Encoded(np.array([encoder.eos_id]), np.ones(1, np.int64), int(encoder.by_line))


def _batches(pieces: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if len(batch) == BATCH_TEXTS or size >= BATCH:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def _pieces(units: Iterable[Unit], by_line: bool) -> Iterator[tuple[str, bool]]:
    """Documents as (text, whether it starts a document). Long ones are cut, best at a newline.

    Tokens at a cut may differ from those of the uncut text. That happens at most once in `PIECE`
    characters, and it bounds the memory that a tokenizer needs.
    """
    for unit in units:
        rest = ""
        starts = True
        seen = False
        for text in _characters(unit):
            rest += text
            if by_line:
                *lines, rest = rest.split("\n")
                for line in lines:
                    yield line, starts
                    starts = seen = True
            while len(rest) > PIECE:
                cut = rest.rfind("\n", 0, PIECE) + 1 or PIECE
                yield rest[:cut], starts
                rest = rest[cut:]
                starts = False
                seen = True
        if rest or not seen:
            yield rest, starts


def _characters(unit: Unit) -> Iterator[str]:
    # A character may lie across two blocks: the decoder keeps its first bytes until the rest comes.
    decoder = codecs.getincrementaldecoder("utf-8")()
    end = unit.offset
    try:
        for block in unit.blocks:
            end += len(block)
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # `error.object` is what the decoder still had: the last block and bytes kept before it.
        position = end - len(error.object) + error.start
        byte = error.object[error.start]
        raise UserError(
            f"{unit.where}: byte {position} (0x{byte:02x}) is not valid UTF-8, which this "
            "tokenizer needs; convert the file, or use `tokenizer: bytes`"
        ) from None
