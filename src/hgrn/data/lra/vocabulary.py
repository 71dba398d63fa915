"""Token ids of a classification task: <pad>, <unk> and <eos> first, then what the training split holds.

The tokens are ordered by falling count, equal counts by the token, as the published runs order theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SPECIALS = ("<pad>", "<unk>", "<eos>")
PAD, UNKNOWN, EOS = range(3)


@dataclass(frozen=True)
class Vocabulary:
    """tokens[i] is the token with id i; the first three are `SPECIALS`."""

    tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def pad_id(self) -> int:
        return PAD

    @property
    def unk_id(self) -> int:
        return UNKNOWN

    @property
    def eos_id(self) -> int:
        return EOS

    @property
    def dtype(self) -> np.dtype:
        """The smallest that holds every id."""
        return np.min_scalar_type(len(self) - 1)

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """Ids of tokens and of <eos> behind them, [len(tokens) + 1]."""
        return np.array(
            [*(self._ids.get(token, UNKNOWN) for token in tokens), EOS], dtype=self.dtype
        )

    def encode_characters(self, text: str) -> np.ndarray:
        """As `encode` of the characters of a text, for a vocabulary of characters."""
        codes, ids = self._characters
        wanted = code_points(text)
        place = np.minimum(np.searchsorted(codes, wanted), max(len(codes) - 1, 0))
        found = ids[place] if len(codes) else np.empty(len(wanted), self.dtype)
        known = codes[place] == wanted if len(codes) else np.zeros(len(wanted), bool)
        return np.append(np.where(known, found, UNKNOWN), EOS).astype(self.dtype)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {
            token: number for number, token in enumerate(self.tokens) if number >= len(SPECIALS)
        }

    @cached_property
    def _characters(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted code points of the tokens, and their ids."""
        codes = np.array([ord(token) for token in self.tokens[len(SPECIALS) :]], dtype=np.uint32)
        order = np.argsort(codes)
        return codes[order], (order + len(SPECIALS)).astype(self.dtype)


BYTES = Vocabulary(SPECIALS + tuple(f"<0x{value:02X}>" for value in range(256)))


def encode_bytes(content: bytes) -> np.ndarray:
    """Ids in `BYTES` of some bytes and of <eos> behind them."""
    ids = np.frombuffer(content, dtype=np.uint8).astype(BYTES.dtype) + len(SPECIALS)
    return np.append(ids, EOS).astype(BYTES.dtype)


def build(counts: Counter[str], min_count: int = 1) -> Vocabulary:
    """The vocabulary of the tokens that were counted at least min_count times."""
    kept = sorted(
        (token for token, count in counts.items() if count >= min_count),
        key=lambda token: (-counts[token], token),
    )
    return Vocabulary(SPECIALS + tuple(kept))


def build_characters(texts: Iterable[str], min_count: int = 1) -> Vocabulary:
    """As `build` of all characters of some texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return build(counts, min_count)


def code_points(text: str) -> np.ndarray:
    """Unicode code points, uint32 [len(text)]; half a surrogate pair is one as well."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
