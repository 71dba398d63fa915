"""Text and Retrieval: each source in exactly its own format, with what misleads other readers."""

import json
import lzma
from typing import Annotated

import datasets
import numpy as np
import pytest
from pydantic import Field, TypeAdapter, ValidationError

from hgrn.data.lra.image import ArenaImageData
from hgrn.data.lra.listops import ListOpsData
from hgrn.data.lra.load import LRAData, prepare
from hgrn.data.lra.pathfinder import PathfinderData
from hgrn.data.lra.retrieval import FILES, RetrievalData
from hgrn.data.lra.text import TextClassificationData
from hgrn.data.lra.vocabulary import EOS, PAD, UNKNOWN
from hgrn.errors import UserError

REVIEWS = {
    "train/neg/0_2.txt": "Bad.<br />\r\nBAD!",
    "train/neg/10_1.txt": 'He said "no\t.',
    "train/pos/3_9.txt": "Gut\u00e9 \U0001f600",
    "test/neg/0_3.txt": "bad",
    "test/pos/0_8.txt": "good \u4e2d",
}


@pytest.fixture
def imdb(tmp_path):
    for name, review in {**REVIEWS, "train/unsup/0_0.txt": "not labelled"}.items():
        path = tmp_path / "aclImdb" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(review.encode())
    return tmp_path / "aclImdb"


def load_text(folder, tmp_path, **settings):
    return prepare(
        TextClassificationData(
            str(folder), cache=str(tmp_path / "cache"), **{"min_count": 1, **settings}
        )
    )


def load_pairs(folder, tmp_path, **settings):
    return prepare(RetrievalData(str(folder), cache=str(tmp_path / "cache"), **settings))


def decode(data, sequence) -> str:
    return "".join(data.vocabulary.tokens[token] for token in sequence)


def test_reviews_are_characters_as_they_are(imdb, tmp_path):
    """Case, HTML, tabs and line ends stay; <eos> comes last; unknown characters are <unk>."""
    data = load_text(imdb, tmp_path)
    train = data.splits["train"]
    test = data.splits["test"]
    assert [decode(data, train.sequence(i)) for i in range(3)] == [
        REVIEWS[name] + "<eos>"
        for name in ("train/neg/0_2.txt", "train/neg/10_1.txt", "train/pos/3_9.txt")
    ]
    assert decode(data, test.sequence(1)) == "<unk>ood <unk><eos>"
    assert train.labels.tolist() == [0, 0, 1] and test.labels.tolist() == [0, 1]
    assert data.classes == ("neg", "pos")
    assert data.splits["validation"].labels.tolist() == [0, 1]  # the test split serves
    assert data.vocabulary.tokens[:3] == ("<pad>", "<unk>", "<eos>") and (PAD, UNKNOWN, EOS) == (
        0,
        1,
        2,
    )


@pytest.mark.parametrize("max_length, kept", [(4096, 4095), (10, 9), (2, 1)])
def test_long_reviews_are_cut_before_eos(imdb, tmp_path, max_length, kept):
    (imdb / "train/neg/0_2.txt").write_text("b" * 5000)
    sequence = load_text(imdb, tmp_path, max_length=max_length).splits["train"].sequence(0)
    assert len(sequence) == kept + 1 and sequence[-1] == 2 and 2 not in sequence[:-1]


def test_rare_characters_have_no_id(imdb, tmp_path):
    """What is cut off does not count, as in the published runs."""
    (imdb / "train/neg/0_2.txt").write_text("z" * 14 + "y" * 15 + "." * 100 + "z")
    data = load_text(imdb, tmp_path, min_count=15, max_length=130)
    assert set(data.vocabulary.tokens) == {"<pad>", "<unk>", "<eos>", "y", "."}
    assert data.vocabulary.tokens[3:] == (".", "y")  # the most frequent first
    assert (data.splits["train"].sequence(0)[:14] == 1).all()


