"""JSON, CSV and parquet files give the same records; errors name file and place."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrn.data import records as records_module
from hgrn.data.files import TextFile
from hgrn.data.text import Select, SplitText, TextSplit
from hgrn.errors import UserError

ROWS = [
    {"text": f'He said, "d\u00e9j\u00e0\u2028 {year}".\nTwice\t.', "year": year}
    for year in range(1900, 1905)
]


def as_csv(delimiter: str) -> bytes:
    lines = ["text" + delimiter + "year"]
    lines += [
        '"' + row["text"].replace('"', '""') + '"' + delimiter + str(row["year"]) for row in ROWS
    ]
    return "\n".join(lines).encode() + b"\n"


def as_parquet(path) -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(
        pyarrow.Table.from_pylist([{"other": 1.5, **row} for row in ROWS]),
        path / "made",
        row_group_size=2,
    )
    return (path / "made").read_bytes()


FILES = {
    "a.jsonl": lambda path: b"\n".join(json.dumps(row).encode() for row in ROWS),
    "a.ndjson": lambda path: b"\n".join(
        json.dumps(row, ensure_ascii=False).encode() for row in ROWS
    ),
    "array.json": lambda path: json.dumps(ROWS).encode(),
    "pretty.json": lambda path: json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "marked.json": lambda path: b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "lines.json": lambda path: b"\n".join(json.dumps(row).encode() for row in ROWS),
    "array.json.gz": lambda path: gzip.compress(json.dumps(ROWS).encode()),
    "a.csv": lambda path: as_csv(","),
    "marked.csv": lambda path: b"\xef\xbb\xbf" + as_csv(","),
    "A.CSV.gz": lambda path: gzip.compress(as_csv(",")),
    "a.tsv": lambda path: as_csv("\t"),
    "a.parquet": as_parquet,
    "a.parquet.gz": lambda path: gzip.compress(as_parquet(path)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_text(tmp_path, make_data, name):
    (tmp_path / name).write_bytes(FILES[name](tmp_path))
    splits = {
        "train": TextSplit(),
        "span": TextSplit(span=(0.4, 1)),
        "late": TextSplit(select=Select("year", minimum=1903)),
    }
    data = make_data([tmp_path / name], splits=splits)
    for split, rows in {"train": ROWS, "span": ROWS[2:], "late": ROWS[3:]}.items():
        text = SplitText(data, split)
        text.check_content()
        units = list(text.units(whole_characters=False))
        assert [b"".join(unit.blocks).decode() for unit in units] == [row["text"] for row in rows]
    assert TextFile(name, tmp_path / name).count_records() == len(ROWS)


@given(
    values=st.lists(
        st.dictionaries(
            st.text(max_size=3), st.text(max_size=9) | st.integers() | st.none(), max_size=3
        ),
        max_size=5,
    ),
    indent=st.none() | st.integers(0, 2),
    block=st.integers(1, 9),
)
def test_a_json_array_is_read_whatever_the_blocks(tmp_path_factory, values, indent, block):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(values, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records_module, "BLOCK", block)
        assert [record for _, record in TextFile("a.json", path).records()] == values


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", b'["a"]', "a.json, record 1: every record must be a JSON object; got str"),
        (
            "a.json",
            b'{"text": "a"} 5',
            "a.json, record 2: every record must be a JSON object; got int",
        ),
        ("a.json", b'[{"text": "a"},]', "a.json, record 2: not valid JSON"),
        ("a.json", b'[{"text": "a"}', "a.json, record 2: not valid JSON: the array does not go on"),
        (
            "a.json",
            b'[{"text": "a"} {"text": "b"}]',
            "a.json, record 2: not valid JSON: the array does not go on",
        ),
        (
            "a.json",
            b'[{"text": "a"}] x',
            "a.json, record 2: not valid JSON: something follows the array",
        ),
        ("a.json", b'[{"text": ', "a.json, record 1: not valid JSON"),
        (
            "a.json",
            b'[{"text": "\xe9"}]',
            "a.json, record 1: not valid JSON: 'utf-8' codec can't decode",
        ),
        ("a.json", b'[{"text": "a", "text": "b"}]', "a.json, record 1: a key stands twice"),
        (
            "a.json",
            b'[{"text": ' + b"[" * 100_000,
            "a.json, record 1: not valid JSON: it is nested too deeply",
        ),
        (
            "a.jsonl",
            b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "a.jsonl:1: not valid JSON: it is nested too deeply",
        ),
        ("a.jsonl", b'{"a": ' * 100_000, "a.jsonl:1: not valid JSON: it is nested too deeply"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "a.jsonl:1: a key stands twice"),
        (
            "a.jsonl",
            b'{"text": "a", "n": ' + b"1" * 5000 + b"}",
            "a.jsonl:1: not valid JSON: Exceeds the limit",
        ),
        (
            "a.jsonl",
            b'[{"text": "a"}]',
            "a.jsonl:1: every line must be a JSON object; got list .an array of objects is read "
            "from",
        ),
        ("a.jsonl", b"null", "a.jsonl:1: every line must be a JSON object; got NoneType"),
        ("a.jsonl", b'{"text": "\xed\xa0\x80"}', "a.jsonl:1: not valid JSON"),
        ("a.csv", b'text\n"a"b\n', "a.csv, from line 2 on: not a table of UTF-8 text"),
        ("a.csv", b"text\n\xe9\n", "a.csv, from line . on: not a table of UTF-8 text"),
        ("a.csv", b"text,year\na\n", "a.csv:2: the row has 1 fields, and the header 2"),
        ("a.csv", b"text,text\na,b\n", "a.csv:1: two columns have one name"),
        ("a.parquet", b"PAR1 and nothing else", "a.parquet is not a whole parquet file"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(TextFile(name, tmp_path / name).records())


def test_a_key_twice_in_what_is_not_read_is_nobodys_business(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "about": {"x": 1, "x": 2}}')
    assert len(list(TextFile("a", tmp_path / "a.jsonl").records())) == 1


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", b'{"text": "x", "year": NaN}'),
        ("a.jsonl", b'{"text": "x", "year": true}'),
        ("a.csv", b"text,year\nx,new\n"),
        ("a.csv", b"text,year\nx,nan\n"),
    ],
)
def test_select_needs_a_number_that_can_be_compared(tmp_path, make_data, name, content):
    (tmp_path / name).write_bytes(content)
    data = make_data([tmp_path / name], splits={"train": TextSplit(select=Select("year", below=1))})
    with pytest.raises(UserError, match="1|2: select needs a number in field 'year'"):
        list(SplitText(data, "train").units(whole_characters=False))


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.parquet"])
def test_a_missing_field_names_those_there_are(tmp_path, make_data, name):
    content = {"a.json": b'[{"body": "x", "id": 1}]', "a.csv": b"body,id\nx,1\n"}
    if name == "a.parquet":
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist([{"body": "x", "id": 1}]), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content[name])
    with pytest.raises(
        UserError, match="no field 'text'; it has body, id. Set text_field, or call a file .txt"
    ):
        list(SplitText(make_data([tmp_path / name]), "train").units(whole_characters=False))
