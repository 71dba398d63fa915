"""Multi-query associative recall: pairs of a key and a value, then questions for the values.

The task is MQAR of Zoology (arXiv 2312.04927, section 4). A sequence begins with n pairs. Behind
them, their keys stand at random positions among a filler token; at each of them the model must name
the key's value. No value follows there, so an answer cannot be copied from an earlier one.
Shape letters: B sequences, T positions, n pairs, Q questions.
"""

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.probes.questions import Questions

# Zoology has 8,192 tokens, and learns from 100,000 sequences many times over, on a GPU. So few
# tokens are learned in minutes on a CPU.
KEYS = 32
VALUES = 32
FILLER = KEYS + VALUES
VOCABULARY = FILLER + 1
LENGTH = 128
QUESTIONS = 32
# As in Zoology's published runs (power_a): the probability of a position is its distance from the
# pairs to the power of this less 1. Many questions are near, so the first steps learn something.
_POWER = 0.01


def questions(
    counts: Sequence[int],
    each: int,
    seed: Sequence[int],
    *,
    length: int = LENGTH,
    asked: int = QUESTIONS,
) -> Questions:
    """Random sequences, `each` of them for every number of pairs in turn; the same for one seed.

    Zoology asks once for each key. Here every sequence has equally many questions, so that a
    sequence of few pairs teaches as much as one of many.

    Args:
        counts: numbers of pairs n.
        each: sequences for each of them.
        seed: the numbers that seed the generator, such as the seed of a run and a step of it.
        length: T.
        asked: Q, a multiple of every n; each key of a sequence is asked for Q / n times.

    Raises:
        ValueError: a sequence is too short for its pairs and questions, or has no such keys.
    """
    for pairs in counts:
        if not 1 <= pairs <= KEYS or asked % pairs or 2 * pairs + asked > length:
            raise ValueError(
                f"{pairs} pairs and {asked} questions do not fit: the questions must be a multiple "
                f"of the pairs, of which there are at most {KEYS}, and all must fit into "
                f"{length} positions"
            )
    generator = np.random.default_rng(list(seed))
    parts = [_of_equal_pairs(generator, pairs, each, length, asked) for pairs in counts]
    return Questions(*(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts)))


def _of_equal_pairs(
    generator: np.random.Generator, pairs: int, sequences: int, length: int, asked: int
) -> tuple[np.ndarray, ...]:
    """The fields of `Questions`, for sequences with the same number of pairs."""
    # No key twice in a sequence. Values may repeat.
    keys = _drawn(generator, sequences, np.ones(KEYS), pairs)
    values = generator.integers(VALUES, size=(sequences, pairs))
    first = 2 * pairs
    tokens = np.full((sequences, length), FILLER)
    tokens[:, 0:first:2] = keys
    tokens[:, 1:first:2] = KEYS + values

    distances = np.arange(1, length - first + 1)
    near = distances ** (_POWER - 1.0)
    places = first + np.sort(_drawn(generator, sequences, near, asked), axis=1)
    # Each pair is asked for equally often, in random order.
    which = _drawn(generator, sequences, np.ones(asked), asked) % pairs
    np.put_along_axis(tokens, places, np.take_along_axis(keys, which, 1), 1)
    answers = np.take_along_axis(values, which, 1)
    return tokens, places, answers


def _drawn(
    generator: np.random.Generator, rows: int, weights: np.ndarray, drawn: int
) -> np.ndarray:
    """In each row `drawn` different places of `weights`, one after the other by these weights."""
    # The order of arrivals at these rates is that of draws without replacement.
    arrivals = generator.exponential(size=(rows, len(weights))) / weights
    return arrivals.argsort(axis=1)[:, :drawn]