def test_data_set_of_datasets_gives_the_same(imdb, tmp_path):
    expected = load_text(imdb, tmp_path)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    splits = {}
    for split in ("train", "test"):
        names = [name for name in REVIEWS if name.startswith(split)]
        rows = {
            "text": [REVIEWS[name] for name in names],
            "label": [int("/pos/" in name) for name in names],
        }
        splits[split] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "imdb"))
    data = load_text(tmp_path / "imdb", tmp_path)
    assert data.fingerprint == expected.fingerprint


def write_json(path, *records):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    with lzma.open(path, "wt") if path.suffix == ".xz" else open(path, "w") as file:
        file.write(lines)


def test_text_of_ones_own(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    write_json(
        folder / "train.jsonl.xz",
        {"text": "aab", "label": "b.x"},
        {"text": "c", "label": "a.y"},
        {"text": "", "label": "a.y"},
    )
    write_json(folder / "validation.jsonl", {"text": "b", "label": "b.x"})
    write_json(folder / "test.jsonl", {"text": "ca", "label": "a.y"})
    data = load_text(folder, tmp_path)
    assert data.classes == ("a.y", "b.x") and data.splits["train"].labels.tolist() == [1, 0, 0]
    assert [decode(data, data.splits[split].sequence(0)) for split in data.splits] == [
        "aab<eos>",
        "b<eos>",
        "ca<eos>",
    ]
    assert data.splits["train"].lengths.tolist() == [4, 2, 1]


def test_bytes(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    write_json(folder / "train.jsonl", {"text": "\u00e9a", "label": 2})
    write_json(folder / "test.jsonl", {"text": "abcd", "label": 0})
    data = load_text(folder, tmp_path, level="bytes", max_length=4)
    assert data.num_classes == 3 and len(data.vocabulary) == 259
    assert data.splits["train"].sequence(0).tolist() == [0xC3 + 3, 0xA9 + 3, ord("a") + 3, 2]
    assert data.splits["test"].sequence(0).tolist() == [ord("a") + 3, ord("b") + 3, ord("c") + 3, 2]


@pytest.mark.parametrize(
    "train, message",
    [
        (
            {"body": "x", "label": 1},
            "train.jsonl:1: the record has no field 'text'; it has body, label",
        ),
        ({"text": "x"}, "train.jsonl:1: the record has no field 'label'"),
        ({"text": 3, "label": 1}, "train.jsonl:1: 'text' must be strings"),
        (
            {"text": "x", "label": 1.5},
            "train.jsonl:1: label must be a name or a whole number; got 1.5",
        ),
        ({"text": "x", "label": -1}, "labels must be all names, or all whole numbers from 0"),
        (
            {"text": "x", "label": "other"},
            "test.jsonl:1: label 1 is none of the training split, other",
        ),
        (None, "the training split has no records"),
    ],
)
def test_damaged_records_are_named(tmp_path, train, message):
    write_json(tmp_path / "train.jsonl", *([train] if train else []))
    write_json(tmp_path / "test.jsonl", {"text": "x", "label": 1})
    with pytest.raises(UserError, match=message):
        load_text(tmp_path, tmp_path)


def test_missing_files_are_named(imdb, tmp_path):
    (imdb / "test/pos/0_8.txt").unlink()
    with pytest.raises(UserError, match="aclImdb/test must have the folders neg and pos"):
        load_text(imdb, tmp_path)
    write_json(tmp_path / "train.jsonl", {"text": "x", "label": 1})
    with pytest.raises(UserError, match="has train.jsonl and no test.jsonl"):
        load_text(tmp_path, tmp_path)
    with pytest.raises(
        UserError, match="has no new_aan_pairs.train.tsv, .*, and no train.jsonl either"
    ):
        load_pairs(imdb, tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"level": "words"}, "level must be 'characters' or 'bytes'"),
    ],
)
def test_impossible_settings(imdb, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        load_text(imdb, tmp_path, **settings)


def test_half_a_character_is_refused(imdb, tmp_path):
    (imdb / "train/neg/0_2.txt").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match="0_2.txt: byte 2 is not valid UTF-8"):
        load_text(imdb, tmp_path)


# An open quote, one inside, and an apostrophe: readers of CSV would join such lines.
PAIRS = [
    '1.0\t1\t2\t"open quote\tsecond, text',
    '0.0\t3\t4\tfirst \'text\tclosed "here" and "',
    "1.0\t5\t6\t\tlast",
]


