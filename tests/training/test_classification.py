"""Classifiers in training: loss, evaluation, resume, and image files as a checkpoint sees them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hgrn.cli import inference
from hgrn.data.images.augment import EvaluationTransform, Normalisation
from hgrn.data.images.loading import ImageBatch
from hgrn.errors import UserError
from hgrn.training.distributed import Ranks
from hgrn.training.loop import train
from hgrn.training.manifests import find_checkpoint
from hgrn.training.runlog import Console, read_rows
from hgrn.training.tasks import build_task, open_examples
from hgrn.training.tasks.classification import Classification, evaluate
from tests.tolerances import assert_close
from tests.training.tiny_runs import tiny_image_recipe

ALONE = Ranks(0, 1, torch.device("cpu"))
PLAIN = dict(
    model__dropout=0,
    mixing__probability=0,
    mixing__smoothing=0,
    augmentation__flip=0,
    augmentation__erasing=0,
    augmentation__crop="centre",
)


def nats_of(logits, targets):
    """Cross-entropy of shares `[B, K]`, summed, in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    return -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum()


@pytest.mark.parametrize(
    "mixing", [{}, {"mixing__smoothing": 0.2}, {"mixing__mixup": 0.8, "mixing__probability": 1.0}]
)
def test_the_loss_is_the_cross_entropy_with_the_targets(tmp_path, mixing):
    task = build_task(
        tiny_image_recipe(tmp_path, **PLAIN | {"mixing__mixup": 0, "mixing__cutmix": 0} | mixing),
        ALONE,
    )
    (first, second), counted = task.next_batches()
    assert counted == 8 and len(first) == len(second) == 4
    loss = task.loss(task.model, 0, first, counted)
    targets = np.eye(4)[first.labels] if first.mixed is None else first.mixed.numpy()
    assert (first.mixed is None) == (not mixing)
    with torch.no_grad():
        expected = nats_of(task.model(pixel_values=first.images).logits, targets) / counted
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(tmp_path):
    rows = {}
    for parts in (1, 2, 4):
        recipe = tiny_image_recipe(
            tmp_path,
            model__dropout=0,
            batch__accumulation=parts,
            training__steps=1,
            training__eval_every=None,
            schedule__warmup_steps=0,
            training__log_every=1,
        )
        train(recipe, tmp_path / str(parts))
        (rows[parts],) = read_rows(tmp_path / str(parts) / "log.jsonl")
    for parts in (2, 4):
        assert rows[parts]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-6)
        assert rows[parts]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-5)


class Says(torch.nn.Module):
    """A model whose logits are the first values of its images."""

    def __init__(self, classes):
        super().__init__()
        self.config = type("Config", (), {"num_labels": classes})
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        return type("Output", (), {"logits": pixel_values.flatten(1)[:, : self.config.num_labels]})


def test_every_answer_is_counted():
    logits = torch.tensor(
        [
            [9.0, 5, 4, 3, 2, 1, 0],
            [1, 9, 2, 3, 4, 5, 6],
            [9, 6, 5, 4, 3, 2, 1],
            [0, 1, 2, 3, 4, 5, 9],
        ]
    )
    labels = torch.tensor([0, 0, 4, 6])
    batches = [
        ImageBatch(logits[:3, None, None], labels[:3]),
        ImageBatch(logits[3:, None, None], labels[3:]),
    ]
    seen = []
    model = Says(7).train()
    result = evaluate(model, batches, seen.append)
    assert (
        result.confusion.nonzero().tolist() == [[0, 0], [0, 1], [4, 0], [6, 6]]
        and result.confusion.sum() == 4
    )
    assert (result.examples, result.accuracy, result.in_top, result.top_accuracy) == (
        4,
        0.5,
        3,
        0.75,
    )  # the second is its last
    assert result.class_accuracies == [0.5, None, None, None, 0.0, None, 1.0]
    assert result.loss == pytest.approx(nats_of(logits, np.eye(7)[labels]) / 4, rel=1e-6)
    assert seen == [3, 4] and model.training
    with torch.no_grad():
        logits[0, 0] = float("nan")
    with pytest.raises(
        UserError, match="the model's output on this data is not finite: its weights are finite"
    ):
        evaluate(model, batches)


