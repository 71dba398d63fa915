"""Files that are not text are refused by their content; any text goes through unchanged."""

import bz2
import gzip
import io
import lzma
import pickle
import zipfile

import numpy as np
import pytest

from hgrn.cli import main
from hgrn.data.content import not_text
from hgrn.data.tokens import prepare
from hgrn.errors import UserError

LATIN = "d\u00e9j\u00e0 vu"


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("word/document.xml", "<w:t>text</w:t>")
    return made.getvalue()


def saved(array) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


NOT_TEXT = {
    "utf16": ("\ufeff" + LATIN).encode("utf-16-le"),
    "utf16be": ("\ufeff" + LATIN).encode("utf-16-be"),
    "utf32": ("\ufeff" + LATIN).encode("utf-32-le"),
    "utf32be": ("\ufeff" + LATIN).encode("utf-32-be"),
    "unmarked": LATIN.encode("utf-16-le"),
    "unmarked32": LATIN.encode("utf-32-be"),
    "marked only": b"\xff\xfe",
    "parquet": b"PAR1" + b"x" * 40,
    "zip": zipped(),
    "pdf": b"%PDF-1.4\ntext",
    "rtf": b"{\\rtf1 text}",
    "gzip": gzip.compress(b"text", mtime=0),
    "bzip2": bz2.compress(b"text"),
    "bzip2 of nothing": bz2.compress(b""),
    "xz": lzma.compress(b"text"),
    "zstd": b"\x28\xb5\x2f\xfdtext",
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff\xe0",
    "npy": saved(np.ones(3)),
    "sqlite": b"SQLite format 3\x00",
    "elf": b"\x7fELF\x02\x01\x01\x00",
    "noise": bytes(range(256)) * 2,
    **{f"pickle {protocol}": pickle.dumps(["text"] * 9, protocol) for protocol in range(2, 6)},
}

TEXT = {
    "utf-8": LATIN.encode(),
    "marked utf-8": b"\xef\xbb\xbf" + LATIN.encode(),
    "latin-1": LATIN.encode("latin-1"),
    "windows": "\u201cd\u00e9j\u00e0\u201d".encode("cp1252"),
    "shift-jis": "\u65e5\u672c\u8a9e".encode("shift-jis"),
    "controls": b"a\x01\x0c\x1b[0m\x7f\xff",
    "bz": b"BZhang wrote this",
    "pk": b"PK is short for",
    "pickled": b"\x80\x94",
    "json": b'[{"text": "x"}]',
    "csv": b"a,b\n1,2\n",
    "html": b"<html>",
    "one": b"a",
}


@pytest.mark.parametrize("kind", NOT_TEXT)
def test_what_is_no_text_is_refused_with_a_remedy(tmp_path, make_data, kind):
    (tmp_path / "a.txt").write_bytes(NOT_TEXT[kind])
    with pytest.raises(UserError, match="a.txt is .*, and is not read as text: .+"):
        prepare(make_data([tmp_path / "a.txt"]), "train")
    assert not list((tmp_path / "cache").glob("*/"))


@pytest.mark.parametrize("kind", TEXT)
def test_text_comes_back_byte_for_byte(tmp_path, make_data, kind):
    (tmp_path / "a.txt").write_bytes(TEXT[kind])
    tokens = prepare(make_data([tmp_path / "a.txt"]), "train")
    assert bytes(tokens.read(0, len(tokens)).tolist()) == TEXT[kind]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", ("\ufeff" + '{"text": "x"}').encode("utf-16-le")),
        ("a.csv", ("\ufeff" + "text\nx\n").encode("utf-16-be")),
        ("a.json", '[{"text": "x"}]'.encode("utf-16-le")),
        ("a.txt.gz", gzip.compress(b"%PDF-1.4", mtime=0)),
        ("a.txt.xz", lzma.compress(b"a\0b")),
        ("a.pkl", pickle.dumps(["text"], 0)),
        ("book.docx", zipped()),
        ("a", b"a\0"),
    ],
)
def test_other_names_and_compressed_files_are_looked_into_too(tmp_path, make_data, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is .*, and is not read as text"):
        prepare(make_data([tmp_path / name]), "train")


def test_one_file_among_many_is_named(tmp_path, make_data):
    (tmp_path / "a.txt").write_bytes(b"text")
    (tmp_path / "b.txt").write_bytes(b"%PDF-1.4")
    with pytest.raises(UserError, match="b.txt is a PDF"):
        prepare(make_data([tmp_path]), "train")


def test_a_tokenizer_is_not_trained_on_what_is_no_text(tmp_path, fails):
    (tmp_path / "a.txt").write_bytes("plain ascii".encode("utf-16-le"))
    assert "a.txt is no text: it holds NUL bytes, the first at byte 1" in fails(
        "tokenizer", "train", tmp_path / "a.txt", "--vocab-size", "300", "--out", tmp_path / "t"
    )
    (tmp_path / "a.json").write_text('[{"text": "fine"}]')
    assert (
        main(
            [
                "tokenizer",
                "train",
                str(tmp_path / "a.json"),
                "--vocab-size",
                "300",
                "--out",
                str(tmp_path / "t"),
            ]
        )
        == 0
    )


def test_nul_bytes_are_found_wherever_they_are_in_the_head():
    assert not_text(b"x" * 100_000) is None
    assert "the first at byte 100000" in not_text(b"x" * 100_000 + b"\0\0")[0]


def test_a_single_nul_in_a_long_text_is_kept(tmp_path, make_data):
    text = b"x" * 60 + b"\0" + b"y" * 60
    (tmp_path / "a.txt").write_bytes(text)
    tokens = prepare(make_data([tmp_path / "a.txt"]), "train")
    assert bytes(tokens.read(0, len(tokens)).tolist()) == text
    assert not_text(b"a\0") is not None
