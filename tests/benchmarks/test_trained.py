"""`python -m benchmarks trained`: it chooses, goes on from run to run, and writes each row once."""

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.__main__ import main
from benchmarks.rows import Results, read_csv
from benchmarks.trained import command, curves
from benchmarks.trained.command import COLUMNS, KEY, chosen, data_of
from benchmarks.trained.runs import GENERATED, RUNS, Run
from hgrn.data.lra.listops_generator import generate
from hgrn.errors import UserError
from hgrn.training.recipe import load_recipe
from tests.training.tiny_arena import TINY


def test_runs_are_chosen_by_name_group_and_data():
    assert [run.name for run in chosen(["fashion-mnist/vit"], {"fashion-mnist": "x"})] == [
        "fashion-mnist/vit"
    ]
    assert {run.group for run in chosen(["fashion-mnist-pixels"], {"fashion-mnist": "x"})} == {
        "fashion-mnist-pixels"
    }
    assert {run.data for run in chosen([], {})} <= GENERATED.keys()
    with pytest.raises(UserError, match="no run is called 'vit'.*--list"):
        chosen(["vit"], {})
    assert [run.name for run in chosen(["text"], {"newsgroups": "x"})] == ["text/hgrn"]
    with pytest.raises(UserError, match="retrieval/hgrn needs --data newsgroups=PATH"):
        chosen(["retrieval"], {})
    with pytest.raises(UserError, match="fashion-mnist/vit needs --data fashion-mnist=PATH"):
        chosen(["fashion-mnist/vit"], {})


def test_every_run_is_of_a_shipped_recipe_and_starts_from_one_before_it(tmp_path):
    names = [run.name for run in RUNS]
    assert len(set(names)) == len(names)
    for number, run in enumerate(RUNS):
        recipe = load_recipe(run.recipe, {"data.path": str(tmp_path)} | run.changes)
        assert recipe.training.eval_every and recipe.training.steps >= recipe.training.eval_every, (
            run.name
        )
        assert run.start is None or run.start in names[:number]


def test_a_chain_of_runs_is_trained_once(tmp_path, monkeypatch, capsys):
    model = {
        "preset": "lra-listops",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
    }
    data = {"task": "listops", "path": "x", "cache": str(tmp_path / "cache")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"data": data, "model": model}))
    recipe = str(tmp_path / "tiny.yaml")
    runs = [
        Run("tiny", "first", recipe, "generated", {"optimizer.lr": 1e-3}),
        Run("tiny", "second", recipe, "given/inside", {"optimizer.lr": 1e-9}, start="tiny/first"),
    ]
    monkeypatch.setattr(command, "keep_freed_memory", lambda: True)
    for room in (command, curves):
        monkeypatch.setattr(room, "RUNS", runs)
    sizes = "--train 24 --validation 6 --test 6 --min-length 8 --max-length 60"
    generated = {"generated": f"listops {sizes} --processes 1"}
    monkeypatch.setattr(command, "GENERATED", generated)
    generate(tmp_path / "given" / "inside", 1, 24, 6, 6, processes=1)
    out = tmp_path / "trained.csv"
    data = ["--data", f"given={tmp_path / 'given'}"]
    arguments = ["trained", *data, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert main(arguments) == 0
    first, second = read_csv(out)
    assert (first["run"], first["test_examples"], second["test_examples"]) == (
        "tiny/first",
        "6",
        "6",
    )
    assert first["command"] == "python -m benchmarks trained tiny/first"
    assert second["command"] == f"hgrn train {recipe} --optimizer.lr 1e-09"
    saved = [
        tmp_path / "runs" / run.name / "checkpoints" / "step-000002" / "model.safetensors"
        for run in runs
    ]
    before, after = map(load_file, saved)
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            # A learning rate of 1e-9 moves nothing.
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6, msg=name)
    assert (tmp_path / "trained_tiny.png").stat().st_size > 10_000

    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tiny/first: measured before",
        "tiny/second: measured before",
    ]
    assert read_csv(out) == [first, second]

    Results(out, COLUMNS, KEY).forget(lambda row: row == second)
    shutil.rmtree(tmp_path / "runs" / "tiny" / "first")
    assert main(arguments) == 2
    assert (
        "tiny/second starts from tiny/first, which has no folder" in capsys.readouterr().err
        and read_csv(out) == [first]
    )
    out.unlink()
    monkeypatch.setattr(command, "RUNS", runs[1:])
    assert main(arguments) == 2
    assert (
        "which has no row: train it first, python -m benchmarks trained tiny/first"
        in capsys.readouterr().err
    )


def test_data_whose_generation_was_stopped_are_generated_again(tmp_path, monkeypatch):
    run = Run("tiny", "run", "lra/pathfinder-cpu", "marks")
    monkeypatch.setattr(
        command,
        "GENERATED",
        {"marks": "pathfinder --number 10 --contour-length 3 --distractors 0 --processes 1"},
    )
    (tmp_path / "data" / "marks.partial" / "curv_contour_length_3").mkdir(parents=True)
    path = data_of(run, {}, tmp_path)
    assert path == str(tmp_path / "data" / "marks")
    assert (
        len(list((tmp_path / "data" / "marks").rglob("*.png"))) == 10
        and not (tmp_path / "data" / "marks.partial").exists()
    )
    assert data_of(run, {"marks": "elsewhere"}, tmp_path) == "elsewhere"
