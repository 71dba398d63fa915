"""The token cache: what it holds, when it is used again, and that it is whole or absent."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrn.data import tokens as tokens_module
from hgrn.data.cache import DamagedEntry, EntryWriter, cache_folder
from hgrn.data.files import expand
from hgrn.data.text import Select, TextSplit
from hgrn.data.tokenizer import train_tokenizer
from hgrn.data.tokens import TokenFile, prepare
from hgrn.errors import UserError
from hgrn.files import is_draft


@pytest.fixture
def novel(tmp_path, make_data):
    path = tmp_path / "novel.txt"
    path.write_bytes("It was a d\u00e9j\u00e0 vu.\n".encode() * 50)
    return make_data([path])


def entries(data) -> list[str]:
    """The finished entries of the cache."""
    return sorted(name for name in os.listdir(data.cache) if not name.endswith(".lock"))


def content(tokens: TokenFile) -> list[int]:
    return tokens.read(0, len(tokens)).tolist()


def test_shakespeare_bytes_come_back(make_data):
    tokens = prepare(
        make_data(["corpus:shakespeare"], splits={"test": TextSplit(span=(0.95, 1))}), "test"
    )
    assert len(tokens) == tokens.num_bytes == 252_867
    assert (tokens.vocab_size, tokens.eos_id) == (259, 257)
    assert (tokens.num_documents, tokens.first_token_bytes) == (1, 1)
    (corpus,), _ = expand("corpus:shakespeare")
    assert bytes(content(tokens)) == b"".join(corpus.blocks())[-252_867:]
    window = tokens.read(100, 50)
    assert window.dtype == np.int64 and window.tolist() == content(tokens)[100:150]


def test_files_on_disk(novel, tmp_path):
    tokens = prepare(novel, "train")
    (key,) = entries(novel)
    folder = tmp_path / "cache" / key
    assert sorted(os.listdir(folder)) == ["documents.bin", "meta.json", "tokens.bin"]
    assert np.fromfile(folder / "tokens.bin", np.uint16).tolist() == content(tokens)
    assert np.fromfile(folder / "documents.bin", np.int64).tolist() == [0]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["arrays"]["tokens.bin"]["dtype"] == "<u2"
    assert meta["arrays"]["tokens.bin"]["shape"] == [len(tokens)]
    assert meta["facts"]["vocab_size"] == 259


def test_bpe_tokens_and_their_bytes(tmp_path, novel):
    text = (tmp_path / "novel.txt").read_text()
    bpe = train_tokenizer([text], 290, tmp_path / "bpe")
    tokens = prepare(replace(novel, tokenizer=str(tmp_path / "bpe")), "train")
    assert bpe.decode(content(tokens)) == text
    assert len(tokens) < tokens.num_bytes == len(text.encode())
    assert tokens.first_token_bytes == len(bpe.decode(content(tokens)[:1]))


def test_large_vocabulary_takes_four_bytes(tmp_path, make_data):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        models.WordLevel({str(number): number for number in range(70_000)}, unk_token="0")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="1").save_pretrained(
        tmp_path / "words"
    )
    (tmp_path / "a.txt").write_text("69999 7 65536\n65535")
    data = make_data([tmp_path / "a.txt"], tokenizer=str(tmp_path / "words"), documents="line")
    tokens = prepare(data, "train")
    assert tokens.dtype == np.uint32 and tokens.vocab_size == 70_000
    assert content(tokens) == [69_999, 7, 65_536, 1, 65_535]
    assert tokens.document_starts(0, 5).tolist() == [0, 4]


def test_second_preparation_reads_no_text(novel, monkeypatch):
    first = prepare(novel, "train")
    monkeypatch.setattr(tokens_module, "_write", None)
    second = prepare(novel, "train")
    assert content(second) == content(first) and second.fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda data, path: path.write_bytes(path.read_bytes() + b"x"),
        lambda data, path: replace(data, documents="line"),
        lambda data, path: replace(data, splits={"train": TextSplit(span=(0, 0.5))}),
    ],
)
def test_another_text_is_another_entry(novel, tmp_path, change):
    before = prepare(novel, "train")
    changed = change(novel, tmp_path / "novel.txt")
    after = prepare(changed if isinstance(changed, type(novel)) else novel, "train")
    assert after.fingerprint != before.fingerprint
    assert len(entries(novel)) == 2


def test_fingerprint_is_of_the_tokens_wherever_they_come_from(novel, tmp_path, make_data):
    copy = tmp_path / "elsewhere" / "copy.txt"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "novel.txt").read_bytes())
    os.utime(copy, ns=(0, 0))
    assert prepare(make_data([copy]), "train").fingerprint == prepare(novel, "train").fingerprint
    assert len(entries(novel)) == 2


def test_fingerprint_sees_document_borders_and_vocabulary(tmp_path, make_data, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"ab")
    data = make_data([tmp_path / "a.txt"])
    first = prepare(data, "train").fingerprint
    monkeypatch.setattr(tokens_module.ByteEncoder, "vocab_size", 300)
    assert prepare(replace(data, cache=str(tmp_path / "other")), "train").fingerprint != first


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "tokens.bin").write_bytes(b"short"),
        lambda folder: (folder / "documents.bin").unlink(),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / "meta.json").write_text("{}"),
        lambda folder: (folder / "meta.json").unlink(),
    ],
)
def test_damaged_entry_is_written_again(novel, tmp_path, damage):
    expected = content(prepare(novel, "train"))
    (key,) = entries(novel)
    folder = tmp_path / "cache" / key
    damage(folder)
    with pytest.raises((DamagedEntry, FileNotFoundError)):
        TokenFile(folder)
    assert content(prepare(novel, "train")) == expected
    assert content(TokenFile(folder)) == expected


def test_failed_preparation_leaves_nothing(tmp_path, make_data):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    data = make_data([tmp_path / "a.jsonl"])
    with pytest.raises(UserError, match="a.jsonl:2: not valid JSON"):
        prepare(data, "train")
    assert entries(data) == []


KILLED = """
import os, signal, sys
from hgrn.data import cache, tokens
from hgrn.data.text import TextData, TextSplit

