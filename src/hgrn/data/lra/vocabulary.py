"""Token ids of a classification task: <pad>, <unk>, <eos>, then the tokens of the training split.

The most frequent token comes first, and equally frequent ones are sorted, as in the published runs.
"""

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
    def dtype(self) -> np.dtype:
        """The smallest type that holds every id."""
        return np.min_scalar_type(len(self) - 1)

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """The ids of tokens, then <eos>, [len(tokens) + 1]."""
        ids = [self._ids.get(token, UNKNOWN) for token in tokens]
        return np.array([*ids, EOS], dtype=self.dtype)

    def encode_characters(self, text: str) -> np.ndarray:
        """Like `encode` of the characters of a text, but fast; all tokens must be characters."""
        codes, ids = self._characters
        wanted = code_points(text)
        found = np.full(len(wanted), UNKNOWN, dtype=self.dtype)
        if len(codes):
            # A search in sorted code points instead of a dictionary: no Python loop over the text.
            place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
            known = codes[place] == wanted
            found[known] = ids[place[known]]
        return np.append(found, np.array(EOS, dtype=self.dtype))

    @cached_property
    def _ids(self) -> dict[str, int]:
        # Without the special tokens: text that spells one of them is text.
        return {
            token: number for number, token in enumerate(self.tokens) if number >= len(SPECIALS)
        }

    @cached_property
    def _characters(self) -> tuple[np.ndarray, np.ndarray]:
        """The sorted code points of the tokens, and their ids."""
        codes = np.array([ord(token) for token in self.tokens[len(SPECIALS) :]], dtype=np.uint32)
        order = np.argsort(codes)
        return codes[order], (order + len(SPECIALS)).astype(self.dtype)


BYTES = Vocabulary(SPECIALS + tuple(f"<0x{value:02X}>" for value in range(256)))


def encode_bytes(content: bytes) -> np.ndarray:
    """The ids in `BYTES` of some bytes, then <eos>."""
    ids = np.frombuffer(content, dtype=np.uint8).astype(BYTES.dtype) + len(SPECIALS)
    return np.append(ids, EOS).astype(BYTES.dtype)


def build(counts: Counter[str], min_count: int = 1) -> Vocabulary:
    """The vocabulary of all tokens that were counted at least min_count times."""
    kept = sorted(
        (token for token, count in counts.items() if count >= min_count),
        key=lambda token: (-counts[token], token),
    )
    return Vocabulary(SPECIALS + tuple(kept))


def build_characters(texts: Iterable[str], min_count: int = 1) -> Vocabulary:
    """Like `build`, of all characters of some texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return build(counts, min_count)


def code_points(text: str) -> np.ndarray:
    """Unicode code points, uint32 [len(text)]; half of a surrogate pair counts as one."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
