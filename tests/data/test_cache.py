"""The cache on disk: a damaged entry is written again, and a failed one leaves nothing."""

import numpy as np
import pytest

from hgrn.data.cache import EntryWriter, cache_folder, cached
from hgrn.errors import UserError


def write(writer: EntryWriter) -> dict:
    writer.append("train/labels", np.arange(40, dtype=np.int64))
    return {"classes": ["a", "b"]}


@pytest.mark.parametrize("name", ["meta.json", "train/labels"])
@pytest.mark.parametrize("content", [b"5", b"[" * 100_000, b"\xff", bytes(320)])
def test_rubbish_is_written_again_with_a_word(tmp_path, caplog, name, content):
    before = cached(tmp_path, ["source"], write)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    after = cached(tmp_path, ["source"], write)
    assert after.fingerprint == before.fingerprint and after.facts == before.facts
    assert after.arrays["train/labels"].tolist() == list(range(40))
    assert f"the data cache is written again: {folder}" in caplog.text


@pytest.mark.parametrize("cache", ["", " "])
def test_an_empty_path_is_not_the_current_folder(cache):
    with pytest.raises(UserError, match="data.cache is an empty path"):
        cache_folder("lra", cache)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        UserError, match="cache cannot be written: .* set data.cache to another folder"
    ):
        cached(tmp_path / "cache", [], lambda writer: {})


def test_a_failed_write_leaves_nothing(tmp_path):
    def write(writer):
        writer.append("train/labels", np.zeros(3))
        raise UserError("bad file")

    with pytest.raises(UserError, match="bad file"):
        cached(tmp_path / "cache", [], write)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_pieces_of_an_array_must_agree(tmp_path):
    def write(writer):
        writer.append("a", np.zeros((2, 3)))
        writer.append("a", np.zeros((2, 4)))

    with pytest.raises(ValueError, match="array a has"):
        cached(tmp_path / "cache", [], write)