def die(*args, **settings):
    os.kill(os.getpid(), signal.SIGKILL)

setattr({"os": os, "json": cache.json}[sys.argv[3]], sys.argv[4], die)
data = TextData(files=[sys.argv[1]], splits={"train": TextSplit()}, cache=sys.argv[2])
tokens.prepare(data, "train")
"""


@pytest.mark.parametrize("moment", [("os", "fsync"), ("json", "dump"), ("os", "replace")])
def test_killed_preparation_is_done_again(novel, tmp_path, moment):
    killed = subprocess.run([sys.executable, "-c", KILLED, novel.files[0], novel.cache, *moment])
    assert killed.returncode == -signal.SIGKILL
    assert [is_draft(name) for name in entries(novel)] == [True]
    tokens = prepare(novel, "train")
    assert bytes(content(tokens)) == (tmp_path / "novel.txt").read_bytes()
    assert [is_draft(name) for name in entries(novel)] == [False]


def test_processes_at_once_write_one_entry(novel, monkeypatch):
    written = []
    write = tokens_module._write
    results = []

    def counted(*args):
        written.append(1)
        return write(*args)

    monkeypatch.setattr(tokens_module, "_write", counted)

    def run():
        results.append(prepare(novel, "train").fingerprint)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1 and written == [1]


@pytest.mark.parametrize(
    "files, splits",
    [
        ({"a.txt": b""}, TextSplit()),
        ({"a.txt": b"", "b.txt": b""}, TextSplit()),
        ({"a.txt": b"abc"}, TextSplit(span=(0, 0.1))),
        ({"a.jsonl": b"\n"}, TextSplit()),
        ({"a.jsonl": b'{"text": "x", "year": 5}'}, TextSplit(select=Select("year", below=5))),
    ],
)
def test_split_without_text(tmp_path, make_data, files, splits):
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    data = make_data([tmp_path / name for name in files], splits={"train": splits})
    with pytest.raises(UserError, match="split 'train' of .* holds no text; check its files, span"):
        prepare(data, "train")
    assert entries(data) == []


def test_cache_that_cannot_be_written(novel, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written: .*data.cache"):
        prepare(replace(novel, cache=str(tmp_path / "file")), "train")


def test_full_disk(novel, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written: .*No space left.*make room"):
        prepare(novel, "train")
    assert entries(novel) == []


def test_progress_counts_bytes(tmp_path, make_data):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"x" * 100)
    seen = []
    data = make_data([tmp_path / "a.txt", tmp_path / "b.txt"])
    prepare(data, "train", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (200, 200)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_default_cache_folder(monkeypatch, tmp_path, novel):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("tokens") == tmp_path / "xdg" / "hgrn" / "tokens"
    prepare(replace(novel, cache=None), "train")
    assert any(cache_folder("tokens").glob("*/meta.json"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("tokens") == tmp_path / "home" / ".cache" / "hgrn" / "tokens"


def test_reading_outside_is_an_error(make_tokens):
    tokens = make_tokens(b"abcdef")
    assert tokens.read(6, 0).tolist() == []
    for start, length in ((0, 7), (-1, 2), (5, 2), (3, -1)):
        with pytest.raises(ValueError, match="not in a file of 6"):
            tokens.read(start, length)


def test_open_tokens_outlive_the_cache(novel, tmp_path):
    tokens = prepare(novel, "train")
    expected = content(tokens)
    (key,) = entries(novel)
    for name in ("tokens.bin", "documents.bin"):
        (tmp_path / "cache" / key / name).unlink()
    assert content(tokens) == expected and tokens.document_starts(0, 5).tolist() == [0]


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    bounds=st.tuples(st.integers(-2, 170), st.integers(-2, 170)),
    page=st.integers(1, 5),
)
def test_document_starts_are_found_by_position(tmp_path_factory, lengths, bounds, page):
    folder = tmp_path_factory.mktemp("starts")
    starts = np.cumsum([0, *(length + 1 for length in lengths)])
    writer = EntryWriter(folder)
    writer.append("tokens.bin", np.zeros(starts[-1], np.uint16))
    writer.append("documents.bin", starts[:-1])
    writer.finish({"num_bytes": 1, "first_token_bytes": 1, "vocab_size": 259, "eos_id": 257})
    start, stop = sorted(bounds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "PAGE", page)
        found = TokenFile(folder).document_starts(start, stop)
    assert found.tolist() == [each for each in starts[:-1].tolist() if start <= each < stop]
