"""The table of runs: found, evaluated on the test split, and written with what guessing gives."""

import shutil

import numpy as np
import pytest
import torch

from hgrn.cli import main
from hgrn.cli.arena_table import arena_table, command
from hgrn.cli.inference import load_classifier
from hgrn.data.lra.load import prepare
from hgrn.data.lra.pathfinder import HARD
from hgrn.errors import UserError
from hgrn.source import commit
from hgrn.training.loop import train
from hgrn.training.manifests import find_checkpoint
from hgrn.training.recipe import load_recipe
from tests.training.tiny_arena import tiny_arena_recipe
from tests.training.tiny_runs import tiny_recipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the arena, one of them deeper, and a language model."""
    folder = tmp_path_factory.mktemp("arena")
    train(
        tiny_arena_recipe("text", folder, target=None, training__steps=3),
        folder / "runs" / "b" / "text",
    )
    train(tiny_arena_recipe("listops", folder, name="a listops"), folder / "runs" / "listops")
    train(tiny_recipe(folder / "language", training__steps=2), folder / "runs" / "language")
    return folder / "runs"


def test_each_run_is_evaluated_on_its_test_split(runs, tmp_path):
    seen = []
    rows, absent = arena_table(runs, tmp_path / "table.md", lambda *progress: seen.append(progress))
    assert not absent
    assert [row.task for row in rows] == ["a listops", "tiny arena"]
    for row, run, classes in zip(rows, (runs / "listops", runs / "b" / "text"), (10, 2)):
        checkpoint = find_checkpoint(run)
        model, _ = load_classifier(checkpoint)
        recipe = load_recipe(checkpoint / "recipe.yaml")
        test = prepare(recipe.data).splits["test"]
        right = 0
        for number, label in enumerate(
            test.labels.tolist()
        ):  # one by one, padded as in a batch of 4
            lengths = test.lengths[number - number % 4 : number - number % 4 + 4]
            ids = np.pad(
                test.sequence(number).astype(np.int64), (0, lengths.max() - lengths[number % 4])
            )
            mask = (np.arange(lengths.max()) < lengths[number % 4]).astype(np.int64)
            with torch.no_grad():
                right += (
                    int(
                        model(
                            torch.from_numpy(ids)[None], torch.from_numpy(mask)[None]
                        ).logits.argmax()
                    )
                    == label
                )
        assert row.accuracy == right / len(test) and row.examples == len(test)
        assert row.interval[0] <= row.accuracy <= row.interval[1]
        assert (row.random, row.majority) == (
            1 / classes,
            np.bincount(test.labels).max() / len(test),
        )
        assert row.steps == row.of_steps == recipe.training.steps and 0 < row.seconds < 100
        assert row.commit == commit() and row.command == f"hgrn train {run / 'recipe.yaml'}"
    assert [row.paper for row in rows] == [59.95, None]
    assert {("tiny arena", 20, 20), ("a listops", 6, 6)} <= set(seen)


def test_the_table(runs, tmp_path):
    rows, _ = arena_table(runs, tmp_path / "table.md")
    header, rule, *lines = [
        line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")
    ]
    assert header.startswith("| task | data | paper | ours | 95 % interval |") and len(lines) == 2
    assert {line.count("|") for line in (header, rule, *lines)} == {13}
    for row, line in zip(rows, lines):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[:4] == [
            row.task,
            row.data,
            "59.95%" if row.paper else "-",
            f"{100 * row.accuracy:.2f}%",
        ]
        assert (
            cells[5] == str(row.examples)
            and cells[8] == str(row.steps)
            and cells[10] == f"`{row.command}`"
        )
    arena_table(runs)
    assert (runs / "arena.md").read_text() == (tmp_path / "table.md").read_text()


def test_an_unfinished_run_and_an_edited_card(runs, tmp_path):
    shutil.copytree(runs / "b" / "text", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000003")
    (tmp_path / "run" / "checkpoints" / "step-000002" / "README.md").write_text("Mine now.")
    (row,), _ = arena_table(tmp_path)
    assert (row.steps, row.of_steps, row.commit) == (2, 3, "not recorded")
    assert "| 2 of 3 |" in (tmp_path / "arena.md").read_text()


def test_runs_without_their_data_are_named(tmp_path, capsys):
    folder = tmp_path / "elsewhere"
    for kind in ("text", "listops", "pathfinder"):
        train(tiny_arena_recipe(kind, folder, target=None), tmp_path / "runs" / kind)
    shutil.rmtree(folder / "listops")
    table = folder / "pathfinder" / HARD / "metadata" / "0.npy"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[1:]))
    assert main(["arena", "--runs", str(tmp_path / "runs")]) == 0
    text = (tmp_path / "runs" / "arena.md").read_text()
    printed = capsys.readouterr().out
    assert text.count("| tiny arena |") == printed.count("tiny arena ") == 1
    for where in (text, printed):
        assert (
            f"left out: {tmp_path / 'runs' / 'listops'}: " in where and "basic_train.tsv" in where
        )
        assert (
            f"{tmp_path / 'runs' / 'pathfinder'}: {folder / 'pathfinder'} holds other data than it "
            "was trained on" in where
        )
    shutil.rmtree(folder / "text")
    shutil.rmtree(folder / "pathfinder")
    with pytest.raises(
        UserError, match="no run can be evaluated:\n  .*listops.*\n  .*pathfinder.*\n  .*text"
    ):
        arena_table(tmp_path / "runs")


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ({}, ""),
        (
            {
                "data.path": "my files",
                "training.steps": 10,
                "schedule.warmup_steps": 5,
                "optimizer.betas": [0.9, 0.99],
            },
            " --data.path 'my files' --optimizer.betas '[0.9, 0.99]' --schedule.warmup_steps 5 "
            "--training.steps 10",
        ),
        (
            {"optimizer.clip_norm": 1.0, "schedule.total_steps": "null"},
            " --optimizer.clip_norm 1.0 --schedule.total_steps null",
        ),
    ],
)
def test_the_command_of_a_shipped_recipe(overrides, expected, tmp_path):
    recipe = load_recipe("lra/text", overrides)
    assert command(recipe, tmp_path / "recipe.yaml") == "hgrn train lra/text" + expected


def test_folders_without_runs(runs, tmp_path):
    with pytest.raises(
        UserError, match="holds no run of task long-range-arena that has saved a checkpoint"
    ):
        arena_table(runs / "language")
    with pytest.raises(UserError, match="no folder .*nowhere"):
        arena_table(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match="cannot be written: No such file or directory; give another file"
    ):
        arena_table(runs, tmp_path / "nowhere" / "table.md")
