"""What a recipe says about its text: every problem at once, and exactly the text that was meant."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrn.data.text import Select, SplitText, TextData, TextSplit, problems
from hgrn.errors import UserError

SHAKESPEARE = {
    "train": TextSplit(span=(0, 0.9)),
    "validation": TextSplit(span=(0.9, 0.95)),
    "test": TextSplit(span=(0.95, 1)),
}


def read(data: TextData, split: str, whole_characters: bool = False) -> list[bytes]:
    """The units of a split, each joined."""
    return [b"".join(unit.blocks) for unit in SplitText(data, split).units(whole_characters)]


def write_records(path, *records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def speeches(tmp_path, make_data):
    path = write_records(
        tmp_path / "speeches.jsonl",
        *({"year": 1900 + 10 * i, "text": f"speech {i}"} for i in range(10)),
    )
    return make_data([path])


def test_shakespeare_is_split_by_bytes(make_data):
    data = make_data(["corpus:shakespeare"], splits=SHAKESPEARE)
    assert problems(data, ["train", "validation", "test"]) == []
    parts = [b"".join(read(data, split)) for split in SHAKESPEARE]
    whole = b"".join(read(make_data(["corpus:shakespeare"]), "train"))
    assert b"".join(parts) == whole
    assert [len(part) for part in parts] == [4_551_588, 252_866, 252_867]


def test_sotu_is_split_by_year(shared, make_data):
    splits = {
        "train": TextSplit(select=Select("year", below=1980)),
        "validation": TextSplit(select=Select("year", minimum=1980, below=2000)),
        "test": TextSplit(select=Select("year", minimum=2000)),
    }
    data = make_data([shared / "data" / "sotu.jsonl.gz"], splits=splits)
    assert problems(data, list(splits)) == []
    speeches = [read(data, split) for split in splits]
    assert sum(map(len, speeches)) == 249 and min(map(len, speeches)) > 10
    assert speeches[0][0].startswith(b"Fellow-Citizens of the Senate")


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_adjacent_spans_share_out_the_bytes(tmp_path_factory, sizes, cuts):
    folder = tmp_path_factory.mktemp("spans")
    for number, size in enumerate(sizes):
        (folder / f"{number}.txt").write_bytes(bytes(range(size)))
    first, second = sorted(cuts)
    ends = [0.0, first, second, 1.0]
    spans = [(a, b) for a, b in pairwise(ends) if a < b]
    splits = {str(number): TextSplit(span=span) for number, span in enumerate(spans)}
    data = TextData(files=[str(folder)], splits=splits)
    whole = b"".join(bytes(range(size)) for size in sizes)
    parts = [b"".join(read(data, split)) for split in data.splits]
    assert parts == [whole[int(a * len(whole)) : int(b * len(whole))] for a, b in spans]


@given(
    text=st.text(alphabet="a\u00e9\u65e5\U0001f600", min_size=1, max_size=12),
    cut=st.floats(0.01, 0.99),
)
def test_cuts_respect_characters_where_asked(tmp_path_factory, text, cut):
    path = tmp_path_factory.mktemp("cuts") / "a.txt"
    path.write_bytes(text.encode())
    data = TextData(
        files=[str(path)], splits={"a": TextSplit(span=(0, cut)), "b": TextSplit(span=(cut, 1))}
    )
    parts = [b"".join(read(data, split, whole_characters=True)) for split in data.splits]
    assert "".join(part.decode() for part in parts) == text


def test_span_of_records_counts_records_over_all_files(tmp_path, make_data):
    files = [
        write_records(tmp_path / "a.jsonl", *({"text": f"a{i}"} for i in range(3))),
        write_records(tmp_path / "b.jsonl", *({"text": f"b{i}"} for i in range(7))),
    ]
    data = make_data(
        files, splits={"train": TextSplit(span=(0.15, 0.5)), "test": TextSplit(span=(0.5, 1))}
    )
    assert read(data, "train") == [b"a1", b"a2", b"b0", b"b1"]
    assert read(data, "test") == [b"b2", b"b3", b"b4", b"b5", b"b6"]


@pytest.mark.parametrize(
    "select, kept",
    [
        (Select("year", below=1920), [0, 1]),
        (Select("year", minimum=1970), [7, 8, 9]),
        (Select("year", minimum=1930, below=1950), [3, 4]),
    ],
)
def test_select_keeps_minimum_and_leaves_out_below(speeches, select, kept):
    data = replace(speeches, splits={"train": TextSplit(select=select)})
    assert read(data, "train") == [f"speech {i}".encode() for i in kept]


def test_split_with_files_of_its_own(tmp_path, make_data):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    splits = {
        "train": TextSplit(files=[str(tmp_path / "a.txt")]),
        "test": TextSplit(files=[str(tmp_path / "b.txt")]),
    }
    data = make_data(splits=splits)
    assert problems(data) == []
    assert read(data, "train") == [b"a.txt"] and read(data, "test") == [b"b.txt"]


def test_every_problem_is_reported_at_once(tmp_path):
    (tmp_path / "here.txt").write_text("x")
    (tmp_path / "here.jsonl").write_text("{}")
    data = TextData(
        files=[str(tmp_path / name) for name in ("her.txt", "here.txt", "here.jsonl")],
        config="raw",
        documents="lines",
        tokenizer="./none",
        splits={
            "train": TextSplit(span=(0.5, 0.2)),
            "valid": TextSplit(select=Select("year"), span=(0, 0.5)),
            "other": TextSplit(name="x", files=[str(tmp_path / "gone.txt")]),
            "none": TextSplit(select=Select("year", minimum=5, below=5)),
        },
    )
    found = problems(data, ["train", "validation", "test"])
    expected = [
        "config is for a dataset",
        "documents must be 'file' or 'line'; got 'lines'",
        "tokenizer './none' is a path that does not exist",
        "splits: validation is missing; did you mean valid?",
        "splits: test is missing; there is train, valid, other, none",
        "files: file " + str(tmp_path / "her.txt") + " not found; did you mean here.txt",
        "splits.train: span must be [start, end] with 0 <= start < end <= 1; got [0.5, 0.2]",
        "splits.train: span cannot be taken over plain text and .jsonl together",
        "splits.valid: span and select exclude each other",
        "splits.valid: select needs minimum, below or both",
        "splits.valid: select works on records",
        "splits.valid: span cannot be taken over plain text and .jsonl together",
        "splits.other: file " + str(tmp_path / "gone.txt") + " not found",
        "splits.other: name is for a dataset",
        "splits.none: select keeps nothing: minimum 5 is not less than below 5",
        "splits.none: select works on records",
    ]
    assert len(found) == len(expected)
    for problem, start in zip(found, expected):
        assert problem.startswith(start)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"files": ["corpus:shakespeare"], "dataset": "x"}, "files and dataset exclude each other"),
        ({}, "give files, dataset, or files in every split (train has none)"),
        ({"files": []}, "files is empty"),
        ({"splits": {}}, "give files, dataset, or files in every split"),
    ],
)
def test_source_must_be_given_once(settings, message):
    data = TextData(**{"splits": {"train": TextSplit()}, **settings})
    assert any(problem.startswith(message) for problem in problems(data, []))


@pytest.mark.parametrize("span", [(0, 0), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1)])
def test_impossible_spans(span):
    assert (
        len(
            problems(TextData(files=["corpus:shakespeare"], splits={"train": TextSplit(span=span)}))
        )
        == 1
    )


def test_opening_a_split_needs_only_what_it_uses(tmp_path, make_data):
    splits = {
        "train": TextSplit(files=[str(tmp_path / "gone.txt")]),
        "test": TextSplit(files=["corpus:shakespeare"]),
    }
    data = make_data(splits=splits)
    assert SplitText(data, "test").total_bytes is None
    with pytest.raises(UserError, match="splits.train: file .*gone.txt not found"):
        SplitText(data, "train")
    with pytest.raises(UserError, match="no split 'validation'; there is train, test"):
        SplitText(data, "validation")


def test_missing_file_is_reported_once_when_opened(tmp_path, make_data):
    with pytest.raises(UserError) as caught:
        SplitText(make_data([tmp_path / "gone.txt"]), "train")
    assert str(caught.value).count("gone.txt not found") == 1


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"body": "x", "year": 1},
            "speeches.jsonl:1: the record has no field 'text'; it has body, year",
        ),
        ({"text": 3}, "speeches.jsonl:1: field 'text' must be a string; got int"),
        (
            {"text": "\ud800"},
            "speeches.jsonl:1: field 'text' holds half of a surrogate pair at character 0",
        ),
    ],
)
def test_records_without_text_are_named(tmp_path, make_data, record, message):
    data = make_data([write_records(tmp_path / "speeches.jsonl", record)])
    with pytest.raises(UserError, match=message):
        read(data, "train")


@pytest.mark.parametrize("record", [{"text": "x"}, {"text": "x", "year": "1900"}])
def test_select_needs_a_number(tmp_path, make_data, record):
    data = make_data(
        [write_records(tmp_path / "a.jsonl", record)],
        splits={"train": TextSplit(select=Select("year", below=1))},
    )
    with pytest.raises(UserError, match="a.jsonl:1: select needs a number in field 'year'"):
        read(data, "train")


def test_total_bytes_is_known_for_plain_files(tmp_path, make_data):
    (tmp_path / "a.txt").write_bytes(b"x" * 10)
    data = make_data(
        [tmp_path / "a.txt"], splits={"train": TextSplit(), "test": TextSplit(span=(0.75, 1))}
    )
    assert SplitText(data, "train").total_bytes == 10
    assert SplitText(data, "test").total_bytes == 3


def test_signature_depends_on_everything_that_changes_the_text(tmp_path, speeches):
    first = SplitText(speeches, "train").signature()
    assert SplitText(speeches, "train").signature() == first
    for part in (TextSplit(span=(0, 0.5)), TextSplit(select=Select("year", below=1920))):
        assert SplitText(replace(speeches, splits={"train": part}), "train").signature() != first
    assert SplitText(replace(speeches, text_field="year"), "train").signature() != first


def test_pydantic_reports_wrong_keys_and_types_with_their_paths():
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.dataclasses import dataclass

    @dataclass(config=ConfigDict(extra="forbid"))
    class Recipe:
        data: TextData

    adapter = TypeAdapter(Recipe)
    good = adapter.validate_python(
        {
            "data": {
                "files": ["a"],
                "splits": {"train": {"span": [0, 0.9]}, "test": {"select": {"field": "year"}}},
            }
        }
    )
    assert good.data == TextData(
        files=["a"],
        splits={"train": TextSplit(span=(0.0, 0.9)), "test": TextSplit(select=Select("year"))},
    )
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(
            {
                "data": {
                    "file": ["a"],
                    "documents": "lines",
                    "splits": {
                        "train": {"spam": 1, "span": [0]},
                        "test": {"select": {"field": "year", "above": 1}},
                    },
                }
            }
        )
    places = {".".join(map(str, error["loc"])) for error in caught.value.errors()}
    assert places == {
        "data.file",
        "data.documents",
        "data.splits.train.spam",
        "data.splits.train.span.1",
        "data.splits.test.select.above",
    }
