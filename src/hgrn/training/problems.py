"""What is wrong with a nested document, so that a person can act on it: path, value, rule, remedy."""

import dataclasses
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from hgrn.errors import near

UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


_LARGEST_FLOAT = 3.4e38  # of float32, in which models compute
_LARGEST_WHOLE = 2**63 - 1


class Problem(NamedTuple):
    """One mistake: where it is, what was given there, which rule it breaks and what to do."""

    path: str
    value: Any
    rule: str
    remedy: str = ""


class _Absent:
    def __repr__(self) -> str:
        return "(not given)"


ABSENT = _Absent()


def report(subject: str, found: Sequence[Problem]) -> str:
    """The message that lists `found`, one line each."""
    lines = [
        f"{subject} has {len(found)} problem{'s' if len(found) > 1 else ''}; nothing was started:"
    ]
    for problem in found:
        at = (
            problem.path if problem.value is ABSENT else f"{problem.path} = {_short(problem.value)}"
        )
        lines.append(f"  {at}: {problem.rule}{f' ({problem.remedy})' if problem.remedy else ''}")
    return "\n".join(lines)


def choice_of(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: a similar known one, or all that are known."""
    known = sorted(known)
    listed = f"; known: {', '.join(known)}" if known else "; nothing is known here"
    return near(name, known) or listed


def numbers_out_of_range(document: Any, location: tuple[str | int, ...] = ()) -> list[Problem]:
    """Numbers of a nested document that no field can mean: not finite as float32, or whole and beyond 64 bits."""
    if isinstance(document, dict | list):
        parts = document.items() if isinstance(document, dict) else enumerate(document)
        return [
            problem
            for key, part in parts
            for problem in numbers_out_of_range(part, (*location, key))
        ]
    if isinstance(document, float) and not abs(document) <= _LARGEST_FLOAT:
        return [
            Problem(
                dotted(location),
                document,
                f"must be a finite number, at most {_LARGEST_FLOAT:.1e} in size",
            )
        ]
    if isinstance(document, int) and not abs(document) <= _LARGEST_WHOLE:
        return [
            Problem(
                dotted(location), document, f"must be at most {_LARGEST_WHOLE} (2**63 - 1) in size"
            )
        ]
    return []


def dotted(location: Sequence[str | int]) -> str:
    """("training", "steps") -> "training.steps"."""
    return ".".join(map(str, location))


def strip_optional(kind: Any) -> Any:
    """X for X | None; a union of more than that as it is."""
    if get_origin(kind) in (Union, types.UnionType):
        parts = [part for part in get_args(kind) if part is not types.NoneType]
        return parts[0] if len(parts) == 1 else kind
    return kind


def type_at(root: Any, location: Sequence[str | int]) -> Any:
    """The declared type at a path below the type `root` (models, dataclasses, dicts, tuples), or None."""
    kind = strip_optional(root)
    for key in location:
        kind = strip_optional(_type_below(kind, key))
    return kind


def takes_null(root: Any, location: Sequence[str | int]) -> bool:
    """Whether the value at a path below the type `root` may be null."""
    declared = _type_below(type_at(root, location[:-1]), location[-1])
    return types.NoneType in get_args(declared)


def _type_below(kind: Any, key: str | int) -> Any:
    """The declared type of one item or field of a type; None if there is none."""
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    if get_origin(kind) in (tuple, list):
        return get_args(kind)[0]
    return children(kind).get(key)


def children(kind: Any) -> dict[str, Any]:
    """The named fields of a model or dataclass and their types; empty for anything else."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return {}


def takes_text(kind: Any) -> bool:
    """Whether a value of this type is a string."""
    return kind is str or get_origin(kind) is Literal


def describe(root: type[BaseModel], error: dict) -> Problem:
    """A pydantic error below the model `root`, with the field's description as the remedy."""
    location = error["loc"]
    parent = type_at(root, location[:-1])
    field = (
        parent.model_fields.get(location[-1])
        if isinstance(parent, type) and issubclass(parent, BaseModel)
        else None
    )
    remedy = (field.description or "") if field is not None else ""
    if error["type"] in UNKNOWN_KEY:
        return Problem(
            dotted(location),
            error["input"],
            f"unknown key{choice_of(location[-1], children(parent))}",
        )
    if error["type"].startswith("missing"):
        return Problem(dotted(location), ABSENT, "required", remedy)
    return Problem(
        dotted(location), error["input"], error["msg"].replace("Input should", "should"), remedy
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
