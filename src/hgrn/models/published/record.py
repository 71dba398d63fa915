"""What is written down of a published layout: a `Layout`, and the `Line`s of its tensors.

A line says: the tensor with this name there is the tensor with that name here, changed so. In both
names `{n}` stands for the number of a layer. Some packages count the two halves of a layer as
layers; there `{2n}` and `{2n+1}` stand for the halves. A change only moves numbers around. So a
tensor that goes in and out again has the same bits, and a gradient converts like its parameter.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hgrn.errors import UserError


class ConversionError(UserError):
    """A checkpoint lacks the names, shapes or values that its layout or the model needs."""


def raise_problems(problems: Sequence[str], what: str) -> None:
    """Raise a ConversionError that says `what` and lists all problems, if there are any."""
    if problems:
        listed = "\n  ".join(problems)
        raise ConversionError(f"{what} ({len(problems)} problem(s)):\n  {listed}")


class Change(NamedTuple):
    """How a tensor changes on the way in and on the way out."""

    load: Callable[[Tensor], Tensor]
    save: Callable[[Tensor], Tensor]


SAME = Change(lambda x: x, lambda x: x)
# Rows (Re, Im, Re, Im, ...) become (all Re, all Im).
HALVES = Change(
    lambda x: torch.cat([x[0::2], x[1::2]]),
    lambda x: torch.stack(x.chunk(2), dim=1).flatten(0, 1),
)
ANGLES = Change(lambda x: x.flatten(), lambda x: x.flatten()[None, None])
ANGLES_OF_ONE = Change(lambda x: x.flatten()[None], lambda x: x.flatten()[None, None])
# gamma^k is P_2 + ... + P_k there and P_1 + ... + P_{k-1} here, so the same bounds come from rows
# that are moved by one (see docs/maths.md).
ROLL = Change(lambda x: x.roll(-1, 0), lambda x: x.roll(1, 0))
# Rows (candidate, query, forget) become (query, forget, candidate).
CANDIDATE_LAST = Change(
    lambda x: x.roll(-(x.shape[0] // 3), 0),
    lambda x: x.roll(x.shape[0] // 3, 0),
)
# The weight of a depthwise convolution has an axis for its one input channel there.
TAPS = Change(lambda x: x.flatten(1), lambda x: x[:, None])


class Line(NamedTuple):
    """One tensor of a layout.

    Attributes:
        published: its name there.
        ours: its name here; None if it holds no weights.
        change: how its numbers move.
        part: None if it is all of our tensor; otherwise our tensor is made of several, one below
            the other, and this one is number `part`, counted from 0.
    """

    published: str
    ours: str | None
    change: Change = SAME
    part: int | None = None


def linear(published: str, ours: str, change: Change = SAME, part: int | None = None) -> list[Line]:
    """The lines of a linear map or a norm, with or without bias."""
    return [
        Line(f"{published}.{kind}", f"{ours}.{kind}", change, part) for kind in ("weight", "bias")
    ]


def under(published: str, ours: str, lines: Iterable[Line]) -> list[Line]:
    """The lines of a part, with these prefixes in front of its names."""
    return [
        line._replace(published=published + line.published, ours=f"{ours}{line.ours}")
        for line in lines
    ]


@functools.cache
def _pattern(template: str) -> tuple[re.Pattern[str], int, int]:
    """The expression for a name with a layer number; that number is `step * n + first`."""
    mark = re.search(r"\{(n|2n|2n\+1)\}", template)
    if mark is None:
        return re.compile(f"{re.escape(template)}()"), 1, 0
    around = re.escape(template[: mark.start()]), re.escape(template[mark.end() :])
    step = 2 if mark[1].startswith("2") else 1
    return re.compile(r"(\d+)".join(around)), step, int(mark[1].endswith("+1"))


def layer_in(template: str | None, name: str) -> int | None:
    """The n for which `template` is `name` (0 if it has no number); None if it never is."""
    if template is None:
        return None
    pattern, step, first = _pattern(template)
    found = pattern.fullmatch(name)
    if found is None:
        return None
    number, rest = divmod(int(found[1] or 0) - first, step)
    return number if rest == 0 else None


def name_in_layer(template: str, number: int) -> str:
    """The name that `template` is for layer `number`."""
    return template.format_map({"n": number, "2n": 2 * number, "2n+1": 2 * number + 1})


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """What is written down of the config.json of a layout.

    Attributes:
        model_type: the value of that key. Only layouts with the value that a file has are looked
            at; those of "hgrn" where it has none that is known.
        marks: keys that no other layout with this model_type has; any one of them identifies it.
            Their values are not looked at.
        allowed: key -> the values that our models can have. We write the first one, and a key that
            is left out means it.
        ignored: keys that do not change the numbers of the model.
        renamed: key -> the field of `HGRNConfig` that it is. A key that is not listed has our name
            already.
        read: takes the keys that need a computation out of the given ones and puts our fields in;
            returns the problems.
        write: the other way: the keys that need a computation, from our configuration.
    """

    marks: tuple[str, ...]
    model_type: str = "hgrn"
    allowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[dict[str, Any]], list[str]] = lambda given: []
    write: Callable[[PreTrainedConfig], dict[str, Any]] = lambda config: {}

    def __post_init__(self) -> None:
        allowed = {"model_type": (self.model_type,), **self.allowed}
        object.__setattr__(self, "allowed", allowed)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One published layout. This record is the only place that knows it.

    Attributes:
        name: how functions and messages call it.
        family: how `hgrn convert --to` calls it, if it is one of several variants; the default is
            the name.
        lines: its tensors.
        ones: names of our tensors that it does not have, because they are all one there.
        has, lacks: regular expressions for the start of tensor names. A file is in this layout if
            each one in `has` matches a tensor and none in `lacks` does. A layout with an empty
            `has` is never recognised.
        classes: regular expression for the start of a tensor name -> name of our class with the
            head that such tensors are. The first match counts; the last one is "", which always
            matches.
        fits: whether this variant of the family is the one for such a configuration.
        fixed: our fields that all models of the layout have in common: every field that changes the
            numbers and that neither config.json nor the tensors tell. A mixer that is not named is
            "hgru".
        mixer_options: likewise, the options of their mixers. Those that a stack gives to its mixers
            (bias, norm_eps, norm_type) are the stack's unless they stand here.
        defaults: our fields where neither the configuration nor the tensors say anything.
        infer: our fields that the tensors (under our names) tell, beyond those that `infer_fields`
            finds for all layouts.
        assumed: our fields that no tensor tells. `hgrn convert` lists them when it converts a file
            without a configuration.
        config_file: its config.json; None if models of this layout have none.
    """

    name: str
    family: str = ""
    lines: tuple[Line, ...] = ()
    ones: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    classes: Mapping[str, str] = field(default_factory=dict)
    fits: Callable[[PreTrainedConfig], bool] = lambda config: True
    fixed: Mapping[str, Any] = field(default_factory=dict)
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    infer: Callable[[Mapping[str, Tensor]], dict[str, Any]] = lambda tensors: {}
    assumed: tuple[str, ...] = ()
    config_file: ConfigFile | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)
        object.__setattr__(self, "fixed", {"mixer": "hgru", **self.fixed})

    @property
    def reads_images(self) -> bool:
        """Whether its models read patches of images in place of tokens."""
        return any(line.ours == "model.embed_patches.proj.weight" for line in self.lines)

    def is_layout_of(self, names: Sequence[str]) -> bool:
        """Whether tensors with these names are in this layout."""

        def matches(start: str) -> bool:
            return any(re.match(start, name) for name in names)

        return bool(self.has) and all(map(matches, self.has)) and not any(map(matches, self.lacks))

    def class_name_of(self, names: Sequence[str]) -> str:
        """The name of our class whose head is among tensors with these published names."""
        return next(
            class_name
            for start, class_name in self.classes.items()
            if not start or any(re.match(start, name) for name in names)
        )

    def line_of_published(self, name: str) -> tuple[Line, int] | None:
        """The line of a tensor with this published name, and the number of its layer."""
        for line in self.lines:
            number = layer_in(line.published, name)
            if number is not None:
                return line, number
        return None

    def is_one(self, name: str) -> bool:
        """Whether our tensor of this name is all one in every model of the layout."""
        return any(layer_in(template, name) is not None for template in self.ones)

    def lines_of_ours(self, name: str) -> list[tuple[Line, int]]:
        """The lines that make up our tensor of this name, and the number of its layer."""
        found = [(line, layer_in(line.ours, name)) for line in self.lines]
        return [(line, number) for line, number in found if number is not None]
