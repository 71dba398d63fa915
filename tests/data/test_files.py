"""What the entries of a recipe stand for, and reading their bytes and records."""

import bz2
import gzip
import hashlib
import lzma
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrn.data import files as files_module
from hgrn.data.files import TextFile, expand
from hgrn.errors import UserError

COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def names(entry) -> list[str]:
    found, problem = expand(str(entry))
    assert problem is None
    return [file.path.name for file in found]


def test_folder_is_searched_for_text_and_sorted(tmp_path):
    for name in (
        "b.txt",
        "a.md",
        "sub/c.jsonl",
        "sub/d.TXT.gz",
        "e.py",
        ".hidden.txt",
        ".git/f.md",
        "g.bak",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert names(tmp_path) == ["a.md", "b.txt", "c.jsonl", "d.TXT.gz"]


def test_glob_and_any_single_file(tmp_path):
    for name in ("b1.py", "b2.py", "a.txt", "odd[1].txt"):
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path / "b*.py") == ["b1.py", "b2.py"]
    assert names(tmp_path / "b1.py") == ["b1.py"]
    assert names(tmp_path / "odd[1].txt") == ["odd[1].txt"]


@pytest.mark.parametrize(
    "entry, message",
    [
        ("shakespere.txt", "not found; did you mean shakespeare.txt?"),
        ("quite-different", "quite-different not found"),
        ("nowhere/a.txt", "there is no folder"),
        ("empty", "has no .txt, .md, .jsonl files"),
        ("*.py", "no file matches"),
        ("a.txt.zst", "use .gz, .bz2, .xz"),
        ("packed", "use .gz, .bz2, .xz"),
    ],
)
def test_what_is_wrong_with_an_entry(tmp_path, entry, message):
    for name in (
        "empty/readme.rst",
        "packed/a.txt",
        "packed/b.txt.zst",
        "shakespeare.txt",
        "a.txt.zst",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    found, problem = expand(str(tmp_path / entry))
    assert found == [] and message in problem


@pytest.mark.parametrize(
    "entry, message",
    [
        ("", "the name '' is empty"),
        ("  ", "the name '  ' is empty"),
        ("x" * 300, "cannot be looked up: .*too long"),
        ("~nobody-of-this-name/a.txt", "cannot be looked up: Could not determine home"),
        ("a\0b", "not found|cannot be looked up"),
    ],
)
def test_names_that_no_file_can_have(entry, message):
    found, problem = expand(entry)
    assert found == [] and re.search(message, problem)


def test_the_current_folder_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert names(".") == ["a.txt"]


def test_unknown_corpus_names_those_there_are():
    assert expand("corpus:milton") == ([], "unknown corpus 'milton'; there is corpus:shakespeare")


def test_embedded_corpus():
    (corpus,), problem = expand("corpus:shakespeare")
    text = b"".join(corpus.blocks())
    assert problem is None and len(text) == corpus.size() == 5_057_321
    digest = hashlib.sha256(text).hexdigest()
    assert digest == "04decea0dd965df5e6cfc4a538b0c62623aaa3bfd848ac7fad6734e59c96624d"


def test_embedded_corpus_is_the_shared_file(shared):
    (corpus,), _ = expand("corpus:shakespeare")
    assert b"".join(corpus.blocks()) == (shared / "data" / "shakespeare.txt").read_bytes()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_blocks_are_the_bytes_asked_for(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(files_module, "BLOCK", 7)
    text = bytes(range(256))
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](text))
    file = TextFile("a", path)
    assert file.size() == 256 and file.size_on_disk == (256 if suffix == "" else None)
    assert b"".join(file.blocks()) == text
    assert b"".join(file.blocks(10, 31)) == text[10:31]
    assert b"".join(file.blocks(250)) == text[250:]
    assert [len(block) for block in file.blocks(10, 31)] == [7, 7, 7]
    assert list(file.blocks(31, 31)) == []


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"not compressed"]
)
def test_damaged_compression_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(damage(COMPRESS[suffix](os.urandom(1000))))
    with pytest.raises(UserError, match="the file cannot be read"):
        list(TextFile("the file", path).blocks())


@pytest.mark.parametrize("suffix", COMPRESS)
def test_records(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](b'\xef\xbb\xbf{"text": "a"}\n\n   \n{"text": "b"}'))
    file = TextFile("a.jsonl", path)
    assert file.has_records and file.count_records() == 2
    assert list(file.records()) == [("a.jsonl:1", {"text": "a"}), ("a.jsonl:4", {"text": "b"})]


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": ', "a.jsonl:2: not valid JSON"),
        (b'{"text": "\xff"}', "a.jsonl:2: not valid JSON"),
        (b'["text"]', "a.jsonl:2: every line must be a JSON object; got list"),
    ],
)
def test_bad_records_are_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(UserError, match=message):
        list(TextFile("a.jsonl", path).records())


@given(st.text(alphabet="a\u00e9\u65e5\U0001f600", min_size=1, max_size=6), st.data())
def test_character_border(tmp_path_factory, text, data):
    path = tmp_path_factory.mktemp("border") / "a.txt"
    path.write_bytes(text.encode())
    position = data.draw(st.integers(0, len(text.encode())))
    borders = [len(text[:count].encode()) for count in range(len(text) + 1)]
    assert TextFile("a", path).character_border(position) == min(
        each for each in borders if each >= position
    )


def test_signature_changes_with_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 0))
    file = TextFile("a", path)
    before = file.signature()
    assert before == file.signature()
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))
    changed = file.signature()
    assert changed != before
    os.utime(path, ns=(1, 1))
    assert file.signature() != changed


def test_signature_of_the_corpus_does_not_depend_on_where_and_when_it_was_installed(tmp_path):
    (corpus,), _ = expand("corpus:shakespeare")
    copy = tmp_path / corpus.path.name
    copy.write_bytes(corpus.path.read_bytes())
    os.utime(copy, ns=(0, 0))
    assert TextFile(corpus.name, copy).signature() == corpus.signature()
