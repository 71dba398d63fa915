"""The cache of encoded examples: what was damaged is written again, with a word about it."""

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
