"""Recipes: everything that defines a training run, read, checked, written and compared.

A recipe (`specs` says what it holds) comes from a YAML file (a shipped one by name, anyone's by path) and dotted
overrides. `load_recipe` finds all of its problems before anything starts and reports them together.
"""

import json
from fnmatch import fnmatchcase
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from hgrn.errors import UserError
from hgrn.training.combinations import combination_problems
from hgrn.training.plain_yaml import parse_yaml, read_yaml
from hgrn.training.problems import (
    UNKNOWN_KEY,
    Problem,
    choice_of,
    describe,
    numbers_out_of_range,
    report,
    takes_null,
    takes_text,
    type_at,
)
from hgrn.training.specs import Recipe, recipe_type


def shipped_recipes() -> list[str]:
    """The names of the recipes inside the package, such as "quickstart" and "lm/wikitext103"."""
    return sorted(_shipped())


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a shipped name or of a YAML file (a path ending in .yaml or .yml), with overrides.

    `overrides` maps dotted keys ("optimizer.lr") to values; a string is read as YAML ("1e-3", "[a, b]"),
    unless the field holds text, and one value for a list is a list of one. null, ~ and none are null for every
    field that may be null. UserError lists all problems.
    """
    document = _read(name_or_path)
    found = []
    kind = recipe_type(document)
    for key, value in (overrides or {}).items():
        found += _override(
            document, Recipe if isinstance(kind, Problem) else kind, key.split("."), value
        )
    recipe, wrong = check(document)
    if found or wrong:
        raise UserError(report(f"recipe {name_or_path}", found + wrong))
    return recipe


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out; `recipe_from_yaml` and `load_recipe` read it back equal."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )


def recipe_from_yaml(file: Path) -> Recipe:
    """The recipe that `recipe_to_yaml` wrote into `file`; its data may be gone. Raises UserError."""
    try:
        document = read_yaml(file)
        if not isinstance(document, dict):
            raise ValueError(f"it is a {type(document).__name__}, not a mapping of sections")
        kind = recipe_type(document)
        if isinstance(kind, Problem):
            raise ValueError(f"{kind.path} {kind.rule}")
        return kind.model_validate_json(json.dumps(document))
    except ValueError as error:
        raise UserError(
            f"{file} is not a recipe that this version of hgrn saved: {error}"
        ) from error


def check(document: dict) -> tuple[Recipe | None, list[Problem]]:
    """The recipe that a nested dictionary of plain values describes, or None, and its problems.

    Unknown keys are struck out and sections that are wrong are left out before combinations are judged, so
    that no mistake hides another.
    """
    document = json.loads(json.dumps(document, default=str))
    found = []
    kind = recipe_type(document)
    if isinstance(kind, Problem):
        return None, [kind]
    errors = _errors(kind, document)
    for error in [error for error in errors if error["type"] in UNKNOWN_KEY]:
        found.append(describe(kind, error))
        section = document
        for key in error["loc"][:-1]:
            section = section[key]
        section.pop(error["loc"][-1])
    errors = [error for error in errors if error["type"] not in UNKNOWN_KEY]
    found += [describe(kind, error) for error in errors]
    found += _empty_texts(document)
    wrong = {error["loc"][0] for error in errors}
    sections = {
        name: TypeAdapter(kind.model_fields[name].annotation).validate_json(json.dumps(value))
        for name, value in document.items()
        if name not in wrong
    }
    found += combination_problems(kind, sections)
    said = {problem.path for problem in found}
    found += [problem for problem in numbers_out_of_range(document) if problem.path not in said]
    return (None if found else kind.model_validate_json(json.dumps(document))), found


_NULLS = ("null", "~", "none")
_FOR_EMPTY = "give a value, or leave it out; null where it may be null"

_FREE_TO_CHANGE = (
    "name",
    "about",
    "target*",
    "data.files",
    "data.path",
    "data.cache",
    "data.splits.train.files",
    "data.splits.validation*",
    "data.splits.test*",
    "training.eval_every",
    "training.eval_tokens",
    "training.save_every",
    "training.keep",
    "training.log_every",
    "training.threads",
    "images.workers",
    "images.max_corrupt",
    "batch.accumulation",
    "parallel*",
)


def blocking_changes(saved: Recipe, now: Recipe) -> list[str]:
    """How `now` differs from the recipe that a checkpoint was saved under, in what decides the weights.

    Names, bookkeeping, validation, threads and how a batch is shared out may change, and so may the path of the
    training data, whose content the checkpoint's fingerprint holds; the run may get longer if its learning rate
    does not depend on the length: a cosine's does, unless it has an end of its own (`schedule.total_steps`).
    """
    before = leaves(saved.model_dump(mode="json"))
    after = leaves(now.model_dump(mode="json"))
    free = list(_FREE_TO_CHANGE)
    if now.training.steps >= saved.training.steps and _end_of_rate(now) == _end_of_rate(saved):
        free += ["training.steps", "schedule.total_steps"]
    return [
        f"{key}: {before.get(key)!r} in the checkpoint, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not any(fnmatchcase(key, pattern) for pattern in free)
    ]


def can_be_longer(recipe: Recipe) -> bool:
    """Whether a run of this recipe may be resumed with more `training.steps`."""
    return _end_of_rate(recipe) is None or recipe.schedule.total_steps is not None


def _end_of_rate(recipe: Recipe) -> int | None:
    """The step at which the learning rate has come to its end; None where the schedule has no end."""
    if recipe.schedule.name != "cosine":
        return None
    return recipe.schedule.total_steps or recipe.training.steps


def leaves(document: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of everything in nested dictionaries; lists are values."""
    if not isinstance(document, dict):
        return {prefix: document}
    found = {}
    for key, value in document.items():
        found |= leaves(value, f"{prefix}.{key}" if prefix else key)
    return found


