"""Trains small models to look up what they have read, and draws who can remember how much.

    python -m benchmarks recall                   all mixers
    python -m benchmarks recall hgrn2-64 mingru   some of them
    python -m benchmarks recall --list

The task is multi-query associative recall (benchmarks/probes/recall.py). Every mixer stands in the
same stack, of two layers with 64 channels. The plan (`FULL`) says which learning rates the first
seed tries; the one with the best validation accuracy trains the other seeds. A row is the test
accuracy of one run for one number of pairs.

Every run takes one thread, so two of these commands with different names can share two cores. A run
takes 8 to 16 minutes on one core, that of Mamba 40.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from benchmarks import drawing
from benchmarks.machine import environment
from benchmarks.probes.models import (
    BARE,
    CONTESTANTS,
    Answerer,
    Contestant,
    first_mixer,
    stack_of,
    state_bytes,
)
from benchmarks.probes.questions import Questions
from benchmarks.probes.recall import KEYS, VALUES, VOCABULARY, questions
from benchmarks.probes.training import right_answers, steps
from benchmarks.rows import IMAGES, RESULTS, Cells, Results, read_csv
from benchmarks.telling import show, telling
from hgrn.analysis import look
from hgrn.errors import UserError, near
from hgrn.memory import keep_freed_memory
from hgrn.progress import OnProgress
from hgrn.training.schedules import cosine
from hgrn.training.threads import cpu_threads

_WIDTH = 64
_DEPTH = 2
_WARM_UP = 0.05  # of the steps
# The first number of a generator's seed. The steps of a run are a third number, so nothing that is
# tested was trained on. All runs take the same tests.
_TRAINING = 0
_VALIDATION = 1
_TEST = 2


@dataclass(frozen=True)
class Plan:
    """What every contestant does.

    counts: numbers of pairs. All are learned at once, in equal parts of every batch, so that the
    easy ones lead to the hard ones. steps: of training. each: sequences of a batch for every
    number of pairs. rates: learning rates that the first seed tries. seeds: the others take the
    best rate. tested: sequences of each split for every number of pairs. length: positions of a
    sequence. asked: questions in it.
    """

    counts: tuple[int, ...]
    steps: int
    each: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    tested: int
    length: int
    asked: int

    @property
    def budget(self) -> str:
        """What a run learns from, in words; rows of other budgets are not comparable."""
        return (
            f"{self.steps} steps of {self.each * len(self.counts)} sequences, T={self.length}, "
            f"{self.asked} questions, {KEYS} keys"
        )

    def questions(self, each: int, *seed: int) -> Questions:
        """Sequences of all numbers of pairs."""
        return questions(self.counts, each, seed, length=self.length, asked=self.asked)


@dataclass(frozen=True)
class Outcome:
    """What came of a run: accuracies for every number of pairs, and seconds of a core."""

    validation: dict[int, float]
    test: dict[int, float]
    seconds: float
    parameters: int


COLUMNS = (
    *("mixer", "pairs", "lr", "seed", "budget", "parameters", "state_bytes", "train_seconds"),
    *("validation_accuracy", "test_accuracy", "tested"),
)
KEY = ("mixer", "pairs", "lr", "seed")
FULL = Plan((1, 2, 4, 8, 16, 32), 4000, 5, (4e-3,), (0,), 500, 256, 32)
QUICK = Plan((2, 4), 3, 2, (3e-3, 6e-3), (0, 1), 4, 32, 8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="a mixer (default: all)")
    parser.add_argument("--list", action="store_true", help="name the mixers")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps: to see that it works, not to be quoted"
    )
    parser.add_argument("--again", action="store_true", help="train anew what has rows already")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="of recall.csv (default: benchmarks/results, with --quick benchmarks/quick)",
    )


def run(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Do the runs that have no rows yet, print a table, and draw."""
    plan = QUICK if given.quick else FULL
    out = given.out or (RESULTS.with_name("quick") if given.quick else RESULTS)
    path = out / "recall.csv"
    if given.list:
        done = {row["mixer"] for row in read_csv(path)}
        for each in CONTESTANTS:
            print(f"{each.name:20} {each.label:36} {'begun' if each.name in done else ''}")
        return 0
    keep_freed_memory()
    contestants = chosen(given.names)
    names = {each.name for each in contestants}
    with cpu_threads(1):
        results = Results(path, COLUMNS, KEY)
        # What was measured with another budget cannot stand beside the rest.
        results.forget(
            lambda row: row["budget"] != plan.budget or (given.again and row["mixer"] in names)
        )
        for contestant in contestants:
            measure(contestant, plan, results)
    rows = results.rows()
    show("recall: test accuracy at the best learning rate", _table(rows))
    picture = drawing.save(_picture(rows), (IMAGES if out == RESULTS else out) / "bench_recall.png")
    print(f"written: {path}, {picture}")
    return 0


