"""The fields of a configuration: each stands with its default, its meaning and its rule.

A rule takes a value and returns what it must be, or "" if it is that.
"""

import math
import textwrap
from collections.abc import Callable, Collection
from dataclasses import field, fields
from typing import Any, TypeGuard, TypeVar

Rule = Callable[[Any], str]

_LARGEST_COUNT = 2**31 - 1
_Class = TypeVar("_Class", bound=type)


def choice(default: str, choices: Collection[str], meaning: str) -> Any:
    """A field that holds one of these names."""
    wanted = f"one of {', '.join(choices)}"
    return _field(default, meaning, lambda value: "" if value in list(choices) else wanted)


def count(default: int | None, meaning: str, *, optional: bool = False) -> Any:
    """A field that holds a whole number of 1 or more, or None if it is optional."""

    def rule(value: Any) -> str:
        if optional and value is None:
            return ""
        if not is_int(value) or value <= 0:
            return "a positive integer or None" if optional else "a positive integer"
        return "" if value <= _LARGEST_COUNT else f"at most {_LARGEST_COUNT}"

    return _field(default, meaning, rule)


def flag(default: bool, meaning: str) -> Any:
    """A field that holds True or False."""
    return _field(default, meaning, lambda x: "" if isinstance(x, bool) else "True or False")


def probability(default: float | None, meaning: str, *, optional: bool = False) -> Any:
    """A field that holds a number of at least 0 and below 1, or None if it is optional."""
    wanted = f"a number in [0, 1){' or None' if optional else ''}"

    def rule(value: Any) -> str:
        is_right = is_number(value) and 0 <= value < 1
        return "" if is_right or (optional and value is None) else wanted

    return _field(default, meaning, rule)


def positive(default: float, meaning: str) -> Any:
    """A field that holds a finite number above 0."""
    return _field(
        default,
        meaning,
        lambda x: "" if is_number(x) and 0 < x < math.inf else "a positive number",
    )


def other(default: Any, meaning: str) -> Any:
    """A field whose rule depends on other fields, so that the configuration checks it itself."""
    return _field(default, meaning, lambda value: "")


def problems_of(config: Any) -> list[str]:
    """A line for each field of a configuration that breaks its rule."""
    found = []
    for each in fields(config):
        value = getattr(config, each.name)
        rule = each.metadata.get("rule")
        if rule is not None and (wanted := rule(value)):
            found.append(f"{each.name}: must be {wanted}, got {value!r}")
    return found


def with_documented_fields(cls: _Class) -> _Class:
    """Put the meanings of the fields into the docstring of the class, in place of "{fields}"."""
    meanings = {each.name: each.metadata.get("meaning") for each in fields(cls)}
    paragraphs = [
        textwrap.fill(f"{name}: {meaning}", 100, initial_indent=" " * 8, subsequent_indent=" " * 12)
        for name, meaning in meanings.items()
        if meaning
    ]
    if cls.__doc__ is not None:  # which `python -OO` takes away
        cls.__doc__ = cls.__doc__.replace("{fields}", "\n".join(paragraphs).strip())
    return cls


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, which True and False are not."""
    return is_int(value) or isinstance(value, float)


def _field(default: Any, meaning: str, rule: Rule) -> Any:
    return field(default=default, metadata={"meaning": meaning, "rule": rule})
