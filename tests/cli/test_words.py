"""What commands say: options out of range, hints to paste, prompts of any bytes, remedies."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from hgrn.cli import doctor, inference, main
from hgrn.data.tokenizer import byte_tokenizer, train_tokenizer
from hgrn.errors import UserError, pasted
from hgrn.models import HGRNConfig, HGRNForCausalLM
from tests.training.tiny_runs import TINY, tiny_text


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A byte-level model that learned nothing, and its tokenizer."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    torch.manual_seed(0)
    HGRNForCausalLM(HGRNConfig(vocab_size=259, hidden_size=8, num_hidden_layers=1)).save_pretrained(
        folder
    )
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe file whose run takes a moment, in a folder whose name has a space."""
    import yaml

    folder = tmp_path / "my runs"
    folder.mkdir()
    (folder / "it's.txt").write_text(tiny_text())
    data = TINY["data"] | {"files": [str(folder / "it's.txt")], "cache": str(tmp_path / "cache")}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"data": data}))
    return folder / "tiny.yaml"


# -------------------------------------------------------------------------------------------------
# Options out of range


@pytest.mark.parametrize(
    "option, value, rule",
    [
        ("temperature", "nan", "finite number"),
        ("temperature", "inf", "finite number"),
        ("temperature", "-1", "at least 0"),
        ("temperature", "1e-300", "at least 0 (0, or a finite number from 1e-06)"),
        ("top-k", "-1", "at least 1"),
        ("top-k", "0", "at least 1"),
        ("top-k", "1e3", "whole number"),
        ("top-p", "nan", "finite number"),
        ("top-p", "0", "above 0 and at most 1"),
        ("top-p", "-1", "above 0 and at most 1"),
        ("top-p", "7", "above 0 and at most 1"),
        ("seed", "1e23", "whole number"),
        ("seed", str(10**23), "from 0 to 2**64 - 1"),
        ("seed", "-1", "from 0 to 2**64 - 1"),
        ("max-new-tokens", "1.5", "whole number"),
    ],
)
def test_sampling_options_out_of_range(fails, option, value, rule):
    message = fails("generate", "nowhere", "--prompt", "a", f"--{option}={value}")
    assert (
        option.replace("-", "_") in message.replace("-", "_")
        and rule in message
        and "nowhere" not in message
    )


def test_sampling_options_at_the_edges_of_their_ranges(saved, capsys):
    for options in (
        ["--temperature", "1e-6"],
        ["--temperature", "1e308"],
        ["--top-p", "1e-300"],
        ["--top-p", "1"],
        ["--top-k", "1"],
        ["--top-k", str(10**12)],
        ["--seed", str(2**64 - 1)],
    ):
        assert (
            main(["generate", str(saved), "--prompt", "a", "--max-new-tokens", "3", *options]) == 0
        ), options
    for wrong in (
        {"temperature": float("nan")},
        {"top_p": float("nan")},
        {"top_k": 0},
        {"seed": 2**64},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            inference.generate(None, None, "a", print, max_new_tokens=1, **wrong)


@pytest.mark.parametrize(
    "key, value, rule",
    [
        ("optimizer.eps", "1e999", "must be a finite number"),
        ("optimizer.clip_norm", "1e999", "must be a finite number"),
        ("optimizer.clip_norm", "1e300", "must be a finite number"),
        ("optimizer.lr", "1e999", "must be a finite number"),
        ("optimizer.weight_decay", "1e999", "must be a finite number"),
        ("model.norm_eps", "1e999", "must be a positive number"),
        ("model.hidden_size", str(10**23), "must be at most 2147483647"),
        ("model.vocab_size", str(10**12), "must be at most 2147483647"),
        ("model.dtype", "x", "is not a field of HGRNConfig that a recipe can set"),
        ("model.id2label", "3", "is not a field of HGRNConfig that a recipe can set"),
        ("model.__class__", "x", "is not a field of HGRNConfig that a recipe can set"),
        ("training.seed", str(10**23), "should be less than or equal to 9223372036854775807"),
        ("training.seed", "9" * 5000, "not a YAML value"),
        ("training.save_every", str(10**23), "must be at most 9223372036854775807"),
        ("data.splits.train.span", "[0, 1e999]", "must be a finite number"),
    ],
)
def test_numbers_of_a_recipe_out_of_range(fails, recipe, key, value, rule):
    message = fails("train", recipe, "--out", recipe.parent / "run", f"--{key}", value)
    assert rule in message and key in message and not (recipe.parent / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--batch.batch_size", str(10**12)],
        ["--model.hidden_size", str(10**9)],
        ["--model.intermediate_size", "2147483647"],
    ],
)
def test_what_no_memory_holds_is_one_line(fails, recipe, options):
    message = fails(
        "train",
        recipe,
        "--out",
        recipe.parent / "run",
        "--data.splits.train.span",
        "[0, 1]",
        *options,
    )
    assert "memory" in message or "use more text" in message
    assert not (recipe.parent / "run").exists()


