"""Whole tiny runs: what is divided by what, when a run stops, and that it goes on as if it had not."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from hgrn.data.sampling import IGNORED
from hgrn.errors import UserError
from hgrn.training.distributed import Ranks
from hgrn.training.loop import train
from hgrn.training.manifests import steps_saved
from hgrn.training.runlog import read_rows
from hgrn.training.tasks.language import LanguageModelTask
from tests.training.tiny_runs import tiny_recipe


def weights(outcome):
    return load_file(outcome.checkpoint / "model.safetensors")


def assert_same_weights(one, other):
    assert weights(one).keys() == weights(other).keys()
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


def stop_at(step, number=signal.SIGINT):
    """A listener that sends the signal when the row of `step` is logged."""

    def listener(event):
        if event["kind"] == "train" and event["step"] == step:
            os.kill(os.getpid(), number)

    return listener


@pytest.mark.parametrize("state", ["reset", "carry", "documents"])
def test_two_runs_are_equal_and_learn(tmp_path, state):
    recipe = tiny_recipe(tmp_path, batch__state=state)
    one = train(recipe, tmp_path / "one")
    assert_same_weights(one, train(recipe, tmp_path / "two"))
    rows = [row for row in read_rows(tmp_path / "one" / "log.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert rows[-1]["epoch"] > 2  # the run has crossed borders of epochs


def test_the_seed_matters(tmp_path):
    one = train(tiny_recipe(tmp_path, training__steps=2), tmp_path / "one")
    two = train(tiny_recipe(tmp_path, training__steps=2, training__seed=2), tmp_path / "two")
    assert not torch.equal(
        weights(one)["model.embed_tokens.weight"], weights(two)["model.embed_tokens.weight"]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["reset", "carry", "documents"])
def test_a_signal_saves_and_the_resumed_run_ends_with_the_same_weights(tmp_path, state, number):
    recipe = tiny_recipe(tmp_path, batch__state=state, batch__accumulation=2)
    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
    whole = train(recipe, tmp_path / "whole")
    stopped = train(recipe, tmp_path / "stopped", on_event=stop_at(6, number))
    assert stopped.interrupted and stopped.step == 7 and stopped.checkpoint.name == "step-000007"
    assert signal.getsignal(signal.SIGINT) is before
    resumed = train(recipe, tmp_path / "stopped", resume=True)
    assert not resumed.interrupted and resumed.best == whole.best
    assert_same_weights(whole, resumed)
    times = ("tokens_per_s", "elapsed", "time_left")
    rows = [
        [
            {key: value for key, value in row.items() if key not in times}
            for row in read_rows(tmp_path / run / "log.jsonl")
        ]
        for run in ("whole", "stopped")
    ]
    assert rows[0] == rows[1]


def test_a_second_interrupt_does_not_wait(tmp_path):
    def twice(event):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(tmp_path), tmp_path / "run", on_event=twice)
    assert not (tmp_path / "run" / "run.lock").exists()


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    recipe = tiny_recipe(tmp_path)
    done = train(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "log.jsonl").read_text()
    assert train(recipe, tmp_path / "run", resume=True) == done
    assert (tmp_path / "run" / "log.jsonl").read_text() == before


def test_a_run_can_be_prolonged_if_its_rate_does_not_depend_on_its_length(tmp_path):
    short = tiny_recipe(tmp_path, schedule__name="constant", training__steps=4)
    long = tiny_recipe(tmp_path, schedule__name="constant")
    train(short, tmp_path / "run")
    assert_same_weights(train(long, tmp_path / "run", resume=True), train(long, tmp_path / "whole"))
    cosine = tiny_recipe(tmp_path, training__steps=4)
    train(cosine, tmp_path / "cosine")
    with pytest.raises(UserError, match="training.steps: 4 in the checkpoint, 12 now"):
        train(tiny_recipe(tmp_path), tmp_path / "cosine", resume=True)


def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(tmp_path):
    """Documents of very different lengths: the micro-batches count unequally many tokens."""
    (tmp_path / "tiny.txt").write_text("ab\n" * 40 + "a long line without any border in it " * 12)
    runs = {}
    for accumulation in (1, 2, 4):
        recipe = tiny_recipe(
            tmp_path,
            batch__state="documents",
            batch__accumulation=accumulation,
            data__documents="line",
            data__splits__train__span=[0, 1],
            model__dropout=0,
            schedule__warmup_steps=0,
            training__steps=1,
            training__eval_every=None,
        )
        task = LanguageModelTask(recipe, Ranks(0, 1, torch.device("cpu")))
        batches, counted = task.next_batches()
        counts = [int((batch.labels != IGNORED).sum()) for batch in batches]
        assert sum(counts) == counted and (accumulation == 1 or len(set(counts)) > 1)
        run = tmp_path / str(accumulation)
        train(recipe, run)
        runs[accumulation] = next(row for row in read_rows(run / "log.jsonl"))
    for accumulation in (2, 4):
        assert runs[accumulation]["loss"] == pytest.approx(runs[1]["loss"], rel=1e-6)
        assert runs[accumulation]["grad_norm"] == pytest.approx(runs[1]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_before_the_step(tmp_path, spoiled):
    class Spoiled(LanguageModelTask):
        steps = 0

        def loss(self, model, index, batch, counted):
            loss = super().loss(model, index, batch, counted)
            self.steps += 1
            if self.steps < 6:
                return loss
            if spoiled == "loss":
                return loss * float("nan")
            return loss + (0 * next(model.parameters())).sqrt().sum()  # 0, with an infinite slope

    recipe = tiny_recipe(tmp_path)
    with pytest.raises(UserError, match=r"step 6: loss .*step-000004 with --resume.*optimizer\.lr"):
        train(recipe, tmp_path / "run", make_task=Spoiled)
    assert [step for step, _ in steps_saved(tmp_path / "run")] == [4]
    assert_same_weights(
        train(recipe, tmp_path / "run", resume=True), train(recipe, tmp_path / "whole")
    )


def test_clipping_bounds_the_step(tmp_path):
    """With a huge eps AdamW is gradient descent: the first step's length is the norm that it was given."""
    moved = {}
    for clip_norm in (None, 0.25):
        recipe = tiny_recipe(
            tmp_path,
            optimizer__clip_norm=clip_norm,
            optimizer__eps=1e6,
            optimizer__lr=1e6,
            optimizer__weight_decay=0,
            schedule__name="constant",
            schedule__warmup_steps=0,
            training__steps=1,
        )
        before = LanguageModelTask(recipe, Ranks(0, 1, torch.device("cpu"))).model.state_dict()
        after = weights(train(recipe, tmp_path / str(clip_norm)))
        moved[clip_norm] = (
            sum((after[name] - before[name]).square().sum() for name in after).sqrt().item()
        )
    (row,) = [row for row in read_rows(tmp_path / "None" / "log.jsonl") if row["kind"] == "train"]
    assert moved[None] == pytest.approx(row["grad_norm"], rel=1e-3) and row["grad_norm"] > 0.5
    assert moved[0.25] == pytest.approx(0.25, rel=1e-3)


