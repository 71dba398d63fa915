"""Trains the classifiers whose accuracies are published, measures each on its test split once, and draws their curves.

    python -m benchmarks.trained --data fashion-mnist=PATH [NAME ...]
    python -m benchmarks.trained --list

A run that has a row in benchmarks/results/trained.csv is skipped, and one that was stopped goes on where it was saved; remove a
row, and its run folder, to train it again. One thread each, so that two of these commands can share two cores.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import image_peers
from hgrn.bench.results import environment, read_csv, write_csv
from hgrn.errors import UserError
from hgrn.memory import keep_freed_memory
from hgrn.training.checkpointing import Manifest, load_weights
from hgrn.training.loop import train
from hgrn.training.recipe import load_recipe
from hgrn.training.runlog import Console, read_rows
from hgrn.training.tasks import build_task, open_examples
from hgrn.training.tasks.classification import evaluate

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "trained.csv"
PICTURES = HERE.parent / "docs" / "images"


@dataclass(frozen=True)
class Run:
    """A recipe with some values changed, or a peer (a task of another model) trained with the same loop and data.

    data: which of the folders given with --data it reads. group: what it is drawn with.
    """

    group: str
    model: str
    recipe: str
    data: str
    changes: dict[str, Any] = field(default_factory=dict)
    make_task: Callable = build_task

    @property
    def name(self) -> str:
        return f"{self.group}/{self.model}"


def _adamw(lr: float, steps: int) -> dict[str, Any]:
    """What peers train with; the steps are those of the recipe's time at the peer's speed."""
    return {"optimizer.name": "adamw", "optimizer.no_decay": "none", "optimizer.lr": lr, "schedule.min_lr": lr / 100,
            "training.steps": steps, "training.eval_every": steps // 10, "training.save_every": steps // 10}  # fmt: skip


FP32 = {"training.precision": "fp32"}  # which is faster where products are small
RUNS = [
    Run("fashion-mnist", "hgrn", "image/fashion-mnist", "fashion-mnist"),
    Run("fashion-mnist", "vit", "image/fashion-mnist", "fashion-mnist", _adamw(1e-3, 5500) | FP32, image_peers.ViTTask),
    Run("fashion-mnist", "cnn", "image/fashion-mnist", "fashion-mnist", _adamw(3e-3, 5400), image_peers.CNNTask),
    Run("fashion-mnist-pixels", "hgrn", "image/fashion-mnist-pixels", "fashion-mnist"),
    Run("fashion-mnist-pixels", "lstm", "image/fashion-mnist-pixels", "fashion-mnist", _adamw(1e-2, 4000), image_peers.LSTMTask),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a run or a group of them (default: all whose data is given)")
    parser.add_argument("--data", action="append", default=[], metavar="KEY=PATH", help="where a data set is")
    parser.add_argument("--list", action="store_true", help="name the runs, and the data that each needs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"the rows (default: {RESULTS.relative_to(HERE.parent)})")
    given = parser.parse_args()
    if given.list:
        done = {row["run"] for row in read_csv(given.out)}
        for run in RUNS:
            print(f"{run.name:40} --data {run.data}=PATH{'   (done)' if run.name in done else ''}")
        return 0
    keep_freed_memory()
    try:
        data = dict(pair.split("=", 1) for pair in given.data)
        for run in chosen(given.names, data):
            if any(row["run"] == run.name for row in read_csv(given.out)):
                print(f"{run.name}: done before")
                continue
            row = measured(run, data[run.data], given.runs / run.name)
            write_csv(given.out, [*read_csv(given.out), row])
            print(f"{run.name}: {row['test_accuracy']} on the test split")
        draw(read_csv(given.out), given.runs, PICTURES if given.out == RESULTS else given.out.parent)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def chosen(names: list[str], data: dict[str, str]) -> list[Run]:
    """The runs of these names or groups; of all whose data is given without any."""
    known = {run.name for run in RUNS} | {run.group for run in RUNS}
    for name in names:
        if name not in known:
            raise UserError(f"no run is called {name!r}: see --list")
    found = [run for run in RUNS if run.name in names or run.group in names or not names and run.data in data]
    for run in found:
        if run.data not in data:
            raise UserError(f"{run.name} needs --data {run.data}=PATH")
    return found


def measured(run: Run, path: str, out: Path) -> dict[str, str]:
    """The row of a run: trained, or trained on, and answered on the test split."""
    changes = {"data.path": path, "training.threads": 1} | run.changes
    recipe, model = load_recipe(run.recipe, changes), None

    def make_task(*arguments):
        nonlocal model
        task = run.make_task(*arguments)
        model = task.model
        return task

    where = environment()
    with Console() as console:
        outcome = train(recipe, out, resume=True, on_event=console, make_task=make_task)
    if outcome.interrupted:
        raise KeyboardInterrupt
    load_weights(model, outcome.checkpoint)  # the average, where there is one
    test = evaluate(model, open_examples(recipe, "test").batches)
    rows = read_rows(out / "log.jsonl")
    last = [row for row in rows if row["kind"] == "train"][-1]
    validation = [row for row in rows if row["kind"] == "validation"][-1]
    (unit,) = [name.removesuffix("_per_s") for name in last if name.endswith("_per_s")]
    low, high = test.interval
    ours = f"hgrn train {run.recipe}" + "".join(f" --{key} {value}" for key, value in run.changes.items())
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
        "command": ours if run.make_task is build_task else f"python -m benchmarks.trained {run.name}",
    } | where


def draw(rows: list[dict[str, str]], runs: Path, folder: Path) -> None:
    """A picture in a folder for each group of which there are run folders: accuracy of the validation split over minutes of training."""
    from matplotlib.figure import Figure

    for group in dict.fromkeys(run.group for run in RUNS):
        curves = {}
        for row in [row for row in rows if row["run"].startswith(f"{group}/")]:
            logged = read_rows(runs / row["run"] / "log.jsonl")
            times = [(entry["step"], entry["elapsed"] / 60) for entry in logged if entry["kind"] == "train"]
            points = [
                (max(minutes for step, minutes in times if step <= entry["step"]), entry["accuracy"])
                for entry in logged
                if entry["kind"] == "validation"
            ]
            name = row["run"].removeprefix(f"{group}/")
            if points:
                curves[f"{name}, {int(row['parameters']):,} parameters: test {float(row['test_accuracy']):.2%}"] = points
        if not curves:
            continue
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for label, points in curves.items():
            axes.plot(*zip(*points), "o-", markersize=3, label=label)
        axes.set(xlabel="minutes of training, one core", ylabel="accuracy, validation split", title=group)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        figure.savefig(folder / f"trained_{group}.png", dpi=150)


if __name__ == "__main__":
    sys.exit(main())