def test_an_error_that_is_not_of_memory_stays_one(monkeypatch):
    def fail(arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(doctor, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def test_numbers_of_the_synthetic_tasks_out_of_range(fails, tmp_path):
    out = tmp_path / "new"
    assert "seed must be at least 0; got -1" in fails("data", "pathfinder", out, "--seed", "-1")
    assert "seed must not be negative; got -1" in fails("data", "listops", out, "--seed", "-1")
    assert "processes must be at least 1 and at most 1024" in fails(
        "data", "listops", out, "--processes", "100000"
    )
    for size in (10**9, 10**23):
        assert "vocab_size must be at most" in fails(
            "tokenizer", "train", __file__, "--vocab-size", size, "--out", out
        )
    assert not out.exists()


def test_a_value_that_looks_like_an_option(fails):
    assert "--prompt=VALUE" in fails("generate", "nowhere", "--prompt", "-hello")


# -------------------------------------------------------------------------------------------------
# Commands to paste


@pytest.mark.parametrize(
    "name", ["my run", "it's", 'a "b"', "-x", "--resume", "a;b&c", "$HOME", "new\nline", "plain"]
)
def test_a_pasted_path_is_that_path(name):
    words = shlex.split(pasted("hgrn", "eval", Path(name)))
    assert (
        words[:2] == ["hgrn", "eval"]
        and Path(words[2]) == Path(name)
        and not words[2].startswith("-")
    )
    assert len(words) == 3


def test_the_hint_after_a_run_can_be_pasted(recipe, capsys):
    out = recipe.parent / "my run"
    assert main(["train", str(recipe), "--out", str(out), "--training.steps", "2"]) == 0
    hint = capsys.readouterr().out.splitlines()[-1].removeprefix("measure it with: ")
    assert shlex.split(hint) == ["hgrn", "eval", str(out)]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_hint_of_a_run_that_was_stopped_begins_as_the_run_did(
    recipe, capsys, monkeypatch, processes
):
    from types import SimpleNamespace

    from hgrn.training import loop

    monkeypatch.setattr(loop, "train", lambda *a, **k: SimpleNamespace(interrupted=True))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    text = shutil.copy(recipe.parent / "it's.txt", recipe.parent / "one, two.txt")
    words = [
        "train",
        str(recipe),
        "--out",
        "my run",
        "--data.files",
        str(text),
        str(text),
        "--training.steps",
        "3",
    ]
    assert main(words) == 130
    hint = capsys.readouterr().out.splitlines()[-1].removeprefix("go on with: ")
    start = ["hgrn"] if processes == 1 else ["torchrun", "--nproc-per-node", "2", "-m", "hgrn"]
    assert shlex.split(hint) == [*start, *words, "--resume"]


# -------------------------------------------------------------------------------------------------
# Prompts and tokenizers


def test_bytes_of_a_prompt_reach_a_byte_level_model():
    for raw in (b"caf\xe9", b"\xff\x00a", "grüße".encode(), b"<eos>"):
        ids = inference.encode_prompt(byte_tokenizer(), raw.decode("utf-8", "surrogateescape"), 259)
        assert ids.tolist() == [list(raw)]


def test_bytes_of_a_prompt_that_a_tokenizer_cannot_take(tmp_path):
    tokenizer = train_tokenizer([tiny_text()], 300, tmp_path / "bpe")
    with pytest.raises(UserError, match=r"not UTF-8 at byte 3 \(0xe9\).*iconv"):
        inference.encode_prompt(tokenizer, "caf\udce9", 300)
    # Where Python reads arguments as ASCII, text arrives as escaped bytes too.
    escaped = "grüße".encode().decode("ascii", "surrogateescape")
    expected = inference.encode_prompt(tokenizer, "grüße", 300)
    assert torch.equal(inference.encode_prompt(tokenizer, escaped, 300), expected)


@pytest.mark.parametrize(
    "arguments",
    [["generate", "nowhere", "--prompt", "a\ud800b"], ["train", "quickstart", "--out", "a\ud800b"]],
)
def test_half_of_a_surrogate_pair_is_no_text(fails, arguments):
    assert "half of a surrogate pair at character 1" in fails(*arguments)
    with pytest.raises(UserError, match="half of a surrogate pair"):
        inference.encode_prompt(byte_tokenizer(), "a\udfff", 259)


def test_a_model_without_a_tokenizer(saved, fails, tmp_path, capsys):
    shutil.copytree(
        saved,
        tmp_path / "bare",
        ignore=shutil.ignore_patterns("tokenizer*", "special_tokens_map.json"),
    )
    assert "has no tokenizer: say with --tokenizer" in fails(
        "generate", tmp_path / "bare", "--prompt", "a"
    )
    (tmp_path / "text.txt").write_text(tiny_text())
    data = ["--data", str(tmp_path / "text.txt")]
    assert "has no tokenizer: say with --tokenizer" in fails("eval", tmp_path / "bare", *data)
    options = ["--prompt", "a", "--max-new-tokens", "8", "--seed", "1"]
    assert main(["generate", str(tmp_path / "bare"), *options, "--tokenizer", "bytes"]) == 0
    assert main(["generate", str(saved), *options]) == 0
    given, own = capsys.readouterr().out.splitlines()
    assert given == own
    for words in (
        ["eval", str(tmp_path / "bare"), *data, "--tokenizer", "bytes"],
        ["eval", str(saved), *data],
    ):
        assert main(words) == 0
    given, own = [line for line in capsys.readouterr().out.splitlines() if "per byte" in line]
    assert given == own


# -------------------------------------------------------------------------------------------------
# Remedies


def test_a_folder_without_a_model_is_not_converted(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    for to in ([], ["--to", "fla"]):
        message = fails("convert", tmp_path / "empty", tmp_path / "out", *to)
        assert "holds no model (no config.json, model.safetensors or pytorch_model.bin)" in message
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "gpt2"}')
    assert "holds a model of type 'gpt2'" in fails("convert", tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_colour_image_for_a_model_of_grey_ones(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    image_module.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "red.png")
    with pytest.raises(
        UserError, match="the model was trained on grey images; make this one grey too"
    ) as raised:
        inference.read_image(tmp_path / "red.png", 1)
    assert "channels" not in str(raised.value)


def test_only_training_is_shared_out_by_torchrun(fails, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "RANK, MASTER_ADDR, MASTER_PORT is not set" in fails(
        "train", "quickstart", "--out", "never made"
    )
    monkeypatch.setenv("RANK", "0")
    for command in (["eval", "nowhere"], ["generate", "nowhere", "--prompt", "a"], ["quickstart"]):
        assert "there are 2: start this command without torchrun" in fails(*command)


@pytest.mark.parametrize(
    "schedule, longer",
    [
        (["--schedule.total_steps", "8"], []),
        (["--schedule.name", "constant", "--schedule.min_lr", "null"], []),
        ([], ["--schedule.total_steps", "2"]),
    ],
    ids=["a cosine with an end of its own", "constant", "a cosine whose end is named later"],
)
def test_a_finished_run_is_made_longer(recipe, capsys, schedule, longer):
    words = [
        "train",
        str(recipe),
        "--out",
        str(recipe.parent / "run"),
        "--schedule.warmup_steps",
        "1",
        *schedule,
    ]
    assert main([*words, "--training.steps", "2"]) == 0
    assert main([*words, "--training.steps", "2", "--resume"]) == 0
    said = capsys.readouterr().out
    assert "all 2 steps are taken already" in said
    assert ("with more training.steps the run goes on" in said) == (not longer)
    assert main([*words, *longer, "--training.steps", "4", "--resume"]) == 0
    assert "resumed at step 2" in capsys.readouterr().out


def test_a_cosine_that_ends_with_its_run_says_the_way(recipe, fails, capsys):
    out = recipe.parent / "my run"
    words = ["train", str(recipe), "--out", str(out), "--schedule.warmup_steps", "1"]
    assert main([*words, "--training.steps", "2"]) == 0
    message = fails(*words, "--training.steps", "4", "--resume")
    assert (
        "training.steps: 2 in the checkpoint, 4 now" in message
        and "A cosine ends with its run" in message
    )
    way = shlex.split(message[message.index("--model.weights") :])
    assert way == ["--model.weights", str(out / "checkpoints" / "step-000002")]
    assert (
        main([*words, *way, "--training.steps", "4", "--out", str(recipe.parent / "longer")]) == 0
    )
    assert "A cosine ends" not in fails(*words, "--training.steps", "1", "--resume")


def test_the_schedules_remedies_can_be_typed(fails, recipe):
    words = ["train", recipe, "--out", recipe.parent / "run", "--schedule.name", "constant"]
    message = fails(*words, "--schedule.min_lr", "1e-4", "--schedule.total_steps", "5")
    assert (
        "schedule.min_lr = 0.0001: is for cosine, and schedule.name = constant (set it to 0)"
        in message
    )
    assert (
        "schedule.total_steps = 5: is for cosine, and schedule.name = constant (set it to null)"
        in message
    )
    for unset in ("0", "null"):
        words = [
            "train",
            recipe,
            "--schedule.name",
            "constant",
            "--schedule.min_lr",
            unset,
            "--schedule.total_steps",
            "null",
        ]
        assert (
            main([*map(str, words), "--training.steps", "2", "--out", str(recipe.parent / unset)])
            == 0
        )
