"""Batches of arena examples: all once an epoch, equal for any number of ranks, resumable."""

import json
from itertools import chain

import numpy as np
import pytest
import torch

from hgrn.data.cache import cached
from hgrn.data.lra.image import augmented
from hgrn.data.lra.sampling import ExampleSampler, in_order
from hgrn.data.lra.splits import (
    ImageSplit,
    LabelledData,
    PairSplit,
    SequenceSplit,
    sequence_data,
    write_sequences,
)
from hgrn.data.lra.vocabulary import SPECIALS, Vocabulary
from hgrn.errors import UserError

SIZE = 23


def sequences(lengths, labels):
    """Sequence i is i + 3, repeated."""
    tokens = np.concatenate(
        [np.full(length, number + 3, np.uint8) for number, length in enumerate(lengths)]
    )
    return SequenceSplit(tokens, np.concatenate([[0], np.cumsum(lengths)]), labels)


@pytest.fixture(params=["sequences", "pairs", "images"])
def data(request):
    labels = np.arange(SIZE) % 4
    lengths = np.arange(SIZE) % 7 + 1
    if request.param == "sequences":
        split = sequences(lengths, labels)
        settings = {}
    elif request.param == "pairs":
        split = PairSplit(sequences(lengths, labels), sequences(lengths[::-1], labels))
        settings = {}
    else:
        images = np.arange(SIZE, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3), np.uint8)
        split = ImageSplit(images, labels)
        settings = {"mean": (0.0,), "std": (1 / 255,)}
    return LabelledData({"train": split, "test": split}, tuple("abcd"), "", **settings)


def numbers(batch) -> list[int]:
    """Which examples these are."""
    if batch.pixel_values is not None:
        return batch.pixel_values[:, 0, 0, 0].round().int().tolist()
    return (batch.input_ids[:, 0] - 3).tolist()


def same(one, other) -> bool:
    return one.inputs().keys() == other.inputs().keys() and all(
        torch.equal(value, other.inputs()[name]) for name, value in one.inputs().items()
    )


def test_an_epoch_takes_every_example_once(data):
    sampler = ExampleSampler(data, "train", 4, seed=1)
    assert sampler.steps_per_epoch == 5
    epochs = [[number for _ in range(5) for number in numbers(sampler.next())] for _ in range(2)]
    for epoch in epochs:
        assert len(set(epoch)) == 20 and set(epoch) <= set(range(SIZE))
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])
    other = ExampleSampler(data, "train", 4, seed=2)
    assert [number for _ in range(5) for number in numbers(other.next())] != epochs[0]


def test_padding_and_labels(data):
    for _ in range(3):
        batch = ExampleSampler(data, "train", 6, seed=0).next()
        found = numbers(batch)
        assert batch.labels.tolist() == [number % 4 for number in found] and len(batch) == 6
        if batch.input_ids is None:
            assert (
                batch.pixel_values.shape == (6, 1, 2, 3)
                and batch.pixel_values.dtype == torch.float32
            )
            continue
        own = [number % 7 + 1 for number in found]
        halves = [(batch.input_ids, batch.attention_mask, own)]
        if batch.input_ids_b is not None:
            halves.append(
                (
                    batch.input_ids_b,
                    batch.attention_mask_b,
                    [(SIZE - 1 - number) % 7 + 1 for number in found],
                )
            )
        longest = max(max(lengths) for *_, lengths in halves)
        for ids, mask, lengths in halves:
            assert (
                ids.shape == mask.shape == (6, longest) and ids.dtype == mask.dtype == torch.int64
            )
            for row, (number, length) in enumerate(zip(found, lengths)):
                assert ids[row].tolist() == [number + 3] * length + [0] * (longest - length)
                assert mask[row].tolist() == [1] * length + [0] * (longest - length)


def test_pad_to(data):
    if isinstance(data.splits["train"], ImageSplit):
        with pytest.raises(ValueError, match="pad_to is for sequences"):
            ExampleSampler(data, "train", 2, seed=0, pad_to=9)
        return
    assert ExampleSampler(data, "train", 2, seed=0, pad_to=9).next().input_ids.shape == (2, 9)
    with pytest.raises(
        UserError, match="pad_to 6 is less than the longest sequence of split train, 7"
    ):
        ExampleSampler(data, "train", 2, seed=0, pad_to=6)


def test_ranks_share_out_a_step(data):
    """Padded alike, though a rank's own examples may be shorter."""
    whole = ExampleSampler(data, "train", 6, seed=5)
    ranks = [ExampleSampler(data, "train", 6, seed=5, rank=rank, world=3) for rank in range(3)]
    for _ in range(5):
        expected = whole.next().inputs()
        parts = [rank.next().inputs() for rank in ranks]
        for name, value in expected.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), value)


