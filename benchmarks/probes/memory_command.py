"""Trains small models to remember over a distance, and draws who can, how far.

    python -m benchmarks memory             all runs, about 80 minutes on two cores (see --share)
    python -m benchmarks memory --draw      the table and the pictures of what is there

Two tasks (benchmarks/probes/questions.py), at distances d of 16 to 4,096 steps; eight models of six
layers (benchmarks/probes/memory.py): HGRN with bounds as published, without any, with the published
ones untrained, and with bounds spread over horizons of 1 to d; GRU and LSTM, also with gate biases
set for d, with as many parameters.

Every run learns from new sequences until 99 % of its last answers are right, or for as many steps
as HGRN manages in two minutes of a core that has nothing else to do. Three learning rates are tried
for delayed recall at d = 64 with the first seed; the best one does all other runs of that model.
Beyond the first distance at which a model fails with every seed, only the first seed is run.

Every run takes one thread. Two of these commands share two cores with --share 1/2 and --share 2/2.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch

from benchmarks import drawing
from benchmarks.machine import environment
from benchmarks.probes.memory import CANDIDATES, Candidate, kept, reach
from benchmarks.probes.models import Answerer
from benchmarks.probes.questions import DELAYED, SELECTIVE, Task
from benchmarks.probes.sharing import add_share, share_of
from benchmarks.probes.training import SOLVED, right_answers, until_solved
from benchmarks.rows import IMAGES, RESULTS, Cells, Results
from benchmarks.telling import show, telling
from hgrn.analysis import look
from hgrn.memory import keep_freed_memory
from hgrn.progress import OnProgress
from hgrn.training.threads import cpu_threads

COLUMNS = (
    *("task", "distance", "model", "lr", "seed", "accuracy", "solved", "steps", "core_seconds"),
    *("parameters", "budget"),
)
KEY = ("task", "distance", "model", "lr", "seed")
TASKS = (DELAYED, SELECTIVE)
_TRAINING = 0
_TEST = 1


@dataclass(frozen=True)
class Plan:
    """steps: the most of a run, for each distance. searched: the distance where rates are compared.
    tokens: of a step, about. tested: answers of a test, about."""

    steps: Mapping[int, int]
    searched: int = 64
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    tokens: int = 8192
    tested: int = 512

    @property
    def distances(self) -> tuple[int, ...]:
        """Those of both tasks, ascending."""
        return tuple(self.steps)

    def budget(self, distance: int) -> str:
        """What a run learns from, in words; rows of other budgets are not comparable."""
        return (
            f"{self.sequences(distance)} sequences a step until {SOLVED:.0%} of 256 answers, "
            f"at most {self.steps[distance]} steps"
        )

    def sequences(self, distance: int) -> int:
        """Sequences of a step: fewer where they are long."""
        return min(64, max(4, self.tokens // distance))


FULL = Plan({16: 2000, 64: 1400, 256: 800, 1024: 600, 4096: 250})
QUICK = Plan({16: 2, 32: 2}, 16, (1e-3, 3e-3), (0, 1), 256, 16)


@dataclass(frozen=True)
class Trial:
    """One run: what its row is found by."""

    task: Task
    distance: int
    candidate: Candidate
    rate: float
    seed: int

    @property
    def cells(self) -> Cells:
        """The key of its row."""
        return {
            "task": self.task.name,
            "distance": str(self.distance),
            "model": self.candidate.name,
            "lr": f"{self.rate:g}",
            "seed": str(self.seed),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--draw", action="store_true", help="train nothing")
    add_share(parser)
    parser.add_argument(
        "--quick", action="store_true", help="moments: to see that it works, not to be quoted"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="of memory.csv (default: benchmarks/results, with --quick benchmarks/quick)",
    )


def run(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Do the runs that have no rows yet, print a table, and draw."""
    plan = QUICK if given.quick else FULL
    out = given.out or (RESULTS.with_name("quick") if given.quick else RESULTS)
    mine = share_of(CANDIDATES, given.share, parser)
    keep_freed_memory()
    results = Results(out / "memory.csv", COLUMNS, KEY)
    with cpu_threads(1):
        if not given.draw:
            results.forget(lambda row: row["budget"] != plan.budget(int(row["distance"])))
            # Seed after seed, so that an early end leaves a whole picture with fewer seeds.
            for seed in plan.seeds:
                for task in TASKS:
                    for candidate in mine:
                        _all_distances(task, candidate, seed, plan, results)
        reaches = _reaches(64 if given.quick else 4096)
    rows = results.rows()
    for task in TASKS:
        show(f"{task.name}: right answers (chance {task.chance:.1%})", _table(rows, task, plan))
    images = IMAGES if out == RESULTS else out
    drawn = [
        drawing.save(_accuracy_picture(rows, plan), images / "bench_memory.png"),
        drawing.save(_reach_picture(reaches), images / "bench_reach.png"),
    ]
    print(f"written: {results.path}, {', '.join(map(str, drawn))}")
    return 0


