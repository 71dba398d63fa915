"""Trains the classifiers whose accuracies are published, measures each on its test split once, and draws their curves.

    python -m benchmarks.trained [--data fashion-mnist=PATH --data newsgroups=PATH] [NAME ...]
    python -m benchmarks.trained --list

A run that has a row in benchmarks/results/trained.csv is skipped, and one that was stopped goes on where it was saved; remove a
row, and its run folder, to train it again. ListOps and Pathfinder are generated if no folder is given. One thread each, so that two
of these commands, with different names, can share two cores.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from benchmarks.trained_runs import GENERATED, RUNS, Run
from hgrn.bench.results import environment, read_csv, write_csv
from hgrn.data.disk import locked
from hgrn import cli
from hgrn.errors import UserError
from hgrn.memory import keep_freed_memory
from hgrn.training.checkpointing import load_weights
from hgrn.training.loop import train
from hgrn.training.manifests import Manifest
from hgrn.training.recipe import load_recipe
from hgrn.training.runlog import Console, read_rows
from hgrn.training.tasks import build_task, open_examples
from hgrn.training.tasks.classification import evaluate

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "trained.csv"
PICTURES = HERE.parent / "docs" / "images"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "all whose data is given or generated"
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"a run or a group of them (default: {default})"
    )
    parser.add_argument(
        "--data", action="append", default=[], metavar="KEY=PATH", help="where a data set is"
    )
    parser.add_argument(
        "--list", action="store_true", help="name the runs, and the data that each needs"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help=f"the rows (default: {RESULTS.relative_to(HERE.parent)})",
    )
    given = parser.parse_args()
    if given.list:
        done = {row["run"] for row in read_csv(given.out)}
        for run in RUNS:
            data = (
                f"{run.data} (generated)"
                if run.data in GENERATED
                else f"--data {run.data_key}=PATH"
            )
            print(f"{run.name:40} {data:40}{'done' if run.name in done else ''}")
        return 0
    keep_freed_memory()
    try:
        data = dict(pair.split("=", 1) for pair in given.data)
        for run in chosen(given.names, data):
            if any(row["run"] == run.name for row in read_csv(given.out)):
                print(f"{run.name}: done before")
                continue
            if run.start is not None:
                check_start(run, read_csv(given.out), given.runs)
            row = measured(run, data_of(run, data, given.runs), given.runs)
            with locked(given.runs / "rows.lock"):
                write_csv(given.out, [*read_csv(given.out), row])
            print(f"{run.name}: {row['test_accuracy']} on the test split")
        draw(
            read_csv(given.out), given.runs, PICTURES if given.out == RESULTS else given.out.parent
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def chosen(names: list[str], data: dict[str, str]) -> list[Run]:
    """The runs of these names or groups; without names, all those whose data is given or can be generated."""
    known = {run.name for run in RUNS} | {run.group for run in RUNS}
    for name in names:
        if name not in known:
            raise UserError(f"no run is called {name!r}: see --list")

    def has_data(run: Run) -> bool:
        return run.data_key in data or run.data in GENERATED

    if not names:
        return [run for run in RUNS if has_data(run)]
    found = [run for run in RUNS if run.name in names or run.group in names]
    for run in found:
        if not has_data(run):
            raise UserError(f"{run.name} needs --data {run.data_key}=PATH")
    return found


def check_start(run: Run, rows: list[dict[str, str]], runs: Path) -> None:
    """UserError unless the run that this one starts from was trained to its end, and is there."""
    if all(row["run"] != run.start for row in rows):
        first = f"train it first, python -m benchmarks.trained {run.start}"
        raise UserError(f"{run.name} starts from {run.start}, which has no row: {first}")
    if not (runs / run.start).is_dir():
        raise UserError(
            f"{run.name} starts from {run.start}, of which {runs} has no folder: remove its row, to train it again"
        )


def data_of(run: Run, given: dict[str, str], runs: Path) -> str:
    """Where its data are: the folder that was given, or one that is generated now if it is not there."""
    if run.data_key in given:
        return given[run.data_key] + run.data.removeprefix(run.data_key)
    out = runs / "data" / run.data
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_suffix(".lock")):
        if not out.exists():
            partial = out.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a command that was stopped
            if cli.main(["data", *GENERATED[run.data].split(), str(partial)]):
                raise UserError(f"{run.data} could not be generated")
            os.replace(partial, out)
    return str(out)


def measured(run: Run, path: str, runs: Path) -> dict[str, str]:
    """The row of a run: trained, or trained on, and answered on the test split."""
    out = runs / run.name
    changes = dict(run.changes)
    if run.start is not None:
        changes["model.weights"] = str(runs / run.start)
    changes |= {"data.path": path, "training.threads": 1}
    recipe = load_recipe(run.recipe, changes)
    model = None

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
    by_recipe = (
        run.make_task is build_task and run.data not in GENERATED
    )  # or the data, and where it starts, are this command's
    overrides = "".join(f" --{key} {value}" for key, value in run.changes.items())
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
        "command": f"hgrn train {run.recipe}{overrides}"
        if by_recipe
        else f"python -m benchmarks.trained {run.name}",
    } | where


def draw(rows: list[dict[str, str]], runs: Path, folder: Path) -> None:
    """A picture for each group of which there are run folders: accuracy of the validation split over minutes of training.

    A run that starts from another goes on where that one ends, each with the validation split of its own data.
    """
    from matplotlib.figure import Figure

    done = {row["run"]: row for row in rows}
    known = {
        run.name: run
        for run in RUNS
        if run.name in done and read_rows(runs / run.name / "log.jsonl")
    }
    starts = {run.start for run in known.values()}
    chains = [
        chain for run in known.values() if run.name not in starts and (chain := _chain(run, known))
    ]
    for group in dict.fromkeys(chain[-1].group for chain in chains):
        members = [chain for chain in chains if chain[-1].group == group]
        colours = {
            kind: f"C{number}"
            for number, kind in enumerate(dict.fromkeys(_kind(chain[-1]) for chain in members))
        }
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for chain in members:
            last = chain[-1]
            minutes = 0.0
            row = done[last.name]
            label = f"{last.model}, {int(row['parameters']):,} parameters: test {float(row['test_accuracy']):.2%}"
            for run in chain:
                points = _curve(runs / run.name / "log.jsonl", minutes)
                axes.plot(
                    *zip(*points),
                    "o-",
                    markersize=3,
                    color=colours[_kind(last)],
                    label=label if run is last else None,
                )
                minutes += int(done[run.name]["train_seconds"]) / 60
        axes.set(
            xlabel="minutes of training, one core", ylabel="accuracy, validation split", title=group
        )
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        figure.savefig(folder / f"trained_{group}.png", dpi=150)


def _kind(run: Run) -> str:
    """What is drawn in one colour: `kind-seed` and `kind-seed-stage` are of one."""
    return run.model.split("-")[0]


def _chain(run: Run, known: dict[str, Run]) -> list[Run] | None:
    """The run behind those that it starts from; None if one of them is not known."""
    if run.start is None:
        return [run]
    before = _chain(known[run.start], known) if run.start in known else None
    return None if before is None else [*before, run]


def _curve(log: Path, start: float) -> list[tuple[float, float]]:
    """Minutes, from `start` on, and accuracy of each validation."""
    rows = read_rows(log)
    times = [(row["step"], row["elapsed"] / 60) for row in rows if row["kind"] == "train"]
    return [
        (start + max(minutes for step, minutes in times if step <= row["step"]), row["accuracy"])
        for row in rows
        if row["kind"] == "validation"
    ]


if __name__ == "__main__":
    sys.exit(main())
