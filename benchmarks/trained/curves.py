"""Learning curves of the trained classifiers: accuracy over minutes, a picture for each group."""

from pathlib import Path

from benchmarks import drawing
from benchmarks.rows import Cells
from benchmarks.trained.runs import RUNS, Run
from hgrn.analysis import look
from hgrn.training.runlog import read_rows


def draw(rows: list[Cells], runs: Path, folder: Path) -> None:
    """Draw the groups that have rows and run folders, with the accuracy of the validation split.

    The curve of a run that starts from another goes on where that one ends. Each stage shows the
    validation split of its own data.
    """
    done = {row["run"]: row for row in rows}
    known = {
        run.name: run
        for run in RUNS
        if run.name in done and read_rows(runs / run.name / "log.jsonl")
    }
    # A run that another starts from is drawn as the beginning of that one.
    starts = {run.start for run in known.values()}
    chains = [
        chain for run in known.values() if run.name not in starts if (chain := _chain(run, known))
    ]
    for group in dict.fromkeys(chain[-1].group for chain in chains):
        members = [chain for chain in chains if chain[-1].group == group]
        kinds = list(dict.fromkeys(_kind(chain[-1]) for chain in members))
        figure, panel = drawing.lines(
            group, xlabel="minutes of training, one core", ylabel="accuracy, validation split"
        )
        for chain in members:
            last = chain[-1]
            row = done[last.name]
            label = (
                f"{last.model}, {int(row['parameters']):,} parameters: "
                f"test {float(row['test_accuracy']):.2%}"
            )
            colour = look.COLOURS[kinds.index(_kind(last)) % len(look.COLOURS)]
            minutes = 0.0
            for run in chain:
                points = _curve(runs / run.name / "log.jsonl", minutes)
                named = label if run is last else None
                panel.plot(*zip(*points), "o-", markersize=3, color=colour, label=named)
                minutes += int(done[run.name]["train_seconds"]) / 60
        look.finish(panel)
        drawing.save(figure, folder / f"trained_{group}.png")


def _kind(run: Run) -> str:
    """What one colour stands for: runs called `kind-seed` and `kind-seed-stage` share it."""
    return run.model.split("-")[0]


def _chain(run: Run, known: dict[str, Run]) -> list[Run] | None:
    """A run behind those that it starts from; None if one of them is not known."""
    if run.start is None:
        return [run]
    before = _chain(known[run.start], known) if run.start in known else None
    return None if before is None else [*before, run]


def _curve(log: Path, start: float) -> list[tuple[float, float]]:
    """Minutes, counted from `start`, and accuracy of each validation."""
    # Only rows of training know the time; a validation has that of the last one before it.
    rows = read_rows(log)
    times = [(row["step"], row["elapsed"] / 60) for row in rows if row["kind"] == "train"]
    return [
        (start + max(minutes for step, minutes in times if step <= row["step"]), row["accuracy"])
        for row in rows
        if row["kind"] == "validation"
    ]
