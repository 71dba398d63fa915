"""Runs whose weights or sequences are shared by several processes, against runs of one process.

processes.py makes them.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from hgrn.training import checkpointing, manifests
from hgrn.training.optimizer import build_optimizer
from hgrn.training.recipe import recipe_from_yaml
from hgrn.training.runlog import read_rows
from tests.tolerances import assert_close
from tests.training.test_processes import results_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares") / "runs"
    results_of("shares", folder)
    return folder


def assert_same_course(runs, name, other, rel=1e-5):
    one, two = (read_rows(runs / run / "log.jsonl") for run in (name, other))
    assert [(row["kind"], row["step"]) for row in one] == [
        (row["kind"], row["step"]) for row in two
    ]
    for row, same in zip(one, two, strict=True):
        for key in row.keys() & {"loss", "grad_norm", "bits_per_byte", "tokens"}:
            assert same[key] == pytest.approx(row[key], rel=rel), (row["step"], key)


def saved(runs, name, step):
    """Weights and optimizer state of a checkpoint, read by one process."""
    from hgrn import models

    folder = runs / name / "checkpoints" / f"step-{step:06d}"
    assert manifests.damage(folder) is None
    (kind,) = models.HGRNConfig.from_pretrained(folder).architectures
    model = getattr(models, kind).from_pretrained(folder)
    exported = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = build_optimizer(model, recipe_from_yaml(folder / "recipe.yaml").optimizer)
    state = checkpointing.load_state(folder, 0)["optimizer"]
    checkpointing.load_model_and_optimizer(folder, model, optimizer, state)
    for key, value in model.named_parameters():
        assert torch.equal(value, exported[key]), (
            key
        )  # shards and the exported file are the same weights
    moments = {
        f"{key}.{moment}": optimizer.state[value][moment]
        for key, value in model.named_parameters()
        for moment in optimizer.state[value]
    }
    return exported | moments


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert_close(other[key], value, name=key)


@pytest.mark.parametrize(
    "name", ["ddp 2", "fsdp 4", "fsdp 4 to 2", "fsdp 2 to 1", "one to 4", "ddp 2 to fsdp 4"]
)
def test_thirty_steps_take_the_course_of_one_process(runs, name):
    """The last four were saved at step 15 and resumed by other ranks, or with other shares."""
    assert len(read_rows(runs / name / "log.jsonl")) == 30
    assert_same_course(runs, "one", name)
    assert_same_state(saved(runs, "one", 30), saved(runs, name, 30))


def test_what_is_sharded_is_what_one_process_has(runs):
    one = saved(runs, "one", 15)
    four = saved(runs, "fsdp 4", 15)
    assert any(key.endswith("exp_avg_sq") for key in one)
    assert_same_state(one, four)


def test_a_sharded_checkpoint_holds_a_part_from_every_rank_and_nothing_pickled(runs):
    folder = runs / "fsdp 4" / "checkpoints" / "step-000015"
    shards = sorted((folder / "sharded").iterdir())
    assert len(shards) == 4 and {file.suffix for file in shards} == {".safetensors"}
    parts = [
        load_file(file)["optimizer.model.embed_tokens.weight.exp_avg"].shape for file in shards
    ]
    assert [rows for rows, _ in parts] == [65, 65, 65, 64]  # of 259
    assert "optimizer" not in checkpointing.load_state(folder, 1)


def test_every_parameter_is_cut_into_equal_stretches(runs):
    rows = [json.loads((runs / f"shapes {rank}.json").read_text()) for rank in range(4)]
    for name, (_, whole, *_) in rows[0].items():
        local = [of_rank[name][2] for of_rank in rows]
        each = -(-whole[0] // 4)
        assert [shape[0] for shape in local] == [
            max(0, min(each, whole[0] - rank * each)) for rank in range(4)
        ], name
        assert all(of_rank[name][0] for of_rank in rows) and all(
            shape[1:] == whole[1:] for shape in local
        ), name


def test_only_linear_maps_are_gathered_in_bfloat16(runs):
    dtypes = {
        name: row[3] for name, row in json.loads((runs / "shapes 0.json").read_text()).items()
    }
    narrow = {name for name, dtype in dtypes.items() if dtype == "torch.bfloat16"}
    assert narrow == {name for name in dtypes if "_proj." in name or ".glu." in name}
    assert any(name.endswith("theta") for name in dtypes) and any(
        "bounds" in name for name in dtypes
    )


def test_muon_orthogonalizes_whole_matrices(runs):
    assert_same_course(runs, "muon one", "muon fsdp")
    assert_same_state(saved(runs, "muon one", 6), saved(runs, "muon fsdp", 6))


def test_mixed_precision_is_that_of_whole_weights(runs):
    """Products differ in the order of their sums, and are rounded to bfloat16."""
    assert_same_course(runs, "bf16 ddp", "bf16 fsdp", rel=3e-3)


@pytest.mark.parametrize("state", ["reset", "carry", "documents"])
def test_shared_sequences_take_the_course_of_whole_ones(runs, state):
    assert_same_course(runs, f"{state} one", f"{state} context")
    assert_same_state(saved(runs, f"{state} one", 6), saved(runs, f"{state} context", 6))


def test_sequences_and_weights_are_shared_together(runs):
    one, both = (
        read_rows(runs / name / "log.jsonl") for name in ("carry one", "carry context fsdp")
    )
    both = iter(both)
    for row in (row for row in one if row["kind"] == "train"):
        assert next(both)["loss"] == pytest.approx(row["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["images ddp", "images fsdp"])
def test_classifiers_take_the_course_of_one_process(runs, name):
    assert len(read_rows(runs / name / "log.jsonl")) == 10
    assert_same_course(runs, "images one", name)
    assert_same_state(saved(runs, "images one", 8), saved(runs, name, 8))


def test_classifiers_in_mixed_precision_train_and_validate_sharded(runs):
    """As `test_mixed_precision_is_that_of_whole_weights`."""
    assert_same_course(runs, "images bf16 ddp", "images bf16 fsdp", rel=3e-3)


def test_running_statistics_are_saved_with_sharded_weights_and_gone_on_with(runs):
    """Each rank norms its own share, alike in both ways; those of the first rank are saved.

    Means are not compared: biases in front of a batch norm have no gradient but rounding, which
    AdamW follows, so the means move with them.
    """
    ddp, fsdp, again, alone = (
        load_file(runs / f"batch norm {name}" / "checkpoints" / "step-000008" / "model.safetensors")
        for name in ("ddp", "fsdp", "again", "alone")
    )
    statistics = [name for name in ddp if name.endswith(("running_mean", "running_var"))]
    assert statistics and fsdp.keys() == ddp.keys() == alone.keys()
    for name in statistics:
        assert fsdp[name].isfinite().all() and torch.equal(fsdp[name], again[name])
        if name.endswith("running_var"):
            torch.testing.assert_close(fsdp[name], ddp[name], rtol=1e-4, atol=1e-6)
        assert alone[name].isfinite().all() and not torch.equal(
            alone[name], fsdp[name]
        )  # of all examples from step 5 on