@pytest.mark.parametrize("right, total", [(915, 1000), (0, 10), (10, 10), (1, 3)])
def test_the_interval_is_wilsons(right, total):
    from scipy.stats import binomtest

    confusion = torch.tensor([[right, total - right], [0, 0]])
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert Classification(confusion, right, 0.0).interval == pytest.approx(
        (expected.low, expected.high), abs=1e-6
    )


def test_the_best_validation_is_the_most_accurate(tmp_path):
    outcome = train(tiny_image_recipe(tmp_path, training__eval_every=2), tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run" / "log.jsonl") if row["kind"] == "validation"]
    assert len(rows) == 6 and outcome.best["accuracy"] == max(row["accuracy"] for row in rows)
    assert outcome.best["step"] == next(
        row["step"] for row in rows if row["accuracy"] == outcome.best["accuracy"]
    )


def test_a_resumed_run_ends_like_one_that_was_not_stopped(tmp_path):
    """With dropout, augmentation and mixing, an epoch and more later."""
    recipe = tiny_image_recipe(tmp_path, training__steps=12)
    whole = train(recipe, tmp_path / "whole")

    def stop(event):
        if event["kind"] == "train" and event["step"] == 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(recipe, tmp_path / "cut", on_event=stop)
    resumed = train(recipe, tmp_path / "cut", resume=True)
    one, two = (load_file(outcome.checkpoint / "model.safetensors") for outcome in (whole, resumed))
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())


def test_a_checkpoint_sees_a_file_as_the_evaluation_of_training_does(tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    outcome = train(
        tiny_image_recipe(tmp_path, training__steps=2, images__resize=11), tmp_path / "run"
    )
    file = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 28), dtype=np.uint8)).save(
        file
    )
    model = AutoModelForImageClassification.from_pretrained(outcome.checkpoint)
    processor = AutoImageProcessor.from_pretrained(outcome.checkpoint)
    with Image.open(file) as image:
        pixels = processor(image, return_tensors="pt").pixel_values
    transform = EvaluationTransform(8, Normalisation((0.3,), (0.4,)), 11)
    own = transform(transform.fit(inference.read_image(file, 1))[None])
    assert pixels.shape == own.shape == (1, 1, 8, 8)
    assert (
        (pixels - own).abs().max() <= 1.01 / 255 / 0.4
    )  # resized, both round to whole numbers, not always to the same
    trained, _ = inference.load_classifier(find_checkpoint(tmp_path / "run"))
    with torch.no_grad():
        assert_close(model.eval()(pixel_values=own).logits, trained(pixel_values=own).logits)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}


def test_weights_that_are_not_finite_are_named(tmp_path):
    recipe = tiny_image_recipe(tmp_path)
    model = build_task(recipe, ALONE).model
    with torch.no_grad():
        model.score.bias[0] = float("inf")
    with pytest.raises(UserError, match=r"is not finite: score.bias hold NaN or infinity"):
        evaluate(model, open_examples(recipe, "test").batches)


def test_examples_of_a_split_are_read_once_in_order(tmp_path):
    recipe = tiny_image_recipe(tmp_path)
    examples = open_examples(recipe, "test")
    batches = list(examples.batches)
    assert examples.size == sum(map(len, batches)) == 17 and examples.classes == [
        "a",
        "b",
        "c",
        "d",
    ]


def test_the_console_and_the_card_tell_of_images(tmp_path):
    stream = io.StringIO()
    with Console(stream=stream) as console:
        outcome = train(tiny_image_recipe(tmp_path), tmp_path / "run", on_event=console)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("training tiny images on cpu: ") and lines[0].endswith(
        "12 steps, 48 images to learn from"
    )
    assert "images/s" in lines[1] and "validation accuracy" in lines[-1] and lines[-1].endswith("%")
    card = (outcome.checkpoint / "README.md").read_text()
    assert (
        "- images trained on: 96\n" in card
        and f"- data: idx {tmp_path / 'images'}, fingerprint" in card
    )
    assert f"- accuracy: {outcome.best['accuracy']:.4f} on the validation split" in card


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model__patch_size": 3},
            "model.patch_size = 3: must be given and divide images.size = 8",
        ),
        ({"model__num_labels": 7}, "model: "),
    ],
)
def test_models_that_do_not_fit_the_data(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        build_task(tiny_image_recipe(tmp_path, **changes), ALONE)
