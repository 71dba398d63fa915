"""The fields of a kind of recipe as types: what a dotted key may hold, and what it means."""

import dataclasses
import inspect
import re
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel


def fields_of(kind: Any) -> dict[str, Any]:
    """The named fields of a model or dataclass and their types; empty for any other type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return {}


def type_at(root: Any, location: Sequence[str | int]) -> Any:
    """The declared type at a path below the type `root`, without `| None`.

    None if there is no such field.
    """
    kind = root
    for key in location:
        kind = _without_null(_type_below(kind, key))
    return kind


def takes_null(root: Any, location: Sequence[str | int]) -> bool:
    """Whether the value at a path below the type `root` may be null."""
    declared = _type_below(type_at(root, location[:-1]), location[-1])
    return types.NoneType in get_args(declared)


def takes_text(kind: Any) -> bool:
    """Whether a value of this type is a string."""
    return kind is str or get_origin(kind) is Literal


def takes_list(kind: Any) -> bool:
    """Whether a value of this type is a list in YAML."""
    return get_origin(kind) in (tuple, list)


def meaning(root: Any, location: Sequence[str | int]) -> str:
    """What the field at a path below the type `root` means; "" where that is not written down.

    A section of a recipe describes each of its fields; the classes of the data room describe
    theirs in their docstrings, as "name: meaning".
    """
    if not location:
        return ""
    owner = type_at(root, location[:-1])
    name = location[-1]
    if isinstance(owner, type) and issubclass(owner, BaseModel):
        field = owner.model_fields.get(str(name))
        return (field.description or "") if field else ""
    if not (isinstance(owner, type) and dataclasses.is_dataclass(owner)):
        return ""
    return documented(owner, fields_of(owner)).get(str(name), "")


def documented(kind: type, names: Iterable[str]) -> dict[str, str]:
    """Name -> meaning, from entries such as "mean, std: one number a channel." in a docstring."""
    name = rf"(?:{'|'.join(map(re.escape, names))})"
    # An entry begins with a line or after the end of a sentence.
    start = rf"(?:^\s*|(?<=\. ))({name}(?:, {name})*)(?: \([^)]*\))?: "
    parts = re.split(start, inspect.getdoc(kind) or "", flags=re.MULTILINE)
    found = {}
    for group, words in zip(parts[1::2], parts[2::2]):
        # What follows an empty line is no longer about the last entry.
        words = " ".join(words.split("\n\n")[0].split()).rstrip(".")
        found |= dict.fromkeys(group.split(", "), words)
    return found


def _type_below(kind: Any, key: str | int) -> Any:
    """The declared type of one item or field of a type; None if there is none."""
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    if takes_list(kind):
        return get_args(kind)[0]
    return fields_of(kind).get(str(key))


def _without_null(kind: Any) -> Any:
    """X for X | None; a union of more than that as it is."""
    if get_origin(kind) in (Union, types.UnionType):
        parts = [part for part in get_args(kind) if part is not types.NoneType]
        return parts[0] if len(parts) == 1 else kind
    return kind