def test_resuming_goes_on_exactly(data):
    sampler = ExampleSampler(data, "train", 4, seed=3)
    for _ in range(7):
        sampler.next()
    state = json.loads(json.dumps(sampler.state_dict()))
    assert state == {"epoch": 1, "index": 2, "seed": 3}
    resumed = ExampleSampler(data, "train", 4, seed=0)
    resumed.load_state_dict(state)
    assert all(same(sampler.next(), resumed.next()) for _ in range(6))
    for wrong in ({"epoch": 0, "index": 5, "seed": 0}, {"epoch": -1, "index": 0, "seed": 0}):
        with pytest.raises(ValueError, match="is not in a split of 5 steps"):
            resumed.load_state_dict(wrong)


@pytest.fixture
def lengths_in_disorder():
    """103 sequences of random lengths; the last group of steps is not a whole one."""
    lengths = np.random.default_rng(0).integers(1, 200, 103)
    split = SequenceSplit(
        np.repeat(np.arange(103), lengths),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.arange(103),
    )
    return LabelledData({"train": split}, ("a",), ""), lengths


@pytest.mark.parametrize("group", [1, 3, 50])
def test_grouping_by_length_takes_every_example_once(lengths_in_disorder, group, monkeypatch):
    monkeypatch.setattr("hgrn.data.lra.sampling.GROUP", group)
    data, _ = lengths_in_disorder
    sampler, plain = (
        ExampleSampler(data, "train", 4, seed=1, group_by_length=grouped)
        for grouped in (True, False)
    )
    epochs = []
    for _ in range(2):
        found = [
            [sampler.next().labels.tolist() for _ in range(25)],
            [plain.next().labels.tolist() for _ in range(25)],
        ]
        assert len({label for step in found[0] for label in step}) == 100
        # Grouping only reorders the examples that a group of steps would have anyway.
        for first in range(0, 25, group):
            ours, theirs = (
                sorted(chain.from_iterable(steps[first : first + group])) for steps in found
            )
            assert ours == theirs
        epochs.append(found[0])
    assert epochs[0] != epochs[1]


def test_grouping_by_length_pads_little_and_mixes_the_steps(lengths_in_disorder):
    data, lengths = lengths_in_disorder
    sampler = ExampleSampler(data, "train", 4, seed=1, group_by_length=True)
    for _ in range(3):
        steps = [sampler.next() for _ in range(25)]
        padded = sum(step.attention_mask.numel() for step in steps)
        assert padded < 1.1 * sum(int(step.attention_mask.sum()) for step in steps)
        widths = [step.input_ids.shape[1] for step in steps]
        assert widths != sorted(widths) and widths != sorted(widths, reverse=True)
        assert all(
            step.attention_mask.sum(1).tolist() == lengths[step.labels].tolist() for step in steps
        )


def test_grouping_by_length_resumes_exactly_and_shares_out_steps(lengths_in_disorder, monkeypatch):
    monkeypatch.setattr("hgrn.data.lra.sampling.GROUP", 4)
    data, _ = lengths_in_disorder
    whole = ExampleSampler(data, "train", 4, seed=3, group_by_length=True)
    for _ in range(30):
        whole.next()
    ranks = [
        ExampleSampler(data, "train", 4, 0, rank=rank, world=2, group_by_length=True)
        for rank in range(2)
    ]
    for rank in ranks:
        rank.load_state_dict(whole.state_dict())
    for _ in range(40):
        expected = whole.next()
        parts = [rank.next() for rank in ranks]
        assert torch.equal(torch.cat([part.input_ids for part in parts]), expected.input_ids)
        assert torch.equal(torch.cat([part.labels for part in parts]), expected.labels)


def test_images_have_no_length_to_group_by():
    images = ImageSplit(np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="group_by_length is for sequences"):
        ExampleSampler(
            LabelledData({"train": images}, ("a",), ""), "train", 2, seed=0, group_by_length=True
        )


