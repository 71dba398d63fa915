"""The parser of every command, and the kinds of values and options that several commands share."""

import argparse
import importlib
import math
import sys
from pathlib import Path
from typing import Any, NoReturn

from hgrn.errors import UserError, near


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError, and that knows the names of its options.

    takes_overrides: whether words such as `--optimizer.lr 1e-3` set fields of a recipe.
    """

    def __init__(self, **settings: Any):
        # Set before argparse adds --help.
        self.options: list[str] = []
        self.takes_overrides = False
        super().__init__(
            **settings,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # An abbreviation would change its meaning when a new option begins alike.
            allow_abbrev=False,
        )

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an argument as argparse does, and remember the long names of an option."""
        action = super().add_argument(*names, **settings)
        self.options += [name for name in action.option_strings if name.startswith("--")]
        return action

    def error(self, message: str) -> NoReturn:
        """Raise a complaint of argparse as a UserError."""
        if message.endswith("expected one argument"):
            option = message.removeprefix("argument ").partition(":")[0]
            # The usual cause: argparse takes "-1" or "-hello" for an option.
            message += f"; a value that begins with a dash is written as {option}=VALUE"
        raise UserError(f"{message} (see {self.prog} --help)")

    def refuse(self, word: str) -> NoReturn:
        """Raise the UserError for a word that no argument takes."""
        # With their dashes, any two short options look alike.
        alike = [name for name in self.options if near(word.strip("-"), [name.strip("-")])]
        hint = near(word, alike)
        if not hint and self.takes_overrides and word.startswith("--"):
            hint = (
                "; fields of the recipe are set by their dotted names, such as "
                "--optimizer.lr 1e-3: `hgrn recipes NAME` lists them"
            )
        raise UserError(f"unknown argument {word!r}{hint} (see {self.prog} --help)")


def whole(text: str) -> int:
    """The whole number that a word of the command line says."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text[:40]!r}") from None


def number(text: str) -> float:
    """The finite number that a word of the command line says."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # `float` also reads "nan" and "inf", which no option can mean.
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text[:40]!r}")
    return value


def add_import(parser: Parser) -> None:
    """Add the modules to import before anything is built, which may register mixers."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="import this Python module first, from the current folder or as installed: it may "
        "register mixers of yours; can be given several times",
    )


def import_modules(names: list[str]) -> None:
    """Import these modules; the current folder is searched first.

    Raises UserError for a module that does not exist. What a module raises itself is not caught.
    """
    if names and "" not in sys.path:
        sys.path.insert(0, "")
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"--import {name}: there is no module {error.name!r} in the current folder or "
                "among the installed ones; give its dotted name, without .py"
            ) from None


def add_checkpoint(parser: Parser, of: str = "") -> None:
    """Add the place of a saved model. of: which models the command takes, where not all."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help=f"a run folder, one of its checkpoints, or a saved model{of}",
    )
    add_import(parser)


def add_model_options(parser: Parser) -> None:
    """Add the options that say how a saved language model is loaded."""
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="bytes, a name on the Hugging Face hub, or a path "
        "(default: the one that is saved with the model)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="round the weights to 8 bits: a quarter of the memory to read, "
        "so faster one token at a time",
    )


def add_recipe(parser: Parser, of: str = "") -> None:
    """Add a recipe, and let its fields be set. of: which recipes the command takes."""
    parser.add_argument(
        "recipe", help=f"the name of a shipped recipe{of}, or the path of a .yaml file"
    )
    parser.takes_overrides = True
    add_import(parser)


def add_generator_options(parser: Parser, numbers: dict[str, int]) -> None:
    """Add what the generators of Long Range Arena's data share.

    numbers: other options that take a whole number, and their defaults, which are the release's.
    """
    for name, default in numbers.items():
        parser.add_argument(
            f"--{name}",
            type=whole,
            default=default,
            metavar="N",
            help=f"default, as in the release: {default:,}",
        )
    parser.add_argument(
        "--seed", type=whole, default=0, help="other seeds make other data (default: 0)"
    )
    parser.add_argument(
        "--processes",
        type=whole,
        metavar="N",
        help="default: one a core; the data does not depend on it",
    )
