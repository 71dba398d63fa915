"""`hgrn plot gates` on a small run: its pictures, and a clear word where there is no text."""

import shutil

import pytest

from hgrn.cli import main

TINY = [
    *("--model.hidden_size", "8", "--model.num_hidden_layers", "2", "--batch.block_size", "16"),
    *("--batch.batch_size", "2", "--schedule.warmup_steps", "1", "--training.steps", "2"),
    *("--training.eval_every", "2", "--training.eval_tokens", "50", "--training.threads", "1"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder."""
    out = tmp_path_factory.mktemp("gates") / "run"
    assert main(["train", "quickstart", "--out", str(out), *TINY]) == 0
    return out


@pytest.mark.parametrize("given", [[], ["--prompt", "To be\n$or$ not"]], ids=["test split", "text"])
def test_two_pictures_and_a_table(trained, tmp_path, capsys, given):
    assert main(["plot", "gates", str(trained), "--out", str(tmp_path / "new"), *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Two layers start with bounds of 0 and 1/2, which two steps hardly change.
    assert lines[1].split()[:2] == ["1", "1.0"] and lines[2].split()[:2] == ["2", "2.0"]
    for name in ("gates.png", "gates_text.png"):
        assert (tmp_path / "new" / name).stat().st_size > 10_000


def test_what_cannot_be_drawn(trained, tmp_path, fails):
    run = str(trained)
    assert "give one of them" in fails("plot", "gates", run, "--prompt", "a", "--text", "b")
    assert "the text is empty" in fails("plot", "gates", run, "--prompt", "")
    assert "none.txt" in fails("plot", "gates", run, "--text", str(tmp_path / "none.txt"))
    # A model that was saved by transformers knows no recipe.
    saved = tmp_path / "saved"
    saved.mkdir()
    for pattern in ("config.json", "model.safetensors", "tokenizer*"):
        for file in next((trained / "checkpoints").iterdir()).glob(pattern):
            shutil.copy(file, saved)
    assert "give a text with --prompt" in fails("plot", "gates", str(saved))