def test_augmented_batches_depend_on_the_position_alone():
    images = np.random.default_rng(0).integers(0, 256, (SIZE, 3, 8, 8), dtype=np.uint8)
    split = ImageSplit(images, np.arange(SIZE))
    data = LabelledData(
        {"train": split}, tuple(map(str, range(SIZE))), "", mean=(0.0,) * 3, std=(1 / 255,) * 3
    )
    sampler = ExampleSampler(data, "train", 4, seed=3, augment=True)
    ranks = [
        ExampleSampler(data, "train", 4, 0, rank=rank, world=2, augment=True) for rank in range(2)
    ]
    seen = {number: [] for number in range(SIZE)}
    for step in range(10):
        for rank in ranks if step == 7 else ():  # a resume in the second epoch
            rank.load_state_dict(sampler.state_dict())
        epoch = sampler.epoch
        batch = sampler.next()
        expected = augmented(images[batch.labels], batch.labels.numpy(), 3, epoch)
        assert np.array_equal(batch.pixel_values.numpy().round(), expected)
        for number, pixels in zip(batch.labels.tolist(), expected):
            seen[number].append(pixels)
        if step >= 7:
            assert torch.equal(
                torch.cat([rank.next().pixel_values for rank in ranks]), batch.pixel_values
            )
    twice = [found for found in seen.values() if len(found) == 2]
    assert (
        sum(np.array_equal(*found) for found in twice) < len(twice) / 4
    )  # another way in the next epoch


def test_sequences_cannot_be_augmented(lengths_in_disorder):
    with pytest.raises(ValueError, match="augment is for images"):
        ExampleSampler(lengths_in_disorder[0], "train", 4, seed=0, augment=True)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_sees_every_example_once(data, world):
    found = [list(in_order(data, "test", 8, rank, world)) for rank in range(world)]
    assert {len(each) for each in found} == {3}
    batches = [batch for step in zip(*found) for batch in step if len(batch)]
    assert [number for batch in batches for number in numbers(batch)] == list(range(SIZE))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"batch_size": 24}, UserError, "split train has 23 examples, fewer than a batch of 24"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"world": 0}, ValueError, "world must be at least 1"),
        ({"world": 3}, ValueError, "batch_size 4 must be a multiple of the 3 ranks"),
        ({"rank": 1}, ValueError, r"rank must be in \[0, 1\)"),
        (
            {"split": "validation"},
            UserError,
            "data has no split 'validation'; there is train, test",
        ),
    ],
)
def test_impossible_samplers(data, arguments, error, message):
    with pytest.raises(error, match=message):
        ExampleSampler(data, **{"split": "train", "batch_size": 4, "seed": 0, **arguments})


VOCABULARY = Vocabulary((*SPECIALS, "a", "b"))


@pytest.fixture
def entry(tmp_path):
    """Makes or opens one entry; `written` says how often it was made."""
    written = []

    def make(source=("x",)):
        def write(writer):
            written.append(1)
            for split in ("train", "test"):
                write_sequences(
                    writer,
                    split,
                    [VOCABULARY.encode("ab"), VOCABULARY.encode("")],
                    VOCABULARY.dtype,
                )
                writer.append(f"{split}/labels", np.array([1, 0]))
            return {
                "vocabulary": list(VOCABULARY.tokens),
                "classes": ["n", "y"],
                "max_length": 9,
                "stored": {"train": "train", "validation": "test", "test": "test"},
            }

        return cached(tmp_path / "cache", list(source), write)

    make.written = written
    return make


def test_an_entry_is_written_once_and_mapped(entry, tmp_path):
    first = entry()
    second = entry()
    assert len(entry.written) == 1 and first.fingerprint == second.fingerprint
    data = sequence_data(second)
    train = data.splits["train"]
    assert (
        isinstance(train.tokens, np.memmap)
        and not train.tokens.flags.writeable
        and train.tokens.dtype == np.uint8
    )
    assert [train.sequence(i).tolist() for i in range(2)] == [[3, 4, 2], [2]]
    assert data.splits["validation"].tokens is data.splits["test"].tokens
    entry(("y",))
    assert len(entry.written) == 2
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [
        "",
        "",
        ".lock",
        ".lock",
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "train/labels").write_bytes(b"short"),
        lambda folder: (folder / "train/labels").write_bytes(np.array([1, 7]).tobytes()),
        lambda folder: (folder / "train/tokens").unlink(),
        lambda folder: (folder / "meta.json").write_text(
            (folder / "meta.json").read_text().replace('"y"', '"z"')
        ),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / "meta.json").unlink(),
    ],
)
def test_a_damaged_entry_is_written_again(entry, tmp_path, damage):
    before = entry().fingerprint
    damage(next(path for path in (tmp_path / "cache").iterdir() if path.is_dir()))
    assert entry().fingerprint == before and len(entry.written) == 2


def test_characters_outside_the_vocabulary():
    vocabulary = Vocabulary((*SPECIALS, "b", "a", "😀"))
    assert vocabulary.encode_characters("ab\U0001f600c\ud800").tolist() == [4, 3, 5, 1, 1, 2]
    assert vocabulary.encode(["<pad>", "a"]).tolist() == [
        1,
        4,
        2,
    ]  # text that spells a special token is text
    assert Vocabulary(SPECIALS).encode_characters("ab").tolist() == [1, 1, 2]
