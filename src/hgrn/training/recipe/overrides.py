"""Values from the command line: one dotted key of a recipe's document is set."""

from typing import Any, get_args

from hgrn.training.recipe.field_types import takes_list, takes_null, takes_text, type_at
from hgrn.training.recipe.plain_yaml import parse_yaml
from hgrn.training.recipe.problems import FOR_EMPTY, Problem

_NULLS = ("null", "~", "none")


def override(document: dict, kind: type, key: str, value: Any) -> list[Problem]:
    """Set one dotted key in the document of a recipe of a kind; what is wrong with that, if
    anything."""
    path = key.split(".")
    try:
        value = _as_field(value, kind, path)
    except _NotAValueError as error:
        return [Problem(key, value, str(error), error.remedy)]
    section = document
    for depth, part in enumerate(path[:-1], 1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            rule = f"{'.'.join(path[:depth])} is a value, not a section"
            return [Problem(key, value, rule, "shorten the key")]
    section[path[-1]] = value
    return []


class _NotAValueError(ValueError):
    """A text that cannot be the value of its field."""

    def __init__(self, rule: str, remedy: str):
        super().__init__(rule)
        self.remedy = remedy


def _as_field(value: Any, kind: type, path: list[str]) -> Any:
    """The value that a word of the command line stands for in its field; other values as they
    are."""
    if not isinstance(value, str):
        return value
    field = type_at(kind, path)
    # A field may know one of these words, such as `optimizer.no_decay: none`.
    if value.strip().lower() in _NULLS and value not in get_args(field):
        if takes_null(kind, path):
            return None
        if field is str:
            remedy = "leave it out, or give another value"
            raise _NotAValueError("must be text, and cannot be null", remedy)
    if takes_text(field):
        return value
    # Names of files are taken as they are: a file may be called 1999 or a: b.
    is_list_of_text = takes_list(field) and takes_text(type_at(field, [0]))
    if is_list_of_text and not value.startswith("["):
        return [value]
    if not value.strip():
        raise _NotAValueError("is empty", FOR_EMPTY)
    try:
        parsed = parse_yaml(value)
    except ValueError:
        raise _NotAValueError("not a YAML value", "close every bracket and quote") from None
    # One value for a list is a list of one.
    return [parsed] if takes_list(field) and isinstance(parsed, str | int | float) else parsed
