"""How two processes share the runs of one command, each with its own models."""

import argparse
from collections.abc import Sequence
from typing import TypeVar

Model = TypeVar("Model")


def add_share(parser: argparse.ArgumentParser) -> None:
    """The option --share."""
    parser.add_argument(
        "--share", default="1/1", metavar="K/N", help="run only the k-th of N parts of the models"
    )


def share_of(
    models: Sequence[Model], text: str, parser: argparse.ArgumentParser
) -> Sequence[Model]:
    """The models of the part `text`, such as "1/2": every second one from the first on."""
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        parser.error(f"--share must be like 1/2, the first of two parts, got {text!r}")
    return models[int(number) - 1 :: int(parts)]
