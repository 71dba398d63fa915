"""Batches: what is in them, that nothing is left out or seen twice, ranks, and resuming."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hgrn.data.sampling import IGNORED, Batch, BlockSampler
from hgrn.data.tokenizer import BYTE_EOS
from hgrn.errors import UserError

MODES = ["reset", "carry", "documents"]


class Counting:
    """Tokens 0, 1, 2, ...: the value says the position. Documents start at the given positions."""

    def __init__(self, length: int, starts: tuple[int, ...] = (0,)):
        self.length = length
        self.starts = np.array(starts, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0 and start + length <= self.length
        return np.arange(start, start + length)

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        return self.starts[(self.starts >= start) & (self.starts < stop)]


def epoch(sampler: BlockSampler) -> list[Batch]:
    return [sampler.next() for _ in range(sampler.steps_per_epoch)]


def same(a: Batch, b: Batch) -> bool:
    if (a.cu_seqlens is None) != (b.cu_seqlens is None):
        return False
    if a.cu_seqlens is not None and not torch.equal(a.cu_seqlens, b.cu_seqlens):
        return False
    return (
        torch.equal(a.input_ids, b.input_ids)
        and torch.equal(a.labels, b.labels)
        and (a.restart, a.block_size) == (b.restart, b.block_size)
    )


SIZES = {
    "length": st.integers(2, 300),
    "block": st.integers(1, 9),
    "batch": st.integers(1, 5),
    "seed": st.integers(0, 99),
}


@given(**SIZES)
def test_reset_takes_every_block_once_per_epoch(length, block, batch, seed):
    blocks = (length - 1) // block
    if blocks < batch:
        return
    sampler = BlockSampler(Counting(length), block, batch, "reset", seed)
    assert sampler.steps_per_epoch == blocks // batch
    for _ in range(2):
        batches = epoch(sampler)
        rows = torch.cat([each.input_ids for each in batches])
        assert torch.equal(torch.cat([each.labels for each in batches]), rows + 1)
        assert torch.equal(rows, rows[:, :1] + torch.arange(block))
        starts = rows[:, 0].tolist()
        assert len(set(starts)) == len(starts) == blocks // batch * batch
        assert all(start % block == 0 for start in starts)
        assert all(each.restart and each.cu_seqlens is None for each in batches)


@given(**SIZES)
def test_carry_reads_on_through_adjacent_stretches(length, block, batch, seed):
    if length < block * (batch + 1):
        return
    sampler = BlockSampler(Counting(length), block, batch, "carry", seed)
    for _ in range(2):
        batches = epoch(sampler)
        assert [each.restart for each in batches] == [True] + [False] * (len(batches) - 1)
        streams = torch.cat([each.input_ids for each in batches], dim=1)
        first = streams[0, 0]
        assert torch.equal(streams.flatten(), first + torch.arange(streams.numel()))
        assert torch.equal(torch.cat([each.labels for each in batches], dim=1), streams + 1)
        assert length - streams.numel() <= block * (batch + 1)


def test_carry_moves_the_borders_between_epochs():
    sampler = BlockSampler(Counting(200), 8, 4, "carry", seed=0)
    firsts = {int(epoch(sampler)[0].input_ids[0, 0]) for _ in range(20)}
    assert len(firsts) > 5


@given(**SIZES, starts=st.sets(st.integers(1, 299), max_size=60))
def test_documents_are_packed_and_cut(length, block, batch, seed, starts):
    if (length - 1) // block < batch:
        return
    tokens = Counting(length, (0, *sorted(starts)))
    packed = BlockSampler(tokens, block, batch, "documents", seed)
    plain = BlockSampler(tokens, block, batch, "reset", seed)
    for _ in range(packed.steps_per_epoch):
        one = packed.next()
        rows = plain.next()
        assert torch.equal(one.input_ids, rows.input_ids.reshape(1, -1)) and one.restart
        positions = one.input_ids[0].tolist()
        borders = {
            at for at, position in enumerate(positions) if at % block == 0 or position in starts
        }
        assert one.cu_seqlens.dtype == torch.int32
        assert one.cu_seqlens.tolist() == [*sorted(borders), block * batch]
        expected = [IGNORED if position + 1 in starts else position + 1 for position in positions]
        assert one.labels[0].tolist() == expected


def test_documents_end_with_the_end_of_text(make_tokens):
    sampler = BlockSampler(make_tokens(b"abc", b"", b"defg", b"h"), 10, 1, "documents", seed=0)
    batch = sampler.next()
    assert batch.input_ids.tolist() == [
        [97, 98, 99, BYTE_EOS, BYTE_EOS, 100, 101, 102, 103, BYTE_EOS]
    ]
    assert batch.labels.tolist() == [
        [98, 99, BYTE_EOS, IGNORED, IGNORED, 101, 102, 103, BYTE_EOS, IGNORED]
    ]
    assert batch.cu_seqlens.tolist() == [0, 4, 5, 10]


@pytest.mark.parametrize("mode", MODES)
def test_batches_are_of_the_documented_types(make_tokens, mode):
    batch = BlockSampler(make_tokens(bytes(range(100))), 8, 3, mode, seed=0).next()
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert (
        batch.input_ids.shape == batch.labels.shape == ((1, 24) if mode == "documents" else (3, 8))
    )
    assert batch.num_blocks == 3
    assert same(batch.to("cpu"), batch)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_out_the_rows_of_one_process(mode, world):
    tokens = Counting(500, (0, 7, 30, 31, 200))
    whole = BlockSampler(tokens, 5, 6, mode, seed=3)
    ranks = [
        BlockSampler(tokens, 5, 6, mode, seed=3, rank=rank, world=world) for rank in range(world)
    ]
    for _ in range(2 * whole.steps_per_epoch):
        expected = whole.next().split(world)
        assert all(same(rank.next(), part) for rank, part in zip(ranks, expected))


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_are_the_batch_in_parts(mode):
    batch = BlockSampler(Counting(500, (0, 3, 9, 10, 11, 40, 41)), 5, 12, mode, seed=1).next()
    assert same(batch.split(1)[0], batch)
    for parts in (2, 3, 12):
        micro = batch.split(parts)
        dim = 1 if mode == "documents" else 0
        assert torch.equal(torch.cat([each.input_ids for each in micro], dim), batch.input_ids)
        assert torch.equal(torch.cat([each.labels for each in micro], dim), batch.labels)
        assert all(
            each.num_blocks == 12 // parts and each.restart == batch.restart for each in micro
        )
        if mode == "documents":
            width = 60 // parts
            borders = torch.cat(
                [each.cu_seqlens + number * width for number, each in enumerate(micro)]
            )
            assert torch.equal(borders.unique(), batch.cu_seqlens)
            assert all(each.cu_seqlens[0] == 0 and each.cu_seqlens[-1] == width for each in micro)
    for parts in (0, 5, 24):
        with pytest.raises(
            ValueError, match=f"parts must divide the 12 blocks of the batch; got {parts}"
        ):
            batch.split(parts)


@pytest.mark.parametrize("mode", MODES)
@given(before=st.integers(0, 25), after=st.integers(1, 25))
def test_resumed_equals_never_stopped(mode, before, after):
    tokens = Counting(230, (0, 17, 60, 61, 150))
    straight = BlockSampler(tokens, 6, 4, mode, seed=5)
    assert straight.steps_per_epoch < 12
    for _ in range(before):
        straight.next()
    state = straight.state_dict()
    assert {type(value) for value in state.values()} == {int} and set(state) == {
        "epoch",
        "index",
        "seed",
    }
    resumed = BlockSampler(tokens, 6, 4, mode, seed=77)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for _ in range(after):
        assert same(resumed.next(), straight.next())
    assert resumed.state_dict() == straight.state_dict()


@pytest.mark.parametrize(
    "state", [{"epoch": 0, "index": 9, "seed": 0}, {"epoch": -1, "index": 0, "seed": 0}]
)
def test_position_of_other_data_is_refused(state):
    sampler = BlockSampler(Counting(230), 6, 4, "reset", seed=5)
    assert sampler.steps_per_epoch == 9
    with pytest.raises(ValueError, match="9 steps per epoch; was it saved with other data"):
        sampler.load_state_dict(state)


@pytest.mark.parametrize("mode, needed", [("reset", 25), ("documents", 25), ("carry", 32)])
def test_too_short_a_text_names_the_sizes_and_the_remedy(mode, needed):
    BlockSampler(Counting(needed), 8, 3, mode, seed=0).next()
    for length in (1, 8, needed - 1):
        with pytest.raises(
            UserError,
            match=f"has {length} tokens, and one step of 3 sequences of 8 needs "
            f"{needed}; use more text, or a smaller batch or block size",
        ):
            BlockSampler(Counting(length), 8, 3, mode, seed=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"block_size": 0}, "block_size must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"mode": "random"}, "mode must be 'reset', 'carry' or 'documents'; got 'random'"),
        ({"world": 2}, "batch_size 3 must be a multiple of the 2 ranks"),
        ({"world": 3, "rank": 3}, r"rank must be in \[0, 3\); got 3"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        BlockSampler(
            Counting(100), **{"block_size": 8, "batch_size": 3, "mode": "reset", "seed": 0} | change
        )