def chosen(names: Sequence[str]) -> list[Contestant]:
    """The mixers of these names; all if there are none. Raises UserError for an unknown name."""
    known = [each.name for each in CONTESTANTS]
    for name in names:
        if name not in known:
            raise UserError(f"no mixer is called {name!r}{near(name, known)}; --list names them")
    return [each for each in CONTESTANTS if not names or each.name in names]


def measure(contestant: Contestant, plan: Plan, results: Results) -> None:
    """The runs of a mixer: the first seed with every rate, then all seeds with the best."""
    first, *others = plan.seeds
    for rate in plan.rates:
        _do(contestant, plan, rate, first, results)
    best = best_rate(results.rows(), contestant.name)
    for seed in others:
        _do(contestant, plan, float(best), seed, results)


def best_rate(rows: Sequence[Cells], mixer: str) -> str:
    """The rate with which the seed that tried all has the best mean accuracy in validation."""
    own = [row for row in rows if row["mixer"] == mixer]
    # Seeds are compared as numbers: as text, 10 would come before 2.
    searched = [row for row in own if row["seed"] == min((row["seed"] for row in own), key=int)]
    rates = list(dict.fromkeys(row["lr"] for row in searched))
    return max(
        rates,
        key=lambda rate: mean(
            float(row["validation_accuracy"]) for row in searched if row["lr"] == rate
        ),
    )


def _do(contestant: Contestant, plan: Plan, rate: float, seed: int, results: Results) -> None:
    """Train and test, unless the rows are there; they are written when the run ends."""
    title = f"{contestant.name}, learning rate {rate:g}, seed {seed}"
    cells = {"mixer": contestant.name, "lr": f"{rate:g}", "seed": str(seed)}
    if results.has(**cells):
        print(f"{title}: measured before", flush=True)
        return
    # The source may have changed since the last run.
    results.where = environment()
    with telling(title) as tell:
        outcome = trained(contestant, plan, rate, seed, tell)
    results.add(*(cells | row for row in _rows(contestant, plan, outcome)))
    told = ", ".join(f"{pairs} pairs {share:.3f}" for pairs, share in outcome.test.items())
    print(f"{title}: {told} ({outcome.seconds:.0f} s)", flush=True)


def trained(
    contestant: Contestant, plan: Plan, rate: float, seed: int, tell: OnProgress
) -> Outcome:
    """Train a model, and test it."""
    torch.manual_seed(seed)
    model = Answerer(stack_of(contestant, _WIDTH, _DEPTH), VOCABULARY, slice(KEYS, KEYS + VALUES))
    seconds = 0.0
    for step in steps(
        model,
        lambda number: plan.questions(plan.each, _TRAINING, seed, number),
        lambda number: cosine(number, rate, plan.steps + 1, round(_WARM_UP * plan.steps)),
    ):
        seconds = step.seconds
        tell(step.number, plan.steps)
        if step.number == plan.steps:
            break
    return Outcome(
        accuracies(model, plan, _VALIDATION),
        accuracies(model, plan, _TEST),
        seconds,
        sum(parameter.numel() for parameter in model.parameters()),
    )


