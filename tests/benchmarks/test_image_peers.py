"""The models beside our image classifiers: as large as ours, and trained by our loop."""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.trained.image_peers import CNNTask, LSTMTask, ViTTask
from benchmarks.trained.runs import RUNS
from hgrn.training.checkpointing import load_weights
from hgrn.training.distributed import Ranks
from hgrn.training.loop import train
from hgrn.training.recipe import load_recipe
from hgrn.training.tasks import build_task
from tests.training.tiny_runs import write_tiny_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """28 x 28 as Fashion-MNIST, though few; enough that 5,000 are held out."""
    folder = tmp_path_factory.mktemp("images")
    write_tiny_images(folder, train=5130, test=20, size=28)
    return {"data.path": str(folder), "training.threads": 1}


def recipe_of(run, images):
    return load_recipe(run.recipe, images | run.changes | {"training.precision": "fp32"})


@pytest.mark.parametrize(
    "run", [run for run in RUNS if run.make_task is not build_task], ids=lambda run: run.name
)
def test_peers_are_as_large_as_ours(run, images):
    ranks = Ranks(0, 1, torch.device("cpu"))
    sizes = [
        sum(p.numel() for p in make(recipe_of(run, images), ranks).model.parameters())
        for make in (build_task, run.make_task)
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


@pytest.mark.parametrize("make_task", [ViTTask, CNNTask, LSTMTask])
def test_peers_train_and_are_saved(make_task, images, tmp_path):
    (run,) = [run for run in RUNS if run.make_task is make_task]
    short = {
        "training.steps": 2,
        "training.eval_every": None,
        "training.save_every": 2,
        "schedule.warmup_steps": 1,
        "batch.batch_size": 4,
    }
    changes = (
        images | run.changes | short | {"training.precision": "fp32", "training.average": None}
    )
    before = {}

    def make(*arguments):
        task = make_task(*arguments)
        before.update({name: value.clone() for name, value in task.model.state_dict().items()})
        return task

    outcome = train(load_recipe(run.recipe, changes), tmp_path / "run", make_task=make)
    after = load_file(outcome.checkpoint / "model.safetensors")
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(moved) > 0.8 * len(after) and all(value.isfinite().all() for value in after.values())
    load_weights(
        make(load_recipe(run.recipe, changes), Ranks(0, 1, torch.device("cpu"))).model,
        outcome.checkpoint,
    )
