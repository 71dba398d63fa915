"""Bits per byte, against its definition computed another way."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hgrn.data.tokens import prepare
from hgrn.errors import UserError
from hgrn.training.distributed import Ranks
from hgrn.training.loop import train
from hgrn.training.tasks.language import LanguageModelTask, evaluate
from tests.training.tiny_runs import tiny_recipe

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def task(tmp_path):
    return LanguageModelTask(tiny_recipe(tmp_path), ALONE)


def nats_at_once(model, tokens, length):
    """The same cost from one call without any cache."""
    ids = torch.from_numpy(tokens.read(0, length))
    with torch.no_grad():
        logits = model.eval()(input_ids=ids[None], use_cache=False).logits[0]
    return F.cross_entropy(logits[:-1].double(), ids[1:], reduction="sum").item()


@pytest.mark.parametrize("chunk", [None, 1000, 7, 1])
def test_the_whole_split_once_in_order_with_the_state_carried(task, chunk):
    tokens = task.validation
    result = evaluate(task.model, tokens, chunk=chunk)
    nats = nats_at_once(task.model, tokens, len(tokens))
    assert result.nats == pytest.approx(nats, rel=1e-6)
    assert result.tokens == result.bytes == len(tokens) - 1
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / (len(tokens) - 1), rel=1e-6)


def test_a_lost_state_would_show(task, monkeypatch):
    whole = evaluate(task.model, task.validation, chunk=7).nats
    forward = task.model.forward
    monkeypatch.setattr(
        task.model,
        "forward",
        lambda past_key_values, **arguments: forward(past_key_values=None, **arguments),
    )
    assert evaluate(task.model, task.validation, chunk=7).nats != pytest.approx(whole, rel=1e-4)


def test_a_limit_reads_the_first_tokens_only(task):
    result = evaluate(task.model, task.validation, limit_tokens=20)
    assert result.nats == pytest.approx(nats_at_once(task.model, task.validation, 20), rel=1e-6)
    assert result.tokens == 19 and result.bits_per_byte == pytest.approx(
        result.nats / math.log(2) / 19
    )


def test_bytes_are_counted_whatever_the_tokens_are(tmp_path):
    """A tokenizer of words: fewer tokens than bytes, and the first token's bytes do not count."""
    from hgrn.data.tokenizer import train_tokenizer

    train_tokenizer(["gate forget carry state bound layer time\n"] * 50, 300, tmp_path / "words")
    task = LanguageModelTask(
        tiny_recipe(tmp_path, data__tokenizer=str(tmp_path / "words"), batch__block_size=8), ALONE
    )
    tokens = task.validation
    result = evaluate(task.model, tokens)
    text = (tmp_path / "tiny.txt").read_bytes()
    whole = text[int(0.8 * len(text)) :]
    first = task.processor.decode([int(tokens.read(0, 1)[0])])
    assert result.tokens < result.bytes == len(whole) - len(first.encode())
    assert result.bits_per_byte == pytest.approx(result.nats / math.log(2) / result.bytes)


def test_evaluation_ignores_dropout_and_leaves_the_mode_and_the_random_state(task):
    task.model.train()
    state = torch.get_rng_state()
    assert evaluate(task.model, task.validation) == evaluate(task.model, task.validation)
    assert task.model.training and torch.equal(state, torch.get_rng_state())


def test_a_run_may_start_from_the_weights_of_another(tmp_path):
    done = train(tiny_recipe(tmp_path, training__steps=2), tmp_path / "run")
    task = LanguageModelTask(
        tiny_recipe(tmp_path, model__weights=str(tmp_path / "run"), training__seed=7), ALONE
    )
    saved = load_file(done.checkpoint / "model.safetensors")
    assert saved and all(
        torch.equal(task.model.state_dict()[name], weight) for name, weight in saved.items()
    )
    with pytest.raises(
        UserError,
        match="(?s)model.safetensors cannot be loaded into the model of this recipe:"
        ".*size mismatch",
    ):
        LanguageModelTask(
            tiny_recipe(tmp_path, model__weights=str(tmp_path / "run"), model__hidden_size=16),
            ALONE,
        )
    with pytest.raises(UserError, match="no checkpoint folder nowhere"):
        LanguageModelTask(tiny_recipe(tmp_path, model__weights="nowhere"), ALONE)


def test_progress_ends_with_everything(task):
    seen = []
    evaluate(
        task.model,
        task.validation,
        chunk=10,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    length = len(task.validation)
    assert seen[0] == (11, length) and seen[-1] == (length, length)


def test_nan_in_the_weights_is_named(task):
    with torch.no_grad():
        task.model.model.stack.blocks[0].glu.get_parameter(
            next(name for name, _ in task.model.model.stack.blocks[0].glu.named_parameters())
        ).fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite: .*blocks\.0\.glu.* hold NaN"):
        evaluate(task.model, task.validation)


def test_a_text_with_more_tokens_than_the_model(task, tmp_path):
    from hgrn.data.tokenizer import train_tokenizer

    train_tokenizer(["gate forget carry state bound layer time\n"] * 50, 270, tmp_path / "words")
    recipe = tiny_recipe(tmp_path, data__tokenizer=str(tmp_path / "words"), batch__block_size=8)
    tokens = prepare(recipe.data, "train")
    with pytest.raises(
        UserError, match=f"vocabulary of {tokens.vocab_size} tokens and the model one of 259"
    ):
        evaluate(task.model, tokens)
    small = tiny_recipe(
        tmp_path,
        data__tokenizer=str(tmp_path / "words"),
        batch__block_size=8,
        model__vocab_size=259,
    )
    with pytest.raises(UserError, match="model.vocab_size = 259, but tokenizer .* has"):
        LanguageModelTask(small, ALONE)


def test_the_carried_state_ends_with_the_epoch(tmp_path):
    task = LanguageModelTask(tiny_recipe(tmp_path, batch__state="carry"), ALONE)
    carried = []
    for _ in range(2 * task.sampler.steps_per_epoch):
        (batch,), counted = task.next_batches()
        carried.append(task.carried[0] is not None)
        task.loss(task.model, 0, batch, counted)
        assert not any(part.requires_grad for layer in task.carried[0].state for part in layer)
    assert carried == 2 * [False, *[True] * (task.sampler.steps_per_epoch - 1)]


def test_the_model_gets_the_special_tokens_of_the_tokenizer(task):
    config = task.model.config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        259,
        256,
        257,
        258,
    )


def test_a_preset_keeps_its_vocabulary_and_takes_the_special_tokens_of_the_tokenizer():
    from hgrn.training.recipe.fields import ModelSpec

    config = ModelSpec(preset="wikitext103").config(
        vocab_size=50257, bos_token_id=7, eos_token_id=8, pad_token_id=None
    )
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        50264,
        7,
        8,
        None,
    )
    config = ModelSpec(preset="wikitext103", vocab_size=60000).config(vocab_size=50257)
    assert config.vocab_size == 60000
