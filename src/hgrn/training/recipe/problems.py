"""What is wrong with a recipe, so that a person can act on it: where, the value, the rule, the
remedy."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from hgrn.errors import near
from hgrn.training.recipe.field_types import fields_of, meaning, type_at

_LARGEST_FLOAT = 3.4e38  # of float32, in which models compute
_LARGEST_WHOLE = 2**63 - 1
_RULE = "broken_rule"  # pydantic's name for the errors that `broken` makes
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
FOR_EMPTY = "give a value, or leave it out; null where it may be null"
# What other programs call our fields.
_ELSEWHERE = {
    "learning_rate": "lr",
    "max_lr": "lr",
    "adam_epsilon": "eps",
    "epsilon": "eps",
    "grad_clip": "clip_norm",
    "gradient_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "gradient_accumulation_steps": "accumulation",
    "grad_accum": "accumulation",
    "sequence_length": "block_size",
    "seq_len": "block_size",
    "context_length": "block_size",
    "warmup": "warmup_steps",
    "max_steps": "steps",
    "num_steps": "steps",
    "dtype": "precision",
    "ema_decay": "average",
    "image_size": "size",
}


class Problem(NamedTuple):
    """One mistake: where it is, what was given there, which rule it breaks and what to do."""

    path: str
    value: Any
    rule: str
    remedy: str = ""


class _Absent:
    def __repr__(self) -> str:
        return "(not given)"


# The value of a problem that no single value is to blame for.
ABSENT = _Absent()


def report(subject: str, found: Sequence[Problem]) -> str:
    """The message that lists `found`, one line each."""
    count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
    lines = [f"{subject} has {count}; nothing was started:"]
    for path, value, rule, remedy in found:
        given = "" if value is ABSENT else f" = {_short(value)}"
        lines.append(f"  {path}{given}: {rule}{f' ({remedy})' if remedy else ''}")
    return "\n".join(lines)


def broken(*found: Problem) -> ValidationError:
    """The error that a validator raises for rules that a recipe breaks.

    pydantic takes only the first error of a validator, unless it is a ValidationError itself. The
    paths of `found` are those of the whole recipe, wherever the validator stands.
    """
    return ValidationError.from_exception_data(
        "recipe",
        [
            InitErrorDetails(
                type=PydanticCustomError(
                    _RULE,
                    "{path}: {rule}",
                    {"path": problem.path, "rule": problem.rule, "remedy": problem.remedy},
                ),
                input=problem.value,
            )
            for problem in found
        ],
    )


def problems_of(error: ValidationError, kind: type) -> Iterator[Problem]:
    """What pydantic has found in a recipe of a kind; the remedy is the meaning of the field."""
    for found in error.errors(include_url=False):
        yield _problem(found, kind)


def _problem(found: ErrorDetails, kind: type) -> Problem:
    path = dotted(found["loc"])
    value = found["input"]
    if found["type"] == _RULE:
        said = found.get("ctx", {})
        return Problem(said["path"], value, said["rule"], said["remedy"])
    if found["type"] in _UNKNOWN:
        known = fields_of(type_at(kind, found["loc"][:-1]))
        return Problem(path, value, f"unknown key{choice_of(str(found['loc'][-1]), known)}")
    remedy = meaning(kind, found["loc"])
    if found["type"].startswith("missing"):
        return Problem(path, ABSENT, "required", remedy)
    rule = found["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return Problem(path, value, rule, remedy)


def choice_of(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: a similar known one, or all that are known."""
    known = sorted(known)
    if (ours := _ELSEWHERE.get(name)) in known:
        return f"; did you mean {ours}?"
    listed = f"; known: {', '.join(known)}" if known else "; nothing is known here"
    return near(name, known) or listed


def problems_of_values(document: Any, location: tuple[str | int, ...] = ()) -> Iterator[Problem]:
    """The values of a nested document that no field can mean.

    These are numbers that are not finite as float32, whole numbers beyond 64 bits, and empty texts:
    an empty path would be the current folder, and comes from a $VARIABLE that is not set.
    """
    path = dotted(location)
    if isinstance(document, dict):
        for key, part in document.items():
            yield from problems_of_values(part, (*location, key))
    elif isinstance(document, list):
        for index, part in enumerate(document):
            # An empty file name in a list is a problem that the data finds, with a better message.
            if not isinstance(part, str):
                yield from problems_of_values(part, (*location, index))
    elif isinstance(document, float) and not abs(document) <= _LARGEST_FLOAT:
        rule = f"must be a finite number, at most {_LARGEST_FLOAT:.1e} in size"
        yield Problem(path, document, rule)
    elif isinstance(document, int) and not abs(document) <= _LARGEST_WHOLE:
        yield Problem(path, document, f"must be at most {_LARGEST_WHOLE} (2**63 - 1) in size")
    elif isinstance(document, str) and not document.strip() and path != "about":
        yield Problem(path, document, "is empty", FOR_EMPTY)


def dotted(location: Sequence[str | int]) -> str:
    """("training", "steps") -> "training.steps"."""
    return ".".join(map(str, location))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