def _all_distances(
    task: Task, candidate: Candidate, seed: int, plan: Plan, results: Results
) -> None:
    """The runs of one model and seed, from the smallest distance to the largest."""
    first = plan.seeds[0]
    for rate in plan.rates:
        _do(Trial(DELAYED, plan.searched, candidate, rate, first), plan, results)
    rate = best_rate(results.rows(), candidate.name, plan)
    for distance in plan.distances:
        if seed != first and _fails_before(results.rows(), task, candidate, distance, plan):
            break
        _do(Trial(task, distance, candidate, rate, seed), plan, results)


def best_rate(rows: Sequence[Cells], model: str, plan: Plan) -> float:
    """Of the rates that were compared, the most accurate one, and of equal ones the fastest."""
    compared = {"task": DELAYED.name, "distance": str(plan.searched), "model": model}
    compared["seed"] = str(plan.seeds[0])
    own = [row for row in rows if compared.items() <= row.items()]

    def merit(row: Cells) -> tuple[bool, float, float]:
        return bool(row["solved"]), float(row["accuracy"]), -float(row["core_seconds"])

    return float(max(own, key=merit)["lr"])


def _fails_before(
    rows: Sequence[Cells], task: Task, candidate: Candidate, distance: int, plan: Plan
) -> bool:
    """Whether every seed has failed at a smaller distance."""
    for shorter in plan.distances[: plan.distances.index(distance)]:
        cells = {"task": task.name, "distance": str(shorter), "model": candidate.name}
        rate = f"{best_rate(rows, candidate.name, plan):g}"
        own = [row for row in rows if (cells | {"lr": rate}).items() <= row.items()]
        if len(own) == len(plan.seeds) and not any(row["solved"] for row in own):
            return True
    return False


def _do(trial: Trial, plan: Plan, results: Results) -> None:
    """Train and test, unless the row is there."""
    if results.has(**trial.cells):
        return
    results.where = environment()
    title = ", ".join(trial.cells.values())
    with telling(title) as tell:
        cells = trained(trial, plan, tell)
    results.add(trial.cells | cells)
    print(f"{title}: {float(cells['accuracy']):.1%} in {cells['core_seconds']} s", flush=True)


