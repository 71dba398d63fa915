"""`hgrn recipes`: list the shipped recipes, or show every field of one with its meaning."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from hgrn.cli.options import Parser
from hgrn.recipes import summaries

if TYPE_CHECKING:
    from hgrn.training.recipe import FieldRow

ABOUT = "list the shipped recipes, or show every field of one"
MORE = """With a name, it shows each field that `hgrn train NAME` can set: its value, what it means, and
its default where the recipe says something else.

examples:
  hgrn recipes
  hgrn recipes lm/text
  hgrn recipes my.yaml --optimizer.lr 1e-3"""

_VALUES = 16  # columns for values; the few longer ones push their line out


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "recipe",
        nargs="?",
        help="the name of a shipped recipe, or the path of a .yaml file (default: list all)",
    )
    parser.takes_overrides = True


def run(arguments: argparse.Namespace) -> None:
    if arguments.recipe is None:
        names = summaries()
        width = max(map(len, names))
        for name, about in names.items():
            print(f"{name:{width}}  {about}")
        print("\n`hgrn recipes NAME` shows every field of one; `hgrn train NAME` trains it.")
        return
    from hgrn.training.recipe import describe, load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    rows = describe(recipe)
    fields = max(len(row.field) for row in rows)
    print(f"{arguments.recipe}: {recipe.about}")
    section = None
    for row in rows:
        if section != (section := row.field.partition(".")[0]):
            print()
        print(f"{row.field:{fields}}  {_text(row.value):{_VALUES}}  {row.meaning}{_default(row)}")


def _default(row: "FieldRow") -> str:
    """What a recipe that does not name this field gets, where that differs from the value."""
    from hgrn.training.recipe.describe import REQUIRED

    if row.default == REQUIRED:
        return "; must be given"
    return "" if row.default == row.value else f" (default: {_text(row.default)})"


def _text(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
