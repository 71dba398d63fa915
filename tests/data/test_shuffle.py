"""The order without a table."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hgrn.data.shuffle import hashed, shuffled

SEEDS = st.integers(-(2**70), 2**70)


@given(length=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_every_element_comes_once(length, seed, epoch):
    order = shuffled(np.arange(length), length, seed, epoch)
    assert sorted(order.tolist()) == list(range(length))


@given(length=st.integers(1, 2**40), seed=SEEDS, data=st.data())
def test_any_part_of_the_order_is_the_same_part(length, seed, data):
    positions = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=5)))
    together = shuffled(positions, length, seed, 3)
    alone = [
        shuffled(positions[at : at + 1], length, seed, 3).item() for at in range(len(positions))
    ]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < length)).all()


def test_seed_and_epoch_give_orders_of_their_own():
    positions = np.arange(1000)
    orders = [
        tuple(shuffled(positions, 1000, seed, epoch)) for seed in range(5) for epoch in range(5)
    ]
    assert len(set(orders)) == 25


def test_the_order_is_the_same_everywhere():
    assert shuffled(np.arange(8), 1000, seed=0, epoch=0).tolist() == [
        405,
        749,
        830,
        571,
        382,
        353,
        103,
        701,
    ]
    assert hashed(1, 2) == 13608149317741381227


def test_neighbours_are_scattered():
    length = 20_000
    order = shuffled(np.arange(length), length, seed=1, epoch=1).astype(float)
    for distance in (1, 2, 64):
        correlation = np.corrcoef(order[:-distance], order[distance:])[0, 1]
        assert abs(correlation) < 5 / length**0.5
    assert abs(np.corrcoef(order, np.arange(length))[0, 1]) < 5 / length**0.5