@pytest.fixture
def aan(tmp_path):
    folder = tmp_path / "tsv_data"
    folder.mkdir()
    for split, lines in (("train", PAIRS), ("validation", PAIRS[:1]), ("test", PAIRS[1:])):
        (folder / FILES[split]).write_text("".join(line + "\n" for line in lines))
    return folder


def test_quotes_are_characters(aan, tmp_path):
    data = load_pairs(aan, tmp_path)
    train = data.splits["train"]
    assert len(train) == 3 and train.labels.tolist() == [1, 0, 1]
    for number, line in enumerate(PAIRS):
        first, second = line.split("\t")[3:]
        assert decode(data, train.first.sequence(number)) == first + "<eos>"
        assert decode(data, train.second.sequence(number)) == second + "<eos>"
    assert len(data.splits["validation"]) == 1 and len(data.splits["test"]) == 2
    assert set("".join(data.vocabulary.tokens[3:])) == set(
        "".join("".join(line.split("\t")[3:]) for line in PAIRS)
    )


def test_documents_are_cut_at_4000(aan, tmp_path):
    lines = [
        "0.0\t1\t2\t" + "a" * 5000 + "\t" + "b" * 3999 + "\n",
        "1\t1\t2\t" + "c" * 3998 + "\tz\n",
    ]
    (aan / FILES["train"]).write_text("".join(lines))
    data = load_pairs(aan, tmp_path)
    train = data.splits["train"]
    assert train.first.lengths.tolist() == [4000, 3999] and train.second.lengths.tolist() == [
        4000,
        2,
    ]
    assert decode(data, train.first.sequence(0)) == "a" * 3999 + "<eos>"
    assert train.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "line, message",
    [
        ("1.0\t1\t2\tonly one", "train.tsv:2: a line must have 5 columns between tabs, .*; got 4"),
        ("1.0\t1\t2\ta\tb\tc", "train.tsv:2: .*; got 6"),
        ("2.0\t1\t2\ta\tb", "train.tsv:2: the label must be 0.0 or 1.0; got '2.0'"),
        ("label\t1\t2\ta\tb", "train.tsv:2: the label must be 0.0 or 1.0; got 'label'"),
    ],
)
def test_damaged_lines_are_named(aan, tmp_path, line, message):
    (aan / FILES["train"]).write_text(PAIRS[0] + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        load_pairs(aan, tmp_path)


def test_pairs_of_ones_own(tmp_path):
    record = {"text1": "ab", "text2": "b", "label": 1}
    write_json(tmp_path / "train.jsonl", record, {**record, "label": 0})
    write_json(tmp_path / "test.jsonl", record)
    data = load_pairs(tmp_path, tmp_path, level="bytes")
    train = data.splits["train"]
    assert train.labels.tolist() == [1, 0] and train.first.sequence(1).tolist() == [
        ord("a") + 3,
        ord("b") + 3,
        2,
    ]
    assert train.second.lengths.tolist() == [2, 2] and np.array_equal(train.lengths, [3, 3])


@pytest.mark.parametrize(
    "task, expected, message",
    [
        ("listops", ListOpsData, "has no basic_train.tsv"),
        ("text", TextClassificationData, "cannot be loaded"),
        ("retrieval", RetrievalData, "has no new_aan_pairs"),
        ("image", ArenaImageData, "has no data_batch_1"),
        ("pathfinder", PathfinderData, "has no curv_contour_length_14/metadata"),
    ],
)
def test_a_recipe_chooses_by_task(tmp_path, task, expected, message):
    """As pydantic reads it; each goes to a reader of its own, which misses its own files."""
    adapter = TypeAdapter(Annotated[LRAData, Field(discriminator="task")])
    data = adapter.validate_python(
        {"task": task, "path": str(tmp_path), "cache": str(tmp_path / "cache")}
    )
    assert type(data) is expected
    with pytest.raises(UserError, match=message):
        prepare(data)
    with pytest.raises(ValidationError, match="levle"):
        adapter.validate_python({"task": task, "path": "x", "levle": 1})
