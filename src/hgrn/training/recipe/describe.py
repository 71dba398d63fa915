"""A recipe as rows for a person: every field, its value, its default and what it means."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hgrn.training.recipe.field_types import documented, meaning
from hgrn.training.recipe.fields import ModelSpec
from hgrn.training.recipe.kinds import Recipe

# Stands for the default of a field that must be given.
REQUIRED = "required"


class FieldRow(NamedTuple):
    """One field of a recipe; `field` is dotted, as the command line takes it."""

    field: str
    value: Any
    default: Any
    meaning: str


def describe(recipe: Recipe) -> list[FieldRow]:
    """A row for every field, in the order of the sections; values as YAML holds them.

    The fields of the model are those that the recipe sets, with the preset's value as the default;
    `hgrn.models.HGRNConfig` has the others. A field that must be given has the default `REQUIRED`.
    """
    return list(_rows(recipe, type(recipe), ()))


def _rows(section: Any, root: type, path: tuple[str, ...]) -> Iterator[FieldRow]:
    """The rows of a section at a path below the recipe."""
    for name, value, default in _values(section):
        location = (*path, name)
        is_section = isinstance(value, BaseModel) or dataclasses.is_dataclass(value)
        if is_section or (isinstance(value, dict) and value):
            yield from _rows(value, root, location)
        else:
            about = meaning(root, location)
            yield FieldRow(".".join(location), _plain(value), _plain(default), about)
    if isinstance(section, ModelSpec):
        yield from _model_rows(section)


def _model_rows(spec: ModelSpec) -> Iterator[FieldRow]:
    """The fields of HGRNConfig that a recipe sets."""
    # transformers takes seconds to import.
    from hgrn.models import HGRNConfig

    config = HGRNConfig() if spec.preset is None else HGRNConfig.preset(spec.preset)
    meanings = documented(HGRNConfig, spec.settings) if spec.settings else {}
    for name, value in spec.settings.items():
        default = _plain(getattr(config, name, None))
        yield FieldRow(f"model.{name}", _plain(value), default, meanings.get(name, ""))


def _values(section: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, default) of every declared field of a section."""
    if isinstance(section, dict):
        yield from ((name, value, REQUIRED) for name, value in section.items())
        return
    if isinstance(section, BaseModel):
        declared = list(type(section).model_fields.items())
    else:
        declared = [(field.name, field) for field in dataclasses.fields(section)]
    for name, field in declared:
        yield name, getattr(section, name), _default(field.default, field.default_factory)


def _default(default: Any, factory: Any) -> Any:
    """What a field holds if it is not given."""
    absent = (PydanticUndefined, dataclasses.MISSING)
    if default not in absent:
        return default
    return REQUIRED if factory is None or factory in absent else factory()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
