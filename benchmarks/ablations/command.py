"""Trains HGRN without each of its parts, and draws what each part is worth.

    python -m benchmarks ablations                          all variants on Shakespeare's works
    python -m benchmarks ablations --data sotu=sotu.jsonl.gz   and five of them on the addresses
    python -m benchmarks ablations --list                   the variants and their equations

All variants of a text train for equally many steps, as the shipped recipe does but for its length,
with three seeds. A row is the bits per byte of one run on the whole validation split. The paper's
figures for WikiText-103 stand beside ours where it gives them; they are of other data and 250 times
the training, so only the order can be compared.

Every run takes one thread. Two of these commands share two cores with --share 1/2 and --share 2/2.
"""

import argparse
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import drawing
from benchmarks.ablations.variants import SETTINGS, Setting, Variant, variants
from benchmarks.machine import environment
from benchmarks.probes.sharing import add_share, share_of
from benchmarks.rows import IMAGES, RESULTS, Cells, Results
from benchmarks.telling import show
from hgrn.analysis import look
from hgrn.errors import UserError
from hgrn.memory import keep_freed_memory
from hgrn.training.loop import train
from hgrn.training.recipe import load_recipe
from hgrn.training.runlog import Console, read_rows
from hgrn.training.tasks import build_task
from hgrn.training.tasks.base import Task

COLUMNS = (
    *("data", "variant", "seed", "bits_per_byte", "steps", "tokens"),
    *("parameters", "equation", "command"),
)
KEY = ("data", "variant", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_share(parser)
    parser.add_argument("--list", action="store_true", help="name the variants")
    parser.add_argument("--draw", action="store_true", help="train nothing")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="KEY=PATH",
        help="a text that is not in the package, such as sotu=sotu.jsonl.gz",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/ablations"), help="where runs are saved"
    )
    parser.add_argument(
        "--quick", action="store_true", help="moments: to see that it works, not to be quoted"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="of ablations.csv (default: benchmarks/results, with --quick benchmarks/quick)",
    )