def trained(trial: Trial, plan: Plan, tell: OnProgress) -> Cells:
    """Train until the task is solved or the budget spent; the cells that the key lacks."""
    torch.manual_seed(trial.seed)
    task = trial.task
    stack = trial.candidate.build(trial.distance)
    model = Answerer(stack, task.vocabulary, task.answers)
    sequences = plan.sequences(trial.distance)
    end = until_solved(
        model,
        lambda number: task.draw(trial.distance, sequences, (_TRAINING, trial.seed, number)),
        trial.rate,
        plan.steps[trial.distance],
        tell,
    )
    tested = max(sequences, plan.tested // (1 if task is DELAYED else 4))
    right = right_answers(model, task.draw(trial.distance, tested, (_TEST,)), together=sequences)
    return {
        "accuracy": f"{right.double().mean().item():.4f}",
        "solved": "yes" if end.solved else "",
        "steps": str(end.steps),
        "core_seconds": f"{end.seconds:.1f}",
        "parameters": str(sum(parameter.numel() for parameter in model.parameters())),
        "budget": plan.budget(trial.distance),
    }


def _of(rows: Sequence[Cells], task: Task, candidate: Candidate, plan: Plan) -> dict[int, list]:
    """Distance -> accuracies of all seeds at the model's rate."""
    own = [row for row in rows if (row["task"], row["model"]) == (task.name, candidate.name)]
    if not own:
        return {}
    rate = f"{best_rate(rows, candidate.name, plan):g}"
    found: dict[int, list[float]] = {}
    for row in own:
        if row["lr"] == rate:
            found.setdefault(int(row["distance"]), []).append(float(row["accuracy"]))
    return dict(sorted(found.items()))


def _table(rows: Sequence[Cells], task: Task, plan: Plan) -> dict[str, list[str]]:
    """Columns for `show`: mean and range over the seeds, and how many there are."""
    table: dict[str, list[str]] = {"model": []} | {f"d = {d:,}": [] for d in plan.distances}
    for candidate in CANDIDATES:
        found = _of(rows, task, candidate, plan)
        table["model"].append(candidate.label)
        for distance in plan.distances:
            shares = found.get(distance)
            told = "not run"
            if shares:
                spread = f" ({min(shares):.0%} to {max(shares):.0%})" if len(shares) > 1 else ""
                told = f"{mean(shares):.0%}{spread}"
            table[f"d = {distance:,}"].append(told)
    return table


def _accuracy_picture(rows: Sequence[Cells], plan: Plan):
    """Accuracy against distance, a panel for each task."""
    figure = look.figure(10.5, 4.4)
    panels = figure.subplots(1, 2, sharey=True)
    styles = {"published": "-", "none": "-", "fixed": "--", "spread": "-"}
    colours = {"published": look.INK, "none": look.SHADE, "fixed": look.INK, "spread": look.ACCENT}
    colours |= {"gru": look.COLOURS[3], "gru-far": look.COLOURS[3]}
    colours |= {"lstm": look.COLOURS[4], "lstm-far": look.COLOURS[4]}
    for task, panel in zip(TASKS, panels, strict=True):
        for candidate in CANDIDATES:
            found = _of(rows, task, candidate, plan)
            style = styles.get(candidate.name, "--" if candidate.name.endswith("far") else "-")
            colour = colours[candidate.name]
            means = [100 * mean(shares) for shares in found.values()]
            panel.plot(list(found), means, style, color=colour, label=candidate.label)
            dots = [(d, 100 * share) for d, shares in found.items() for share in shares]
            if dots:
                panel.plot(*zip(*dots), "o", markersize=3, color=colour)
        panel.axhline(100 * task.chance, color="0.5", linestyle=":", label="chance")
        # Without the limits, a panel with no runs yet could have no logarithms.
        panel.set_xlim(plan.distances[0] / 1.3, plan.distances[-1] * 1.3)
        panel.set_xscale("log", base=2)
        panel.set_xticks(plan.distances, [f"{distance:,}" for distance in plan.distances])
        panel.set(title=task.name.capitalize(), xlabel="steps from the symbol to the question")
        panel.set_ylim(0, 103)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("right answers on new sequences, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right center")
    return figure


def _reaches(length: int) -> list[tuple[str, str, torch.Tensor, torch.Tensor | None]]:
    """Label, colour, measured and calculated norms of the starts of training."""
    torch.manual_seed(0)
    wanted = {"none": look.SHADE, "published": look.INK, "spread": look.ACCENT}
    wanted |= {"gru": look.COLOURS[3], "lstm": look.COLOURS[4]}
    found = []
    for candidate in CANDIDATES:
        if colour := wanted.get(candidate.name):
            stack = candidate.build(length)
            is_ours = candidate.name in ("none", "published", "spread")
            calculated = kept(stack, length) if is_ours else None
            label = candidate.label.replace("1 to d", f"1 to {length:,}")
            found.append((label, colour, reach(stack, length, 8), calculated))
    return found


def _reach_picture(reaches: Sequence[tuple[str, str, torch.Tensor, torch.Tensor | None]]):
    """Norm of the gradient against distance, both in logarithms."""
    figure, panel = drawing.lines(
        "Before training: how far back a gradient reaches",
        xlabel="steps back from the last output",
        ylabel="norm of the gradient, 1 at the last input",
    )
    plot = partial(panel.plot, linewidth=1.4)
    for label, colour, measured, calculated in reaches:
        distances = range(1, len(measured))
        plot(distances, measured[1:] / measured[0], color=colour, label=label)
        if calculated is not None:
            plot(distances, calculated[1:], "--", color=colour)
    plot([], [], "--", color="0.4", label="calculated, for the last layer alone")
    panel.set(xscale="log", yscale="log", ylim=(1e-9, 3))
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.set_size_inches(8.5, 4.2)
    return figure
