"""Classifiers of the Long Range Arena, trained on small files of each kind."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from hgrn import models
from hgrn.cli.inference import load_classifier
from hgrn.data.lra.load import prepare
from hgrn.errors import UserError
from hgrn.training.distributed import Ranks
from hgrn.training.loop import train
from hgrn.training.manifests import find_checkpoint
from hgrn.training.recipe import load_recipe
from hgrn.training.runlog import read_rows
from hgrn.training.tasks import build_task, open_examples
from hgrn.training.tasks.classification import evaluate
from tests.training.test_loop import assert_same_weights
from tests.training.tiny_arena import KINDS, tiny_arena_recipe

ALONE = Ranks(0, 1, torch.device("cpu"))
CLASSES = {
    "listops": models.HGRNForSequenceClassification,
    "text": models.HGRNForSequenceClassification,
    "retrieval": models.HGRNForSequencePairClassification,
    "image": models.HGRNForImageClassification,
    "pathfinder": models.HGRNForImageClassification,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains_evaluates_and_resumes_exactly(kind, tmp_path):
    recipe = tiny_arena_recipe(kind, tmp_path, model__dropout=0.1, training__steps=4)
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(recipe, tmp_path / "stopped", on_event=fails_after(2))
    resumed = train(recipe, tmp_path / "stopped", resume=True)
    assert whole.step == resumed.step == 4 and whole.best == resumed.best
    assert_same_weights(whole, resumed)
    rows = [
        row for row in read_rows(tmp_path / "whole" / "log.jsonl") if row["kind"] == "validation"
    ]
    assert len(rows) == 4

    model, _ = load_classifier(find_checkpoint(tmp_path / "whole"))
    data = prepare(recipe.data)
    assert type(model) is CLASSES[kind]
    assert (
        model.config.num_labels == data.num_classes
        and tuple(model.config.id2label.values()) == data.classes
    )
    examples = open_examples(recipe, "validation")
    result = evaluate(model, examples.batches)
    assert result.examples == examples.size == len(data.splits["validation"])
    assert (result.accuracy, result.loss) == (
        rows[-1]["accuracy"],
        pytest.approx(rows[-1]["loss"], rel=1e-6),
    )


def fails_after(step):
    """A listener that fails when a checkpoint is saved."""

    def listener(event):
        if event["kind"] == "saved" and event["step"] == step:
            raise InterruptedError

    return listener


@pytest.mark.parametrize("kind", ["text", "retrieval"])
def test_grouping_by_length_trains_and_resumes_exactly(kind, tmp_path):
    recipe = tiny_arena_recipe(kind, tmp_path, batch__group_by_length=True, training__steps=4)
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(recipe, tmp_path / "stopped", on_event=fails_after(2))
    assert_same_weights(whole, train(recipe, tmp_path / "stopped", resume=True))
    plain = train(tiny_arena_recipe(kind, tmp_path, training__steps=4), tmp_path / "plain")
    weights, others = (
        load_file(outcome.checkpoint / "model.safetensors") for outcome in (whole, plain)
    )
    assert any(not torch.equal(weight, others[name]) for name, weight in weights.items())


def test_vocabulary_and_labels_come_from_the_data(tmp_path):
    recipe = tiny_arena_recipe("text", tmp_path, model__preset=None)
    data = prepare(recipe.data)
    model = build_task(recipe, ALONE).model
    assert model.config.vocab_size == len(data.vocabulary) != 259
    assert model.config.label2id == {"neg": 0, "pos": 1}
    assert model.get_input_embeddings().num_embeddings == len(data.vocabulary)
    assert (
        build_task(tiny_arena_recipe("text", tmp_path), ALONE).model.config.vocab_size == 135
    )  # the preset's own


def test_images_are_augmented_in_training_only(tmp_path):
    batches = {}
    for augment in (True, False):
        task = build_task(tiny_arena_recipe("image", tmp_path, data__augment=augment), ALONE)
        batches[augment] = [task.next_batch(), *task.examples().batches]
    plain = batches[False]
    changed = batches[True]
    assert torch.equal(plain[0].labels, changed[0].labels) and not torch.equal(
        plain[0].pixel_values, changed[0].pixel_values
    )
    assert all(
        torch.equal(one.pixel_values, other.pixel_values)
        for one, other in zip(plain[1:], changed[1:], strict=True)
    )


@pytest.mark.parametrize(
    "kind, overrides, message",
    [
        (
            "text",
            {"model__vocab_size": 5},
            r"model.vocab_size = 5, but the data has \d+ tokens: raise it or leave it out",
        ),
        ("retrieval", {"model__vocab_size": 4}, "model.vocab_size = 4, but the data has"),
        (
            "text",
            {"model__preset": "lra-image"},
            "model: HGRNForSequenceClassification reads tokens, so patch_size .* must be None",
        ),
        (
            "retrieval",
            {"model__preset": "lra-pathfinder"},
            "model: HGRNForSequencePairClassification reads tokens",
        ),
        (
            "image",
            {"model__preset": "lra-listops"},
            "model: HGRNForImageClassification reads images, so patch_size .* must be",
        ),
        (
            "listops",
            {"model__num_labels": 3},
            "model: num_labels must be 10, the number of classes in the data, got 3; leave it out",
        ),
        (
            "text",
            {"batch__batch_size": 64},
            "split train has 20 examples, fewer than a batch of 64",
        ),
        ("text", {"batch__pad_to": 9}, "pad_to 9 is less than the longest sequence of split train"),
    ],
)
def test_models_and_batches_that_do_not_fit_the_data(kind, overrides, message, tmp_path):
    recipe = tiny_arena_recipe(kind, tmp_path, **overrides)
    with pytest.raises(UserError, match=message):
        build_task(recipe, ALONE)


def test_what_only_some_tasks_have(tmp_path):
    tiny_arena_recipe("image", tmp_path)
    wrong = {"batch.pad_to": 2000, "batch.group_by_length": True}
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "image.yaml", wrong)
    for key in wrong:
        assert f"{key}" in str(
            error.value
        ) and "is for sequences, and data.task = image has images" in str(error.value)
    tiny_arena_recipe("text", tmp_path)
    with pytest.raises(UserError, match="data.augment"):
        load_recipe(tmp_path / "text.yaml", {"data.augment": True})
    with pytest.raises(
        UserError, match="data.task .*must be one of listops, text, retrieval, image, pathfinder"
    ):
        load_recipe(tmp_path / "text.yaml", {"data.task": "pathx"})


@pytest.mark.parametrize("kind", ["listops", "text"])
def test_a_pipeline_classifies_raw_text(kind, tmp_path):
    """With the answers of the encoded data.

    tests/models/test_pipelines.py has programs that do not import hgrn.
    """
    recipe = tiny_arena_recipe(kind, tmp_path)
    outcome = train(recipe, tmp_path / "run")
    if kind == "listops":
        lines = (tmp_path / "listops" / "basic_test.tsv").read_text().splitlines()[1:]
        texts = [line.partition("\t")[0] for line in lines]
    else:
        texts = [
            path.read_text()
            for name in ("neg", "pos")
            for path in sorted((tmp_path / "text/test" / name).glob("*.txt"))
        ]
    found = pipeline("text-classification", str(outcome.checkpoint))(
        texts, top_k=None, truncation=True
    )
    model, _ = load_classifier(outcome.checkpoint)
    data = prepare(recipe.data)
    for number, answers in enumerate(found):
        ids = torch.from_numpy(data.splits["test"].sequence(number).astype("int64"))[None]
        with torch.no_grad():
            shares = model(ids).logits.softmax(-1)[0]
        expected = {
            name: pytest.approx(share, abs=1e-5)
            for name, share in zip(data.classes, shares.tolist())
        }
        assert {answer["label"]: answer["score"] for answer in answers} == expected
    assert len({json.dumps(answers) for answers in found}) > 1
