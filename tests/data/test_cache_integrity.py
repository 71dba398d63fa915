"""What the token cache does about bytes that are not those that were written."""

import json
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from hgrn.data.cache import DamagedEntry, open_entry
from hgrn.data.tokens import TokenFile, prepare
from hgrn.errors import UserError

TEXT = "".join(f"Line {number} of d\u00e9j\u00e0 vu.\n" for number in range(40)).encode()


@pytest.fixture
def data(tmp_path, make_data):
    (tmp_path / "novel.txt").write_bytes(TEXT)
    return make_data([tmp_path / "novel.txt"], documents="line")


def entry(data) -> Path:
    """The folder of the only entry."""
    (folder,) = [path for path in Path(data.cache).iterdir() if path.is_dir()]
    return folder


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def change_every_token(folder: Path) -> None:
    tokens = np.fromfile(folder / "tokens.bin", np.uint16)
    np.where(tokens < 256, tokens ^ 1, tokens).tofile(folder / "tokens.bin")


@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin", "meta.json"])
def test_no_flipped_byte_is_used(data, name, caplog):
    before = prepare(data, "train")
    meta = open_entry(entry(data))
    expected = before.read(0, len(before)).tolist()
    starts = before.document_starts(0, len(before)).tolist()
    path = entry(data) / name
    size = path.stat().st_size
    for position in range(0, size, -(-size // 25)):
        flip(path, position)
        after = prepare(data, "train")
        assert after.read(0, len(after)).tolist() == expected
        assert after.document_starts(0, len(after)).tolist() == starts
        assert open_entry(entry(data)) == meta
    if name != "meta.json":  # a flip of its white space changes nothing
        assert caplog.text.count("the data cache is written again") == len(
            range(0, size, -(-size // 25))
        )


def test_other_tokens_with_their_own_numbers_are_not_used(data, caplog):
    """A file of the right size, and a meta.json in which everything fits but the checksum."""
    expected = prepare(data, "train").fingerprint
    folder = entry(data)
    change_every_token(folder)
    meta = json.loads((folder / "meta.json").read_text())
    with pytest.raises(DamagedEntry, match="is not what was written: tokens.bin was changed"):
        open_entry(folder).verify()
    meta["arrays"]["tokens.bin"]["sha256"] = "0" * 64
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DamagedEntry, match="is not what was written: meta.json was changed"):
        TokenFile(folder)
    with caplog.at_level(logging.WARNING):
        assert prepare(data, "train").fingerprint == expected
    assert f"written again: {folder} is not what was written" in caplog.text


@pytest.mark.parametrize(
    "content", [b"5", b"[]", b'"x"', b"[" * 100_000, b"\xff", b'{"num_tokens": "x", "dtype": 0}']
)
def test_rubbish_in_meta_is_a_damaged_entry(data, content):
    expected = prepare(data, "train").fingerprint
    (entry(data) / "meta.json").write_bytes(content)
    with pytest.raises(DamagedEntry):
        TokenFile(entry(data))
    assert prepare(data, "train").fingerprint == expected


def test_an_entry_without_a_checksum_is_written_again(data):
    prepare(data, "train")
    expected = open_entry(entry(data))
    meta = json.loads((entry(data) / "meta.json").read_text())
    del meta["checksum"]
    (entry(data) / "meta.json").write_text(json.dumps(meta))
    prepare(data, "train")
    assert open_entry(entry(data)) == expected


def test_an_entry_that_is_whole_is_not_written_again(data, caplog):
    prepare(data, "train")
    before = (entry(data) / "meta.json").stat().st_ino
    prepare(data, "train")
    assert (entry(data) / "meta.json").stat().st_ino == before and caplog.text == ""


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_damage_in_a_cache_that_cannot_be_written_is_refused(data):
    prepare(data, "train")
    change_every_token(entry(data))
    Path(data.cache).chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot be written"):
            prepare(data, "train")
    finally:
        Path(data.cache).chmod(0o700)


def test_ids_beyond_the_vocabulary_are_refused_while_in_use(data):
    tokens = prepare(data, "train")
    with open(entry(data) / "tokens.bin", "r+b") as file:
        file.seek(20)
        file.write(b"\xff\xff")
    with pytest.raises(
        UserError, match="tokens.bin was changed while .* token 65535, and the vocabulary has 259"
    ):
        tokens.read(0, 20)
    assert tokens.read(11, 0).tolist() == [] and len(tokens.read(11, 20)) == 20


def test_a_file_that_becomes_shorter_while_in_use_is_named(data):
    tokens = prepare(data, "train")
    os.truncate(entry(data) / "tokens.bin", 100)
    with pytest.raises(UserError, match="tokens.bin became shorter while it was in use"):
        tokens.read(40, 20)


def test_reading_without_pread_from_several_threads(data, monkeypatch):
    """As on Windows."""
    monkeypatch.delattr(os, "pread")
    tokens = prepare(data, "train")
    whole = tokens.read(0, len(tokens))
    wrong = []

    def read(seed):
        for start in np.random.default_rng(seed).integers(len(tokens) - 50, size=300).tolist():
            if tokens.read(start, 50).tolist() != whole[start : start + 50].tolist():
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and bytes(whole[:5].tolist()) == b"Line "
