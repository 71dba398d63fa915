"""A run that takes a moment, for every test of the command line that needs one."""

from pathlib import Path

import pytest

from hgrn.cli import main

# What makes a shipped recipe of language models tiny, and the words that say so.
_FIELDS = {
    "model.hidden_size": 16,
    "model.num_hidden_layers": 2,
    "batch.block_size": 32,
    "batch.batch_size": 4,
    "schedule.warmup_steps": 1,
    "training.steps": 4,
    "training.eval_every": 2,
    "training.eval_tokens": 200,
    "training.save_every": 2,
    "training.log_every": 1,
}
TINY = [word for field, value in _FIELDS.items() for word in (f"--{field}", str(value))]


@pytest.fixture(scope="package", autouse=True)
def cache(tmp_path_factory):
    """A folder for token files, so that none go to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="package")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "my.txt"
    path.write_text("Once upon a time there was a recurrent network. " * 100)
    return path


@pytest.fixture(scope="package")
def trained(tmp_path_factory, cache, text) -> Path:
    """A run folder with two checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "lm/text", "--data.files", str(text), "--out", str(out), *TINY]) == 0
    return out
