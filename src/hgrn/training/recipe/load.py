"""Reads, checks and writes recipes.

A recipe comes from a YAML file (a shipped one by its name, your own by its path) and from dotted
overrides. `load_recipe` finds all problems before anything starts, and reports them together.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hgrn import recipes
from hgrn.errors import UserError
from hgrn.training.recipe.kinds import Recipe, kind_of
from hgrn.training.recipe.overrides import override
from hgrn.training.recipe.plain_yaml import read_yaml
from hgrn.training.recipe.problems import (
    Problem,
    choice_of,
    problems_of,
    problems_of_values,
    report,
)


def load_recipe(
    name_or_path: str | Path, overrides: dict[str, Any] | None = None, *, new_run: bool = True
) -> Recipe:
    """The recipe of a shipped name or of a YAML file (a path that ends in .yaml or .yml), with
    overrides.

    `overrides` maps dotted keys ("optimizer.lr") to values. A string is read as YAML ("1e-3",
    "[a, b]"), unless the field holds text. One value for a list is a list of one. null, ~ and none
    are null for every field that may be null. new_run=False does not ask whether the data and the
    weights that the recipe names are there. Raises UserError that lists all problems.
    """
    document = _read(name_or_path)
    # The kind says which fields there are, and so how a text on the command line is read.
    kind = kind_of(document)
    found = []
    for key, value in (overrides or {}).items():
        found += override(document, Recipe if isinstance(kind, Problem) else kind, key, value)
    # Once more, because an override may have changed the task.
    kind = kind_of(document)
    if isinstance(kind, Problem):
        raise UserError(report(f"recipe {name_or_path}", [*found, kind]))
    recipe = None
    try:
        recipe = _validated(kind, document, new_run=new_run)
    except ValidationError as error:
        found += problems_of(error, kind)
    # An override may have reported an empty text already.
    found += [problem for problem in problems_of_values(document) if problem not in found]
    if recipe is None or found:
        raise UserError(report(f"recipe {name_or_path}", found))
    return recipe


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out; `recipe_from_yaml` and `load_recipe` read it back
    equal."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )


def recipe_from_yaml(file: Path) -> Recipe:
    """The recipe that `recipe_to_yaml` wrote into `file`; its data may be gone.

    Raises UserError.
    """
    try:
        document = read_yaml(file)
        if not isinstance(document, dict):
            raise ValueError(f"it is a {type(document).__name__}, not a mapping of sections")
        kind = kind_of(document)
        if isinstance(kind, Problem):
            raise ValueError(f"{kind.path} {kind.rule}")
        return _validated(kind, document, new_run=False)
    except ValueError as error:
        raise UserError(
            f"{file} is not a recipe that this version of hgrn saved: {error}"
        ) from error


def _validated(kind: type[Recipe], document: dict, *, new_run: bool) -> Recipe:
    """The recipe of a document. new_run: see `is_new_run`. Raises ValidationError.

    pydantic reads it as JSON, because only then does its strict reading take a list for a tuple.
    A strict reading is wanted, since a lax one takes `true` for a number and `1` for true.
    """
    return kind.model_validate_json(json.dumps(document, default=str), context={"new_run": new_run})


def _read(name_or_path: str | Path) -> dict:
    """The plain dictionary in a shipped or a user's YAML file."""
    name = str(name_or_path)
    shipped = recipes.shipped()
    if name.endswith((".yaml", ".yml")):
        file = Path(name)
        if not file.is_file():
            raise UserError(
                f"no recipe file {name}: give an existing .yaml file or the name of a shipped "
                f"recipe ({', '.join(shipped)})"
            )
    elif name in shipped:
        file = shipped[name]
    else:
        raise UserError(
            f"no shipped recipe is called {name!r}{choice_of(name, shipped)} (your own end in "
            ".yaml)"
        )
    try:
        document = read_yaml(file)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"recipe {name} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise UserError(
            f"recipe {name} must be a mapping of sections (model, data, ...), not "
            f"{type(document).__name__}"
        )
    return document
