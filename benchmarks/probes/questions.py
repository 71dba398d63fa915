"""Small tasks with one right answer, whose difficulty is one number: each asks for one ability.

    delayed recall     a symbol, then noise; d steps after the symbol the model must name it
    selective copying  four symbols somewhere among the first 16 places, noise elsewhere; from d
                       steps after the start on, the model must name them in their order
    copying            n symbols; then the model must name all of them in their order
    parity             n bits; after each one, whether the number of ones so far is odd

Shape letters: B sequences, T positions, Q questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_SYMBOLS = 8
# After the symbols come as many tokens of noise, and the token that asks.
_ASKS = 2 * _SYMBOLS
_MARKED = 4  # symbols of selective copying
_WINDOW = 16  # places among which they stand


class Questions(NamedTuple):
    """Sequences and what is asked in them.

    tokens: int64 `[B, T]`. places: the positions of the questions, ascending, `[B, Q]`. values: the
    right answers, counted from 0, `[B, Q]`.
    """

    tokens: Tensor
    places: Tensor
    values: Tensor


@dataclass(frozen=True)
class Task:
    """What a model is asked.

    vocabulary: number of tokens. answers: the tokens of the right answers, as a slice; whoever
    guesses is right in `chance` of the questions. draw: `(size, sequences, seed) -> Questions`;
    the size is the task's difficulty, such as a distance.
    """

    name: str
    vocabulary: int
    answers: slice
    chance: float
    draw: Callable[[int, int, Sequence[int]], Questions]


def delayed(distance: int, sequences: int, seed: Sequence[int]) -> Questions:
    """The first token is a symbol, asked for `distance` steps later."""
    generator = np.random.default_rng(list(seed))
    tokens = generator.integers(_SYMBOLS, _ASKS, size=(sequences, distance + 1))
    values = generator.integers(_SYMBOLS, size=(sequences, 1))
    tokens[:, :1] = values
    tokens[:, -1] = _ASKS
    return _asked(tokens, np.full_like(values, distance), values)


def selective(distance: int, sequences: int, seed: Sequence[int]) -> Questions:
    """Four symbols among the first 16 tokens, asked for from position `distance` on."""
    generator = np.random.default_rng(list(seed))
    tokens = generator.integers(_SYMBOLS, _ASKS, size=(sequences, distance + _MARKED))
    values = generator.integers(_SYMBOLS, size=(sequences, _MARKED))
    order = generator.random((sequences, _WINDOW)).argsort(axis=1)
    np.put_along_axis(tokens, np.sort(order[:, :_MARKED], axis=1), values, axis=1)
    tokens[:, distance:] = _ASKS
    places = np.broadcast_to(distance + np.arange(_MARKED), values.shape)
    return _asked(tokens, places, values)


def copying(length: int, sequences: int, seed: Sequence[int]) -> Questions:
    """`length` symbols, then as many questions for them."""
    generator = np.random.default_rng(list(seed))
    values = generator.integers(_SYMBOLS, size=(sequences, length))
    tokens = np.concatenate([values, np.full_like(values, _ASKS)], axis=1)
    places = np.broadcast_to(length + np.arange(length), values.shape)
    return _asked(tokens, places, values)


def parity(length: int, sequences: int, seed: Sequence[int]) -> Questions:
    """`length` bits; the answer at each is the parity of all up to it."""
    generator = np.random.default_rng(list(seed))
    bits = generator.integers(2, size=(sequences, length))
    return _asked(bits, np.broadcast_to(np.arange(length), bits.shape), bits.cumsum(axis=1) % 2)


def _asked(*arrays: np.ndarray) -> Questions:
    return Questions(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


DELAYED = Task("delayed recall", _ASKS + 1, slice(0, _SYMBOLS), 1 / _SYMBOLS, delayed)
SELECTIVE = Task("selective copying", _ASKS + 1, slice(0, _SYMBOLS), 1 / _SYMBOLS, selective)
COPYING = Task("copying", _ASKS + 1, slice(0, _SYMBOLS), 1 / _SYMBOLS, copying)
PARITY = Task("parity", 2, slice(0, 2), 1 / 2, parity)