def run(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Train what has no row yet, print a table for each text, and draw."""
    if given.list:
        for name, variant in variants(4).items():
            print(f"{name:20} {variant.equation}")
        return 0
    out = given.out or (RESULTS.with_name("quick") if given.quick else RESULTS)
    data = _data(given.data)
    keep_freed_memory()
    results = Results(out / "ablations.csv", COLUMNS, KEY)
    for setting in SETTINGS:
        if given.draw or (setting.data is not None and setting.data not in data):
            continue
        known = variants(setting.depth)
        # Seed after seed, so that an early end leaves all variants with fewer seeds.
        for seed in setting.seeds[:1] if given.quick else setting.seeds:
            for name in share_of(setting.names, given.share, parser):
                _do(setting, known[name], seed, data, given, results)
    rows = results.rows()
    folder = IMAGES if out == RESULTS else out
    for setting in SETTINGS:
        if any(row["data"] == setting.name for row in rows):
            show(f"{setting.title}: bits per byte, validation", table(rows, setting))
            picture = drawing.save(
                _picture(rows, setting), folder / f"bench_ablations_{setting.name}.png"
            )
            print(f"written: {results.path}, {picture}")
    return 0


def _data(given: Sequence[str]) -> dict[str, str]:
    known = [setting.data for setting in SETTINGS if setting.data]
    for pair in given:
        if pair.partition("=")[0] not in known:
            raise UserError(f"--data must be like {known[0]}=PATH, got {pair!r}")
    return dict(pair.split("=", 1) for pair in given)


def _do(
    setting: Setting,
    variant: Variant,
    seed: int,
    data: dict[str, str],
    given: argparse.Namespace,
    results: Results,
) -> None:
    """Train and measure, unless the row is there; a run that was stopped goes on."""
    cells = {"data": setting.name, "variant": variant.name, "seed": str(seed)}
    if results.has(**cells):
        return
    results.where = environment()
    changes = dict(setting.changes) | dict(variant.changes)
    if setting.data is not None:
        changes["data.files"] = [data[setting.data]]
    if given.quick:
        changes |= {"training.steps": 2, "schedule.warmup_steps": 1, "model.hidden_size": 8}
    steps = changes["training.steps"]
    changes |= {
        "training.threads": 1,
        "training.seed": seed,
        "training.eval_every": steps,
        "training.save_every": steps,
        # All of the split: a part of it would add to the noise that variants are compared in.
        "training.eval_tokens": 2000 if given.quick else None,
    }
    folder = given.runs / setting.name / f"{variant.name}-{seed}"
    results.add(cells | trained(setting, variant, changes, folder))


def trained(setting: Setting, variant: Variant, changes: dict[str, Any], folder: Path) -> Cells:
    """Train a run, or go on with it; the cells that its key lacks.

    Raises KeyboardInterrupt if a signal stopped the training, which has saved by then.
    """
    tasks: list[Task] = []

    def make_task(*arguments: Any) -> Task:
        tasks.append(build_task(*arguments))
        return tasks[0]

    recipe = load_recipe(setting.recipe, changes)
    with Console() as console:
        outcome = train(recipe, folder, resume=True, on_event=console, make_task=make_task)
    if outcome.interrupted:
        raise KeyboardInterrupt
    rows = read_rows(folder / "log.jsonl")
    last = [row for row in rows if row["kind"] == "train"][-1]
    validation = [row for row in rows if row["kind"] == "validation"][-1]
    parameters = tasks[0].model.parameters()
    return {
        "bits_per_byte": f"{validation['bits_per_byte']:.4f}",
        "steps": str(outcome.steps),
        "tokens": str(last["tokens"]),
        "parameters": str(sum(parameter.numel() for parameter in parameters)),
        "equation": variant.equation,
        "command": "python -m benchmarks ablations"
        + (f" --data {setting.data}=PATH" if setting.data else ""),
    }


def _found(rows: Sequence[Cells], setting: Setting) -> dict[str, list[Cells]]:
    """The rows of each variant that has some, in order."""
    own = [row for row in rows if row["data"] == setting.name]
    found = {name: [row for row in own if row["variant"] == name] for name in setting.names}
    return {name: of_one for name, of_one in found.items() if of_one}


def table(rows: Sequence[Cells], setting: Setting) -> dict[str, list[str]]:
    """Columns for `show`: mean, range, and the difference from HGRN with its standard error."""
    found = _found(rows, setting)
    known = variants(setting.depth)
    full = [float(row["bits_per_byte"]) for row in found.get("full", [])]
    columns: dict[str, list[str]] = {}
    for name, own in found.items():
        bits = [float(row["bits_per_byte"]) for row in own]
        cells = {
            "variant": known[name].label,
            "equation": known[name].equation,
            "bits per byte": f"{mean(bits):.3f}",
            "range": f"{min(bits):.3f} to {max(bits):.3f}",
            "seeds": str(len(bits)),
            "from HGRN": "" if name == "full" or not full else difference(bits, full),
            "parameters": f"{int(own[0]['parameters']):,}",
        }
        if setting.published:
            cells["paper, perplexity on WikiText-103"] = f"{setting.published[name]:.2f}"
        for column, cell in cells.items():
            columns.setdefault(column, []).append(cell)
    return columns


def difference(bits: Sequence[float], full: Sequence[float]) -> str:
    """The difference of two means, with its standard error where there are several seeds."""
    told = f"{mean(bits) - mean(full):+.3f}"
    if len(bits) < 2 or len(full) < 2:
        return told
    error = sqrt(sum(stdev(values) ** 2 / len(values) for values in (bits, full)))
    return f"{told} ± {error:.3f}"


def _picture(rows: Sequence[Cells], setting: Setting):
    """A row for each variant, best first: a dot for every seed, a line for the mean."""
    found = _found(rows, setting)
    known = variants(setting.depth)
    bits = {name: [float(row["bits_per_byte"]) for row in own] for name, own in found.items()}
    names = sorted(bits, key=lambda name: mean(bits[name]), reverse=True)
    figure, panel = drawing.lines(
        f"Without parts of HGRN: {setting.title}",
        xlabel="bits per byte on the validation split (less is better)",
    )
    for place, name in enumerate(names):
        colour = look.ACCENT if name == "full" else look.INK
        panel.plot(bits[name], [place] * len(bits[name]), "o", markersize=4, color=colour)
        panel.plot([mean(bits[name])] * 2, [place - 0.3, place + 0.3], color=colour)
    if "full" in bits:
        panel.axvline(mean(bits["full"]), color=look.ACCENT, linestyle=":", linewidth=1)
    panel.set_yticks(range(len(names)), [known[name].label for name in names])
    panel.grid(alpha=0.25, axis="x")
    return figure
