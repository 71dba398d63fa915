"""Trains the classifiers whose accuracies are published, and draws their learning curves.

    python -m benchmarks trained --list
    python -m benchmarks trained [--data fashion-mnist=PATH] [--data newsgroups=PATH] [NAME ...]

Each is measured on its test split once, when its training ends. ListOps and Pathfinder are
generated if no folder is given for them. Every run takes one thread, so two of these commands with
different names can share two cores.
"""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.machine import environment
from benchmarks.rows import IMAGES, RESULTS, Cells, Results, read_csv
from benchmarks.trained import curves
from benchmarks.trained.runs import GENERATED, RUNS, Run
from hgrn.cli.main import main as hgrn
from hgrn.data.disk import locked
from hgrn.errors import UserError, near
from hgrn.memory import keep_freed_memory
from hgrn.training.checkpointing import load_weights
from hgrn.training.loop import Outcome, train
from hgrn.training.manifests import Manifest
from hgrn.training.recipe import load_recipe
from hgrn.training.runlog import Console, read_rows
from hgrn.training.tasks import build_task, open_examples
from hgrn.training.tasks.base import Task
from hgrn.training.tasks.classification import evaluate

COLUMNS = (
    *("run", "data", "fingerprint", "parameters", "seed", "steps", "examples", "train_seconds"),
    *("validation_accuracy", "test_accuracy", "test_low", "test_high", "test_examples", "command"),
)
KEY = ("run",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a run or a group of them (default: all whose data is given or generated)",
    )
    parser.add_argument(
        "--data", action="append", default=[], metavar="KEY=PATH", help="where a data set is"
    )
    parser.add_argument(
        "--list", action="store_true", help="name the runs, and the data that each needs"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="train anew what has a row; removes its row and its run folder",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="of trained.csv (default: benchmarks/results)",
    )


def run(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Train what has no row yet; a run that was stopped goes on where it was saved."""
    path = given.out / "trained.csv"
    if given.list:
        _list(path)
        return 0
    keep_freed_memory()
    data = dict(pair.split("=", 1) for pair in given.data)
    runs = chosen(given.names, data)
    results = Results(path, COLUMNS, KEY)
    if given.again:
        names = {run.name for run in runs}
        results.forget(lambda row: row["run"] in names)
        for name in names:
            shutil.rmtree(given.runs / name, ignore_errors=True)
    for run in runs:
        if results.has(run=run.name):
            print(f"{run.name}: measured before")
            continue
        if run.start is not None:
            _check_start(run, results, given.runs)
        # A run takes minutes, and the source may have changed since the last one.
        results.where = environment()
        row = measured(run, data_of(run, data, given.runs), given.runs)
        results.add(row)
        print(f"{run.name}: {row['test_accuracy']} on the test split")
    curves.draw(results.rows(), given.runs, IMAGES if given.out == RESULTS else given.out)
    return 0


def _list(path: Path) -> None:
    done = {row["run"] for row in read_csv(path)}
    for run in RUNS:
        is_generated = run.data in GENERATED
        data = f"{run.data} (generated)" if is_generated else f"--data {run.data_key}=PATH"
        print(f"{run.name:40} {data:40}{'done' if run.name in done else ''}")


def chosen(names: list[str], data: dict[str, str]) -> list[Run]:
    """The runs of these names or groups; by default all whose data is given or generated."""
    known = {run.name for run in RUNS} | {run.group for run in RUNS}
    for name in names:
        if name not in known:
            raise UserError(f"no run is called {name!r}{near(name, known)}; --list names them all")

    def has_data(run: Run) -> bool:
        return run.data_key in data or run.data in GENERATED

    if not names:
        return [run for run in RUNS if has_data(run)]
    found = [run for run in RUNS if run.name in names or run.group in names]
    for run in found:
        if not has_data(run):
            raise UserError(f"{run.name} needs --data {run.data_key}=PATH")
    return found


def _check_start(run: Run, results: Results, runs: Path) -> None:
    """Raise UserError unless the run that this one starts from is there and has ended."""
    start = run.start or ""
    if not results.has(run=start):
        raise UserError(
            f"{run.name} starts from {start}, which has no row: "
            f"train it first, python -m benchmarks trained {start}"
        )
    if not (runs / start).is_dir():
        raise UserError(
            f"{run.name} starts from {start}, which has no folder in {runs}: "
            f"train it again, python -m benchmarks trained {start} --again"
        )


def data_of(run: Run, given: dict[str, str], runs: Path) -> str:
    """The folder of a run's data: the given one, or one that is generated now if it is missing."""
    if run.data_key in given:
        return given[run.data_key] + run.data.removeprefix(run.data_key)
    out = runs / "data" / run.data
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_suffix(".lock")):
        if not out.exists():
            partial = out.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a command that was stopped
            if hgrn(["data", *GENERATED[run.data].split(), str(partial)]):
                raise UserError(f"{run.data} could not be generated")
            os.replace(partial, out)
    return str(out)


def measured(run: Run, path: str, runs: Path) -> Cells:
    """Train a run, or go on with it, and measure it on the test split; its row.

    Raises KeyboardInterrupt if a signal stopped the training, which has saved by then.
    """
    changes = dict(run.changes)
    if run.start is not None:
        changes["model.weights"] = str(runs / run.start)
    changes |= {"data.path": path, "training.threads": 1}
    recipe = load_recipe(run.recipe, changes)
    tasks: list[Task] = []

    def make_task(*arguments: Any) -> Task:
        tasks.append(run.make_task(*arguments))
        return tasks[0]

    out = runs / run.name
    with Console() as console:
        outcome = train(recipe, out, resume=True, on_event=console, make_task=make_task)
    # The loop has caught the signal to save; here it must not look like the end of the run.
    if outcome.interrupted:
        raise KeyboardInterrupt
    return _row(run, recipe, tasks[0].model, outcome, out)


def _row(run: Run, recipe: Any, model: nn.Module, outcome: Outcome, out: Path) -> Cells:
    # The saved weights are the average, if the recipe asks for one.
    load_weights(model, outcome.checkpoint)
    test = evaluate(model, open_examples(recipe, "test").batches)
    rows = read_rows(out / "log.jsonl")
    last = [row for row in rows if row["kind"] == "train"][-1]
    validation = [row for row in rows if row["kind"] == "validation"][-1]
    (unit,) = [name.removesuffix("_per_s") for name in last if name.endswith("_per_s")]
    low, high = test.interval
    return {
        "run": run.name,
        "data": run.data,
        "fingerprint": Manifest.read(outcome.checkpoint).data[:16],
        "parameters": str(sum(parameter.numel() for parameter in model.parameters())),
        "seed": str(recipe.training.seed),
        "steps": str(outcome.steps),
        "examples": str(last[unit]),
        "train_seconds": f"{last['elapsed']:.0f}",
        "validation_accuracy": f"{validation['accuracy']:.4f}",
        "test_accuracy": f"{test.accuracy:.4f}",
        "test_low": f"{low:.4f}",
        "test_high": f"{high:.4f}",
        "test_examples": str(test.examples),
        "command": _command(run),
    }


def _command(run: Run) -> str:
    """The command that repeats a run. `hgrn train` can, unless the model or the data are ours."""
    if run.make_task is build_task and run.data not in GENERATED:
        overrides = "".join(f" --{key} {value}" for key, value in run.changes.items())
        return f"hgrn train {run.recipe}{overrides}"
    return f"python -m benchmarks trained {run.name}"
