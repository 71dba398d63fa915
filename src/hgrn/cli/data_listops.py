"""`hgrn data listops`: write new files of Long Range Arena's ListOps, in the release's format."""

import argparse
from pathlib import Path

from hgrn.cli.options import Parser, add_generator_options

ABOUT = "write new ListOps files, in the format of the release"
MORE = """example:
  hgrn data listops listops --train 10000 --max-length 500 --seed 1
  hgrn train lra/listops-cpu --data.path listops"""

_SPLITS = {"train": 96_000, "validation": 2_000, "test": 2_000}
_LIMITS = {"min-length": 500, "max-length": 2_000, "max-depth": 10, "max-args": 10}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("out", type=Path, help="a new folder")
    add_generator_options(parser, _SPLITS | _LIMITS)


def run(arguments: argparse.Namespace) -> None:
    from hgrn.data.lra.listops_generator import Grammar, generate

    grammar = Grammar(
        arguments.max_depth, arguments.max_args, arguments.min_length, arguments.max_length
    )
    numbers = {split: getattr(arguments, split) for split in _SPLITS}
    report = generate(
        arguments.out, arguments.seed, **numbers, grammar=grammar, processes=arguments.processes
    )
    for split in numbers:
        length = report[split].get("length", {}).get("50%", 0)
        print(
            f"{split}: {report[split]['number']:,} expressions, half of them longer than "
            f"{length:,.0f} tokens"
        )
    print(f"wrote {arguments.out}; its report.json has lengths, depths, operators and answers")
