"""Computes a shuffled order from the position, so that no order is ever stored.

The order of 100 million blocks needs no table, a resumed run starts at once, and the numbers are
the same under every release of every library. The method is a Feistel network over the indices with
cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Its keys come from
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import numpy as np

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15  # 2 ** 64 over the golden ratio, odd
MASK = 2**64 - 1


def shuffled(positions: np.ndarray, length: int, seed: int, epoch: int) -> np.ndarray:
    """The elements at positions of a permutation of range(length) that (seed, epoch) determines.

    positions: integers in [0, length), any shape. Returns int64, same shape.
    """
    half = max((length - 1).bit_length() + 1, 4) // 2  # bits; the network permutes range(4 ** half)
    keys = [np.uint64(hashed(seed, epoch, number)) for number in range(ROUNDS)]
    values = _network(positions.astype(np.uint64), half, keys)
    # The network permutes more numbers than we have. Where it leaves our range we apply it again:
    # a walk along a cycle of a permutation must come back into the range it began in.
    while (outside := values >= length).any():
        values[outside] = _network(values[outside], half, keys)
    return values.astype(np.int64)


def hashed(*numbers: int) -> int:
    """A 64-bit hash of some integers, each taken modulo 2 ** 64."""
    value = 0
    for number in numbers:
        value = (value ^ number) + GOLDEN & MASK
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
        value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
        value ^= value >> 31
    return value


def _network(values: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    """A keyed permutation of range(4 ** half), uint64."""
    bits = np.uint64(half)
    top = np.uint64(64 - half)
    golden = np.uint64(GOLDEN)
    left = values >> bits
    right = values & np.uint64((1 << half) - 1)
    for key in keys:
        left, right = right, left ^ ((right ^ key) * golden >> top)
    return left << bits | right
