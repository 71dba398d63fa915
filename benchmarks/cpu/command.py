"""Measures speed, memory and quality for time on this CPU, and draws the results.

names, and how long each takes on two cores:
  limits    memory bandwidth and matrix products                           1 minute
  scan      our scans against the bandwidth, and against other packages    4 minutes
  train     training steps against their matrix products, and other models 10 minutes
  decode    one token at a time, beside a Transformer with its cache       1 minute
  hgrn2     training and decoding with HGRN2, against their limits         2 minutes
  mixers    what each token mixer costs, at equal width                    3 minutes
  length    time and memory of up to 262,144 tokens                        5 minutes
  start     import, compilation of kernels, and freed memory               2 minutes
  quality   bits per byte against seconds of training                      2 hours
  context   several processes that share a sequence                        15 minutes
Without a name: all but quality and context.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.cpu import (
    context,
    decoding,
    hgrn2,
    lengths,
    limits,
    mixers,
    pictures,
    quality,
    scans,
    start,
    training,
)
from benchmarks.parts import Part, measure_parts
from benchmarks.rows import IMAGES, RESULTS, Results, environment
from benchmarks.telling import show, show_origin, show_rows
from hgrn.errors import UserError, near
from hgrn.memory import keep_freed_memory

_TIMED: dict[str, Callable[[bool], list[Part]]] = {
    "limits": limits.parts,
    "scan": scans.parts,
    "train": training.parts,
    "decode": decoding.parts,
    "hgrn2": hgrn2.parts,
    "mixers": mixers.parts,
    "length": lengths.parts,
    "start": start.parts,
}
NAMES = (*_TIMED, "quality", "context")
QUICK = RESULTS.with_name("quick")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure (see above)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small shapes and few repeats: to see that it works, not to be quoted",
    )
    parser.add_argument("--again", action="store_true", help="measure anew what has rows already")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the CSV files go (default: benchmarks/results, with --quick benchmarks/quick)",
    )
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="FOLDER",
        help="where the pictures go (default: docs/images, with --quick or --out as --out)",
    )


def run(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Measure, print a table, and draw, one name after the other."""
    for name in given.names:
        if name not in NAMES:
            known = near(name, NAMES) or f"; choose from {', '.join(NAMES)}"
            raise UserError(f"no benchmark is called {name!r}{known}")
    kept = keep_freed_memory()
    print("freed memory is kept, as when hgrn trains" if kept else "freed memory is given back")
    where = environment()
    show_origin(where)
    out = given.out or (QUICK if given.quick else RESULTS)
    # The pages' pictures belong to the published rows, so other rows are drawn beside themselves.
    plots = given.plots or (IMAGES if out == RESULTS else out)
    written = []
    # A name that is given twice counts once.
    for name in dict.fromkeys(given.names or _TIMED):
        path = out / f"{name}.csv"
        if name == "quality":
            results = Results(path, quality.COLUMNS, quality.KEY, where)
            plan = quality.QUICK if given.quick else quality.FULL
            quality.measure(results, plan, given.again)
            show(name, quality.table(results.rows()))
        elif name == "context":
            results = Results(path, context.COLUMNS, context.KEY, where)
            context.measure(results, given.quick, given.again)
            rows = results.rows()
            show(name, {column: [row[column] for row in rows] for column in context.COLUMNS})
        else:
            results = Results(path, where=where)
            show_rows(name, measure_parts(_TIMED[name](given.quick), results, given.again))
        written += [path, *pictures.draw(name, results.rows(), plots)]
    print("written: " + ", ".join(map(str, written)))
    return 0