def _shipped() -> dict[str, Any]:
    """Name -> the file inside the package."""
    root = package_files("hgrn") / "recipes"
    found = {}
    for entry in root.iterdir():
        inside = (
            [(f"{entry.name}/", file) for file in entry.iterdir()]
            if entry.is_dir()
            else [("", entry)]
        )
        found |= {
            prefix + file.name.removesuffix(".yaml"): file
            for prefix, file in inside
            if file.name.endswith(".yaml")
        }
    return found


def _read(name_or_path: str | Path) -> dict:
    """The plain dictionary in a shipped or a user's YAML file."""
    name = str(name_or_path)
    shipped = _shipped()
    if name.endswith((".yaml", ".yml")):
        file = Path(name)
        if not file.is_file():
            raise UserError(
                f"no recipe file {name}: give an existing .yaml file or the name of a shipped recipe "
                f"({', '.join(sorted(shipped))})"
            )
    elif name in shipped:
        file = shipped[name]
    else:
        raise UserError(
            f"no shipped recipe is called {name!r}{choice_of(name, shipped)} (your own end in .yaml)"
        )
    try:
        document = read_yaml(file)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"recipe {name} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise UserError(
            f"recipe {name} must be a mapping of sections (model, data, ...), not {type(document).__name__}"
        )
    return document


def _override(document: dict, root: type[Recipe], path: list[str], value: Any) -> list[Problem]:
    """Set one dotted key of the document of a recipe of type `root` in place."""
    kind = type_at(root, path)
    is_word = isinstance(value, str) and value in get_args(kind)  # such as no_decay: none
    is_null = isinstance(value, str) and value.strip().lower() in _NULLS and not is_word
    if is_null and takes_null(root, path):
        value = None
    elif is_null and kind is str:
        remedy = "leave it out, or give another value"
        return [Problem(".".join(path), value, "must be text, and cannot be null", remedy)]
    elif isinstance(value, str) and not takes_text(kind):
        is_list = get_origin(kind) in (tuple, list)
        keep_text = is_list and takes_text(type_at(kind, [0])) and not value.startswith("[")
        if not (keep_text or value.strip()):
            return [Problem(".".join(path), value, "is empty", _FOR_EMPTY)]
        try:
            value = value if keep_text else parse_yaml(value)
        except ValueError:
            return [
                Problem(".".join(path), value, "not a YAML value", "close every bracket and quote")
            ]
        if is_list and isinstance(value, str | int | float):
            value = [value]
    section = document
    for depth, key in enumerate(path[:-1], 1):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            rule = f"{'.'.join(path[:depth])} is a value, not a section"
            return [Problem(".".join(path), value, rule, "shorten the key")]
    section[path[-1]] = value
    return []


def _empty_texts(document: dict) -> list[Problem]:
    """An empty path would be the current folder, and comes from a $VARIABLE that is not set."""
    return [
        Problem(key, value, "is empty", _FOR_EMPTY)
        for key, value in leaves(document).items()
        if isinstance(value, str) and not value.strip() and key != "about"
    ]


def _errors(kind: type[Recipe], document: dict) -> list[dict]:
    """What pydantic finds; as JSON, because only there a strict reading takes a list for a tuple."""
    try:
        kind.model_validate_json(json.dumps(document))
    except ValidationError as error:
        return error.errors(include_url=False, include_context=False)
    return []