def test_bf16_trains_fp32_weights(tmp_path):
    outcome = train(
        tiny_recipe(tmp_path, training__precision="bf16", training__steps=3), tmp_path / "run"
    )
    assert {tensor.dtype for tensor in weights(outcome).values()} == {torch.float32}
    train(tiny_recipe(tmp_path, training__steps=3), tmp_path / "exact")
    losses = [
        read_rows(run / "log.jsonl")[0]["loss"] for run in (tmp_path / "run", tmp_path / "exact")
    ]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method:DeprecationWarning"
)  # torch's own, as it compiles
def test_a_compiled_model_takes_the_same_steps(tmp_path):
    losses = {}
    for compiled in (False, True):
        recipe = tiny_recipe(
            tmp_path,
            training__compile=compiled,
            training__steps=3,
            training__log_every=1,
            model__dropout=0,
            model__num_hidden_layers=1,
        )
        outcome = train(recipe, tmp_path / str(compiled))
        rows = read_rows(tmp_path / str(compiled) / "log.jsonl")
        losses[compiled] = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses[True]) == 3 and losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert "model.embed_tokens.weight" in weights(outcome)


def test_a_batch_that_does_not_split_over_the_processes(tmp_path):
    recipe = tiny_recipe(tmp_path, batch__accumulation=2)
    with pytest.raises(UserError, match="batch_size = 4 must be a multiple of 6: 3 processes"):
        Ranks(0, 3, torch.device("cpu")).check_division(recipe.batch)
    shared = tiny_recipe(tmp_path, batch__accumulation=2, parallel__context=2)
    with pytest.raises(
        UserError, match="a multiple of 6: 6 processes over parallel.context = 2 times"
    ):
        Ranks(0, 6, torch.device("cpu"), shared.parallel).check_division(shared.batch)


def test_sequences_cannot_be_shared_by_one_process(tmp_path):
    with pytest.raises(
        UserError,
        match="parallel.context = 2 needs a multiple of as many processes, and there is 1: start",
    ):
        train(tiny_recipe(tmp_path, parallel__context=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_checkpoint_loads_with_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    outcome = train(tiny_recipe(tmp_path), tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(outcome.checkpoint)
    ids = AutoTokenizer.from_pretrained(outcome.checkpoint)("gate", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, 4, 259)
    assert json.loads((outcome.checkpoint / "manifest.json").read_text())["step"] == 12
