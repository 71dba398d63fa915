"""Fine-tuning with the Trainer of transformers and with a loop on accelerate."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
)

from hgrn.data.tokenizer import byte_tokenizer
from hgrn.models import HGRNConfig, HGRNForCausalLM
from tests.tolerances import assert_close
from tests.tools.conftest import CONFIG, SENTENCE

accelerate = pytest.importorskip(
    "accelerate", reason="accelerate is not installed (pip install -c constraints.txt '.[peft]')"
)

# Lines of 1 to 50 bytes, so that batches are padded and no two have equally many tokens to predict.
LINES = [SENTENCE[:length] for length in (1, 40, 3, 17, 5, 30, 9, 2, 26, 12, 4, 33, 7, 21, 40, 6)]


def trainer(
    model, out, *, per_step=4, at_once=4, steps=6, train_on=LINES, eval_on=(), **options
) -> Trainer:
    tokenizer = byte_tokenizer()
    arguments = dict(
        output_dir=str(out),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=per_step // at_once,
        max_steps=steps,
        learning_rate=3e-3,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        seed=5,
    )
    return Trainer(
        model=model,
        args=TrainingArguments(**arguments | options),
        train_dataset=[dict(tokenizer(line)) for line in train_on],
        eval_dataset=[dict(tokenizer(line)) for line in eval_on] or None,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def losses(trained: Trainer) -> list[float]:
    return [row["loss"] for row in trained.state.log_history if "loss" in row]


def test_the_loss_falls(untrained, tmp_path):
    done = trainer(untrained, tmp_path, steps=30)
    done.train()
    first, *_, last = losses(done)
    assert last < 0.7 * first


def accumulated(model, out, at_once) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and losses after steps of 4 lines, `at_once` of them together.

    The steps are in proportion to the gradients.
    """
    done = trainer(
        copy.deepcopy(model),
        out,
        at_once=at_once,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
    )
    done.train()
    return weights(done.model), torch.tensor(losses(done))


def test_accumulated_gradients_are_those_of_one_large_batch(untrained, tmp_path, monkeypatch):
    (whole, whole_losses), (parts, part_losses) = (
        accumulated(untrained, tmp_path, at_once) for at_once in (4, 1)
    )
    assert_close(parts, whole)
    assert_close(part_losses, whole_losses)
    # The mean of the means of lines of different lengths would be something else.
    monkeypatch.setattr(HGRNForCausalLM, "accepts_loss_kwargs", False)
    means, _ = accumulated(untrained, tmp_path, 1)
    assert (means - whole).abs().max() > 1e-3


def test_a_run_that_is_resumed_ends_like_one_that_was_not_stopped(tmp_path):
    model = HGRNForCausalLM(HGRNConfig(**CONFIG, dropout=0.2))  # random numbers count as well
    options = dict(save_strategy="steps", save_steps=5, steps=8, at_once=2)  # an epoch is 4 steps
    whole = trainer(model, tmp_path / "run", **options)
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-5"
    resumed = trainer(HGRNForCausalLM.from_pretrained(checkpoint), tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 8
    assert not torch.equal(
        weights(HGRNForCausalLM.from_pretrained(checkpoint)), weights(whole.model)
    )


def test_the_best_model_is_kept_and_training_stops_when_it_gets_no_better(untrained, tmp_path):
    options = dict(
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    done = trainer(
        untrained, tmp_path, steps=8, eval_on=LINES, metric_for_best_model="eval_loss", **options
    )
    done.add_callback(
        EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e9)
    )  # the second is no better
    done.train()
    evaluated = [row["eval_loss"] for row in done.state.log_history if "eval_loss" in row]
    assert done.state.global_step == len(evaluated) == 2
    best = HGRNForCausalLM.from_pretrained(done.state.best_model_checkpoint)
    assert torch.equal(weights(done.model), weights(best))
    batch = next(iter(done.get_eval_dataloader()))
    with torch.no_grad():
        assert_close(
            torch.tensor(done.evaluate(done.train_dataset[:8])["eval_loss"]),
            done.model(**batch).loss,
            torch.float32,
        )


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(return_seq_idx=True, return_position_ids=False),
        dict(return_flash_attn_kwargs=True),
    ],
)
def test_batches_without_padding_are_those_with_it(options, untrained, tmp_path):
    """The loss and the weights after steps on lines laid end to end, and padded."""

    def trained(collator) -> Trainer:
        done = trainer(copy.deepcopy(untrained), tmp_path, optim="sgd", learning_rate=0.1, steps=3)
        done.data_collator = collator or done.data_collator
        done.train()
        return done

    padded = trained(None)
    flat = trained(DataCollatorWithFlattening(**options))
    assert_close(torch.tensor(losses(flat)), torch.tensor(losses(padded)))
    assert_close(weights(flat.model), weights(padded.model))


def test_position_ids_of_a_packed_data_set_are_not_dropped(untrained, tmp_path):
    """Trainer drops the columns of a data set that `forward` does not name."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    ids = [[1, 2, 3, 4, 5, 6]]
    position_ids = [[0, 1, 2, 0, 1, 2]]
    done = trainer(untrained, tmp_path)
    labels = [
        [1, 2, 3, -100, 5, 6]
    ]  # or Trainer would count the first of the second document, which no position is scored on
    data = datasets.Dataset.from_dict(dict(input_ids=ids, labels=labels, position_ids=position_ids))
    done.data_collator = lambda rows: {
        name: torch.tensor([row[name] for row in rows]) for name in rows[0]
    }
    found = done.evaluate(data)["eval_loss"]
    parts = torch.tensor(ids).view(2, 3)
    assert_close(torch.tensor(found), untrained(parts, labels=parts).loss.detach(), torch.float32)


def test_label_smoothing_looks_at_the_next_token(untrained, tmp_path):
    smoothing = 0.1
    smooth = trainer(untrained, tmp_path, label_smoothing_factor=smoothing)
    batch = next(iter(smooth.get_train_dataloader()))
    found = smooth.compute_loss(untrained, dict(batch))
    logits = untrained(**batch).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    expected = nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, label_smoothing=smoothing
    )
    assert_close(found, expected)


def test_a_loop_on_accelerate_is_the_loop_itself(untrained, sentence, tmp_path):
    def loop(model, prepare, backward):
        loader = torch.utils.data.DataLoader(sentence.expand(6, -1), batch_size=2)
        model, optimizer, loader = prepare(
            model, torch.optim.AdamW(model.parameters(), lr=3e-3), loader
        )
        for _ in range(2):
            for ids in loader:
                backward(model(ids, labels=ids).loss)
                optimizer.step()
                optimizer.zero_grad()
        return model

    plain = loop(copy.deepcopy(untrained), lambda *things: things, torch.Tensor.backward)
    with_it = accelerate.Accelerator(cpu=True)
    model = loop(copy.deepcopy(untrained), with_it.prepare, with_it.backward)
    assert torch.equal(weights(model), weights(plain)) and not torch.equal(
        weights(plain), weights(untrained)
    )
    with_it.save_state(tmp_path)
    after = weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with_it.load_state(tmp_path)
    assert torch.equal(weights(model), after)
    unwrapped = with_it.unwrap_model(model)
    assert torch.equal(
        unwrapped.generate(sentence[:, :4], max_new_tokens=5),
        plain.generate(sentence[:, :4], max_new_tokens=5),
    )
