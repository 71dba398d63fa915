"""`hgrn arena`: make one table of all runs of the Long Range Arena."""

import argparse
from pathlib import Path

from hgrn.cli.options import Parser, add_import

ABOUT = "make one table of all runs of Long Range Arena, beside the paper's numbers"
MORE = """\
Evaluates the newest checkpoint of every run of a recipe lra/* on its test split, and writes the
table to arena.md in the folder. A run whose data is not there is named below the table.

example:
  hgrn arena --runs runs"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="where to look for runs, and to write arena.md (default: runs)",
    )
    add_import(parser)


def run(arguments: argparse.Namespace) -> None:
    from hgrn.cli.arena_table import NAME, arena_table
    from hgrn.progress import Bar

    with Bar("evaluating") as bar:
        rows, absent = arena_table(
            arguments.runs, on_progress=lambda name, done, total: bar(done, total, name)
        )
    for row in rows:
        low, high = row.interval
        paper = "" if row.paper is None else f", paper {row.paper:.2f}%"
        print(
            f"{row.task:24} {row.accuracy:7.2%} ({low:.2%} to {high:.2%}, "
            f"majority {row.majority:.2%}{paper})"
        )
    for line in absent:
        print(line)
    print(f"wrote {arguments.runs / NAME}")
