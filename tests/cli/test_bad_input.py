"""What the commands refuse, and how: damaged files, wrong names, data that does not fit."""

import shutil

import torch
from safetensors.torch import load_file, save_file

from hgrn.cli import main
from tests.cli.conftest import TINY


def test_missing_file(fails, tmp_path):
    assert "nowhere.txt" in fails(
        "train", "lm/text", "--data.files", tmp_path / "nowhere.txt", "--out", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()


def test_empty_corpus(fails, tmp_path):
    (tmp_path / "empty.txt").touch()
    assert "empty" in fails(
        "train", "lm/text", "--data.files", tmp_path / "empty.txt", "--out", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()


def test_corpus_shorter_than_one_block(fails, tmp_path):
    (tmp_path / "short.txt").write_text("far too short")
    message = fails(
        "train", "lm/text", "--data.files", tmp_path / "short.txt", "--out", tmp_path / "run"
    )
    assert "block" in message and not (tmp_path / "run").exists()


def test_bytes_that_the_tokenizer_cannot_take(fails, text, tmp_path):
    assert (
        main(
            ["tokenizer", "train", str(text), "--vocab-size", "300", "--out", str(tmp_path / "bpe")]
        )
        == 0
    )
    (tmp_path / "latin1.txt").write_bytes("caf\xe9 ".encode("latin-1") * 500)
    message = fails(
        "train",
        "lm/text",
        *TINY,
        "--data.files",
        tmp_path / "latin1.txt",
        "--data.tokenizer",
        tmp_path / "bpe",
        "--out",
        tmp_path / "run",
    )
    assert "byte 3 (0xe9)" in message


def test_five_mistakes_in_a_recipe_are_reported_together(fails, text, tmp_path):
    (tmp_path / "bad.yaml").write_text(
        "name: bad\nmodel: {hiden_size: 8}\n"
        f"data: {{files: [{text}], splits: {{train: {{span: [0, 1]}}}}}}\n"
        "batch: {block_size: 0, batch_size: 5, accumulation: 2}\n"
        "optimizer: {lr: fast}\nschedule: {name: cosin}\ntraining: {steps: 10, sed: 1}\n"
    )
    message = fails("train", tmp_path / "bad.yaml", "--out", tmp_path / "run")
    for key in ("hiden_size", "batch.block_size", "optimizer.lr", "schedule.name", "training.sed"):
        assert key in message, key
    assert "hidden_size" in message and "seed" in message and not (tmp_path / "run").exists()


def test_a_folder_that_is_not_a_run(fails, text, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds no run" in fails(
        "train", "lm/text", *TINY, "--data.files", text, "--out", tmp_path
    )
    assert (tmp_path / "thesis.tex").read_text() == "years of work" and len(
        list(tmp_path.iterdir())
    ) == 1


def test_truncated_checkpoint(fails, trained, tmp_path):
    broken = shutil.copytree(trained / "checkpoints" / "step-000004", tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged" in fails("generate", broken, "--prompt", "A")
    (broken / "manifest.json").unlink()
    assert "does not hold a model that can be loaded" in fails("eval", broken)


def test_foreign_checkpoint(fails, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 8}')
    assert "gpt2" in fails("eval", tmp_path)
    assert "no checkpoint folder" in fails("eval", tmp_path / "missing")
    (tmp_path / "config.json").write_text('{"model_type": "hgrn", "vocab_size": 8}')
    assert "does not hold a model that can be loaded" in fails(
        "generate", tmp_path, "--prompt", "A"
    )


def test_missing_weights_are_never_made_up(fails, trained, tmp_path):
    holed = shutil.copytree(trained / "checkpoints" / "step-000004", tmp_path / "holed")
    (holed / "manifest.json").unlink()
    tensors = load_file(holed / "model.safetensors")
    tensors.pop("model.stack.blocks.0.mixer.theta")
    save_file(tensors, holed / "model.safetensors", {"format": "pt"})
    assert "theta" in fails("generate", holed, "--prompt", "A")


def test_nan_in_the_weights(fails, trained, tmp_path):
    poisoned = shutil.copytree(trained / "checkpoints" / "step-000004", tmp_path / "poisoned")
    (poisoned / "manifest.json").unlink()
    tensors = load_file(poisoned / "model.safetensors")
    tensors["model.stack.norm.weight"][3] = torch.nan
    save_file(tensors, poisoned / "model.safetensors", {"format": "pt"})
    for command in (("eval", poisoned), ("generate", poisoned, "--prompt", "A")):
        message = fails(*command)
        assert "model.stack.norm.weight" in message and "NaN" in message


def test_prompts_that_cannot_be_used(fails, trained, tmp_path):
    assert "prompt is empty" in fails("generate", trained, "--prompt", "")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"once": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    other = shutil.copytree(trained / "checkpoints" / "step-000004", tmp_path / "words")
    (other / "manifest.json").unlink()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(other)
    assert "outside of the model's vocabulary" in fails("generate", other, "--prompt", "once upon")


def test_unknown_arguments(fails, trained):
    assert "did you mean --prompt?" in fails("generate", trained, "--prompt", "A", "--promt", "B")
    assert "--optimizer.lr needs a value" in fails("train", "quickstart", "--optimizer.lr")
    assert "unknown argument '--lr'" in fails("train", "quickstart", "--lr", "1")
    assert "temperature must be at least 0" in fails(
        "generate", trained, "--prompt", "A", "--temperature", "-1"
    )
    assert "--max-new-tokens must be at least 1" in fails(
        "generate", trained, "--prompt", "A", "--max-new-tokens", "0"
    )
