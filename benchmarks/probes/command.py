"""Asks what models can and cannot do: count parity, copy, look up; and at longer lengths as well.

    python -m benchmarks probes             all runs, about 60 minutes on two cores (see --share)
    python -m benchmarks probes --draw      the table and the picture of what is there

Three tasks (benchmarks/probes/questions.py and recall.py). Each is learned at one length and tested
at 1, 2, 4, 8 and 16 times that length:

    parity   64 bits; tested are the answers at the last 64
    copying  1 to 16 symbols
    recall   8 pairs of a key and a value, asked for 16 times within 64 tokens

Nine mixers stand in the same stack of two layers with 64 channels, each behind a convolution of 4
taps: HGRN real and complex, HGRN2, minGRU, fixed decay, Mamba, GRU, LSTM, and attention with rotary
positions. Every run learns from new sequences until 99 % of its last answers are right, or for
1,000 steps of 64 sequences.

Every run takes one thread. Two of these commands share two cores with --share 1/2 and --share 2/2.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from benchmarks import drawing
from benchmarks.machine import environment
from benchmarks.probes.models import CLASSICS, CONTESTANTS, Answerer, Contestant, stack_of
from benchmarks.probes.questions import COPYING, PARITY, Questions, Task
from benchmarks.probes.recall import KEYS, VALUES, VOCABULARY, questions
from benchmarks.probes.sharing import add_share, share_of
from benchmarks.probes.training import SOLVED, right_answers, until_solved
from benchmarks.rows import IMAGES, RESULTS, Cells, Results
from benchmarks.telling import show, telling
from hgrn.analysis import look
from hgrn.memory import keep_freed_memory
from hgrn.progress import OnProgress
from hgrn.training.threads import cpu_threads

COLUMNS = (
    *("task", "model", "seed", "times", "length", "accuracy", "solved", "steps", "core_seconds"),
    *("parameters", "lr", "budget"),
)
KEY = ("task", "model", "seed", "times")
TIMES = (1, 2, 4, 8, 16)
_NAMES = ("hgrn-complex", "hgrn-real", "hgrn2-16", "mingru", "fixed-decay-16", "mamba")
MODELS = (*(c for name in _NAMES for c in CONTESTANTS if c.name == name), *CLASSICS)
_WIDTH = 64
_DEPTH = 2
_RATE = 3e-3
_TRAINING = 0
_TEST = 1


def _recall(length: int, sequences: int, seed: Sequence[int]) -> Questions:
    return questions([8], sequences, seed, length=length, asked=16)


RECALL = Task("recall", VOCABULARY, slice(KEYS, KEYS + VALUES), 1 / VALUES, _recall)


@dataclass(frozen=True)
class Probe:
    """task: what is asked. length: in training. counted: answers at the end of a sequence that a
    test counts; None counts all. shorter: whether training draws lengths up to `length`."""

    task: Task
    length: int
    counted: int | None = None
    shorter: bool = False

    def trained_on(self, seed: int, sequences: int) -> Callable[[int], Questions]:
        """The questions of each step."""

        def draw(number: int) -> Questions:
            length = self.length
            if self.shorter:
                length = int(np.random.default_rng([_TRAINING, seed, number]).integers(length)) + 1
            return self.task.draw(length, sequences, (_TRAINING, seed, number))

        return draw

    def tested_on(self, times: int, sequences: int) -> Questions:
        """New questions at so many times the length."""
        asked = self.task.draw(times * self.length, sequences, (_TEST,))
        if self.counted is None:
            return asked
        last = slice(-self.counted, None)
        return asked._replace(places=asked.places[:, last], values=asked.values[:, last])


PROBES = (Probe(PARITY, 64, counted=64), Probe(COPYING, 16, shorter=True), Probe(RECALL, 64))


@dataclass(frozen=True)
class Plan:
    """steps: the most of a run. sequences: of a step. tested: sequences of a test."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1000
    sequences: int = 64
    tested: int = 64

    @property
    def budget(self) -> str:
        """What a run learns from, in words; rows of other budgets are not comparable."""
        return f"until {SOLVED:.0%} of 256 answers, at most {self.steps} steps"