def accuracies(model: Answerer, plan: Plan, seed: int) -> dict[int, float]:
    """The share of right answers for every number of pairs."""
    right = right_answers(model, plan.questions(plan.tested, seed))
    parts = right.double().split(plan.tested)
    return {pairs: part.mean().item() for pairs, part in zip(plan.counts, parts, strict=True)}


def _rows(contestant: Contestant, plan: Plan, outcome: Outcome) -> list[Cells]:
    """What all rows of a run have in common, and the accuracy for each number of pairs."""
    # How much state a mixer has is what the comparison turns on, so it stands in every row.
    shared = {
        "budget": plan.budget,
        "parameters": str(outcome.parameters),
        "state_bytes": str(state_bytes(first_mixer(stack_of(contestant, _WIDTH, _DEPTH)))),
        "train_seconds": f"{outcome.seconds:.0f}",
        "tested": str(plan.tested * plan.asked),
    }
    return [
        shared
        | {
            "pairs": str(pairs),
            "validation_accuracy": f"{outcome.validation[pairs]:.4f}",
            "test_accuracy": f"{accuracy:.4f}",
        }
        for pairs, accuracy in outcome.test.items()
    ]


def accuracies_of(rows: Sequence[Cells], mixer: str) -> dict[int, list[float]]:
    """Number of pairs -> test accuracies of all seeds at the mixer's best learning rate."""
    best = best_rate(rows, mixer)
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["mixer"] == mixer and row["lr"] == best:
            found.setdefault(int(row["pairs"]), []).append(float(row["test_accuracy"]))
    return dict(sorted(found.items()))


def _table(rows: Sequence[Cells]) -> dict[str, list[str]]:
    """Columns for `show`: for each mixer the mean, and the range where there are several seeds."""
    table: dict[str, list[str]] = {}
    for contestant in _measured(rows):
        own = next(row for row in rows if row["mixer"] == contestant.name)
        cells = {
            "model": contestant.label,
            "rate": best_rate(rows, contestant.name),
            "parameters": f"{int(own['parameters']):,}",
            "state, bytes": f"{int(own['state_bytes']):,}",
        }
        for pairs, shares in accuracies_of(rows, contestant.name).items():
            spread = f" ({min(shares):.3f} to {max(shares):.3f})" if len(shares) > 1 else ""
            cells[f"{pairs} pairs"] = f"{mean(shares):.3f}{spread}"
        for column, cell in cells.items():
            table.setdefault(column, []).append(cell)
    return table


def _measured(rows: Sequence[Cells]) -> list[Contestant]:
    done = {row["mixer"] for row in rows}
    return [each for each in CONTESTANTS if each.name in done]


def _picture(rows: Sequence[Cells]):
    """Accuracy against pairs: a line for the mean of each mixer, and a dot for each seed."""
    figure, panel = drawing.lines(
        "Associative recall: two layers, 64 channels",
        xlabel="pairs to remember",
        ylabel="right answers, test",
    )
    counts = sorted({int(row["pairs"]) for row in rows})
    colours = (*look.COLOURS, look.SHADE)
    kinds = list(dict.fromkeys(each.label.removesuffix(BARE) for each in CONTESTANTS))
    for contestant in _measured(rows):
        found = accuracies_of(rows, contestant.name)
        colour = colours[kinds.index(contestant.label.removesuffix(BARE))]
        style = "--" if contestant.label.endswith(BARE) else "-"
        means = [mean(shares) for shares in found.values()]
        panel.plot(list(found), means, style, color=colour, label=contestant.label)
        dots = [(pairs, share) for pairs, shares in found.items() for share in shares]
        panel.plot(*zip(*dots), "o", markersize=3, color=colour)
    # Who remembers the values, but not which key each belongs to, can only guess among them.
    guesses = [1 / pairs for pairs in counts]
    panel.plot(counts, guesses, ":", color="0.5", label="one of the values, at random")
    panel.set_xscale("log", base=2)
    panel.set_xticks(counts, [str(pairs) for pairs in counts])
    panel.set_ylim(-0.02, 1.02)
    look.finish(panel)
    # The lines cross the whole panel, so their names stand beside it.
    panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.set_size_inches(8.5, 4.2)
    return figure
