"""`--resume` trains on the data of the checkpoint, or says that it is other data."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hgrn.errors import UserError
from hgrn.training.loop import train
from hgrn.training.manifests import steps_saved
from tests.training.tiny_runs import tiny_recipe, tiny_text


@pytest.fixture
def cut_short(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run of 12 steps whose last checkpoint is gone, and the weights that it had."""
    done = train(tiny_recipe(tmp_path), tmp_path / "run")
    weights = load_file(done.checkpoint / "model.safetensors")
    shutil.rmtree(done.checkpoint)
    assert [step for step, _ in steps_saved(tmp_path / "run")] == [8]
    return tmp_path, weights


def test_a_cache_in_which_every_token_was_changed_is_not_used(cut_short, caplog):
    folder, weights = cut_short
    for path in (folder / "cache").glob("*/tokens.bin"):
        (np.fromfile(path, np.uint16) ^ 1).tofile(path)
    resumed = train(tiny_recipe(folder), folder / "run", resume=True)
    again = load_file(resumed.checkpoint / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    assert (
        caplog.text.count("the data cache is written again") == 2
    )  # of training and of validation


def test_another_text_is_refused(cut_short):
    folder, _ = cut_short
    (folder / "tiny.txt").write_text(tiny_text(seed=1))
    with pytest.raises(UserError, match="was trained on other data"):
        train(tiny_recipe(folder), folder / "run", resume=True)
    assert [step for step, _ in steps_saved(folder / "run")] == [8]