FULL = Plan()
QUICK = Plan((0,), 2, 4, 4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_share(parser)
    parser.add_argument("--draw", action="store_true", help="train nothing")
    parser.add_argument(
        "--quick", action="store_true", help="moments: to see that it works, not to be quoted"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="of probes.csv (default: benchmarks/results, with --quick benchmarks/quick)",
    )


def run(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Do the runs that have no rows yet, print a table for each task, and draw."""
    plan = QUICK if given.quick else FULL
    probes = tuple(replace(probe, length=32) for probe in PROBES) if given.quick else PROBES
    out = given.out or (RESULTS.with_name("quick") if given.quick else RESULTS)
    mine = share_of(MODELS, given.share, parser)
    keep_freed_memory()
    results = Results(out / "probes.csv", COLUMNS, KEY)
    if not given.draw:
        results.forget(lambda row: row["budget"] != plan.budget)
        with cpu_threads(1):
            for seed in plan.seeds:
                for model in mine:
                    for probe in probes:
                        _do(probe, model, seed, plan, results)
    rows = results.rows()
    for probe in probes:
        show(
            f"{probe.task.name}: right answers at times the trained length of {probe.length} "
            f"(chance {probe.task.chance:.0%})",
            _table(rows, probe.task),
        )
    folder = IMAGES if out == RESULTS else out
    picture = drawing.save(_picture(rows, probes), folder / "bench_probes.png")
    print(f"written: {results.path}, {picture}")
    return 0


def _do(probe: Probe, model: Contestant, seed: int, plan: Plan, results: Results) -> None:
    """Train and test, unless the rows are there; they are written when the run ends."""
    cells = {"task": probe.task.name, "model": model.name, "seed": str(seed)}
    if results.has(**cells):
        return
    results.where = environment()
    title = ", ".join(cells.values())
    with telling(title) as tell:
        rows = trained(probe, model, seed, plan, tell)
    results.add(*(cells | row for row in rows))
    told = ", ".join(f"{float(row['accuracy']):.0%}" for row in rows)
    print(f"{title}: {told} in {rows[0]['core_seconds']} s", flush=True)


def trained(
    probe: Probe, contestant: Contestant, seed: int, plan: Plan, tell: OnProgress
) -> list[Cells]:
    """Train, and test at every length; a row for each."""
    torch.manual_seed(seed)
    task = probe.task
    model = Answerer(stack_of(contestant, _WIDTH, _DEPTH), task.vocabulary, task.answers)
    end = until_solved(model, probe.trained_on(seed, plan.sequences), _RATE, plan.steps, tell)
    rows = []
    for times in TIMES:
        asked = probe.tested_on(times, plan.tested)
        right = right_answers(model, asked, together=max(1, plan.tested // times))
        rows.append(
            {
                "times": str(times),
                "length": str(times * probe.length),
                "accuracy": f"{right.double().mean().item():.4f}",
                "solved": "yes" if end.solved else "",
                "steps": str(end.steps),
                "core_seconds": f"{end.seconds:.1f}",
                "parameters": str(sum(part.numel() for part in model.parameters())),
                "lr": f"{_RATE:g}",
                "budget": plan.budget,
            }
        )
    return rows


def _of(rows: Sequence[Cells], task: Task, model: Contestant) -> list[Cells]:
    return [row for row in rows if (row["task"], row["model"]) == (task.name, model.name)]


def _table(rows: Sequence[Cells], task: Task) -> dict[str, list[str]]:
    """Columns for `show`: mean accuracy at each length, with the range of the seeds."""
    columns = ["model", *(f"x {times}" for times in TIMES), "seeds", "solved", "core s"]
    table: dict[str, list[str]] = {column: [] for column in [*columns, "parameters"]}
    for model in MODELS:
        own = _of(rows, task, model)
        if not own:
            continue
        first = [row for row in own if row["times"] == "1"]
        table["model"].append(model.label)
        for times in TIMES:
            shares = [float(row["accuracy"]) for row in own if row["times"] == str(times)]
            spread = f" ({min(shares):.0%} to {max(shares):.0%})" if len(shares) > 1 else ""
            table[f"x {times}"].append(f"{mean(shares):.0%}{spread}")
        table["seeds"].append(str(len(first)))
        table["solved"].append(str(sum(bool(row["solved"]) for row in first)))
        table["core s"].append(f"{mean(float(row['core_seconds']) for row in first):.0f}")
        table["parameters"].append(f"{int(first[0]['parameters']):,}")
    return table


def _picture(rows: Sequence[Cells], probes: Sequence[Probe]):
    """A panel for each task: accuracy against the length of the test."""
    figure = look.figure(12, 4.2)
    panels = figure.subplots(1, len(probes), sharey=True)
    colours = (*look.COLOURS, "0.2", "0.6", look.SHADE)
    for probe, panel in zip(probes, panels, strict=True):
        for colour, model in zip(colours, MODELS, strict=True):
            own = _of(rows, probe.task, model)
            found = {
                times: [100 * float(row["accuracy"]) for row in own if row["times"] == str(times)]
                for times in TIMES
            }
            if not own:
                continue
            style = "-" if model.name.startswith("hgrn") else "--"
            means = [mean(shares) for shares in found.values()]
            panel.plot(TIMES, means, style, color=colour, label=model.label)
            dots = [(times, share) for times, shares in found.items() for share in shares]
            panel.plot(*zip(*dots), "o", markersize=3, color=colour)
        panel.axhline(100 * probe.task.chance, color="0.5", linestyle=":", label="chance")
        # Without the limits, a panel with no runs yet could have no logarithms.
        panel.set_xlim(TIMES[0] / 1.2, TIMES[-1] * 1.2)
        panel.set_xscale("log", base=2)
        panel.set_xticks(TIMES, [f"{times * probe.length:,}" for times in TIMES])
        panel.set(
            title=f"{probe.task.name.capitalize()}, trained at {probe.length}",
            xlabel="length of the test, tokens",
            ylim=(0, 103),
        )
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("right answers on new sequences, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right center")
    return figure
