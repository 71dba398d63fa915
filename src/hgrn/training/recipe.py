"""Recipes: everything that defines a training run, as typed data.

A recipe comes from a YAML file (a shipped one by name, anyone's by path) and dotted overrides. `load_recipe` finds
all of its problems before anything starts and reports them together.
"""

import json
import re
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, with_config

from hgrn.data.text import TextData, TextSplit, problems as data_problems
from hgrn.errors import UserError
from hgrn.training.report import Problem, close_to, fields_at, report

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
# The data room knows nothing of pydantic; this attribute on its plain dataclasses makes pydantic refuse unknown keys.
with_config(STRICT)(TextData)
with_config(STRICT)(TextSplit)


class Target(BaseModel):
    """The published number that a recipe aims at."""

    model_config = STRICT
    table: str = Field(description="the table of the paper, and the row")
    metric: str = Field(description="what the number measures, and on which split")
    value: float | None = Field(None, description="the published number; null where it was not found")


class ModelSpec(BaseModel):
    """A preset, or none, and any field of HGRNConfig to set on top of it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    preset: str | None = Field(None, description="a name that HGRNConfig.preset knows")

    def config(self, **defaults):
        """The HGRNConfig; `defaults` hold for fields that neither the preset nor the recipe sets."""
        from hgrn.models import HGRNConfig

        if self.preset is None:
            return HGRNConfig(**{**defaults, **self.model_extra})
        return HGRNConfig.preset(self.preset, **self.model_extra)


class BatchSpec(BaseModel):
    """What one optimizer step sees."""

    model_config = STRICT
    block_size: int = Field(gt=0, description="tokens of one sequence")
    batch_size: int = Field(gt=0, description="sequences of one step, over all processes and micro-batches")
    accumulation: int = Field(1, gt=0, description="micro-batches that one process splits its share of a step into")
    state: Literal["reset", "carry", "documents"] = Field(
        "reset",
        description="state at the start of a block: zero, carried from the block before, or zero at each document",
    )


class OptimizerSpec(BaseModel):
    """AdamW and the clipping of its gradients."""

    model_config = STRICT
    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the two moments, each in [0, 1)")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled: p -= lr * weight_decay * p")
    no_decay: Literal["module", "none"] = Field(
        "module", description="module: spare the parameters that the modules name; none: decay every parameter"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest global gradient norm; null does not clip")


class ScheduleSpec(BaseModel):
    """The learning rate over the steps; see hgrn.training.schedules."""

    model_config = STRICT
    name: Literal["inverse_sqrt", "cosine", "constant"]
    warmup_steps: int = Field(0, ge=0, description="steps of the linear warm-up")
    warmup_init_lr: float = Field(0.0, ge=0, description="rate at step 0 of the warm-up")
    min_lr: float = Field(0.0, ge=0, description="rate at the end of a cosine")


class TrainingSpec(BaseModel):
    """Length, numbers and bookkeeping of the run."""

    model_config = STRICT
    steps: int = Field(gt=0, description="optimizer steps")
    seed: int = Field(1, ge=0, description="seed of weights, order of the data and dropout")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 computes under autocast; weights stay fp32")
    eval_every: int | None = Field(None, gt=0, description="steps between validations; null never validates")
    eval_tokens: int | None = Field(None, gt=1, description="tokens of the validation split to read; null reads all")
    save_every: int = Field(1000, gt=0, description="steps between checkpoints")
    keep: int | None = Field(2, gt=0, description="newest checkpoints to keep; null keeps all")
    log_every: int = Field(10, gt=0, description="steps between log rows")
    threads: int | None = Field(None, gt=0, description="CPU threads; null leaves PyTorch's choice")
    compile: bool = Field(False, description="torch.compile the model")


class Recipe(BaseModel):
    """One training run. Two runs of the same recipe on the same CPU end with the same weights, bit for bit."""

    model_config = STRICT
    name: str = Field(description="what the run is called")
    about: str = Field("", description="one line for people")
    target: Target | None = None
    task: Literal["language-model"] = "language-model"
    model: ModelSpec
    data: TextData
    batch: BatchSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    training: TrainingSpec


def shipped_recipes() -> list[str]:
    """The names of the recipes inside the package, such as "quickstart" and "lm/wikitext103"."""
    return sorted(_shipped())


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a shipped name or of a YAML file (a path that ends in .yaml or .yml), with overrides applied.

    `overrides` maps dotted keys ("optimizer.lr") to values; strings are read as YAML ("1e-3", "null", "[a, b]"),
    and one value given for a list is a list of one. Raises UserError with every problem of the recipe at once.
    """
    document = _read(name_or_path)
    found = []
    for key, value in (overrides or {}).items():
        found += _override(document, key, value)
    recipe, more = check(document)
    found += more
    if found:
        raise UserError(report(f"recipe {name_or_path}", found))
    return recipe


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out; `load_recipe` reads it back equal."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def check(document: dict) -> tuple[Recipe | None, list[Problem]]:
    """The recipe that a plain nested dictionary describes, or None and all problems.

    Unknown keys are reported and struck out, and sections are judged one by one, so that no mistake hides another.
    """
    found, struck = [], json.loads(json.dumps(document))
    while True:
        errors = _errors(struck)
        unknown = [error["loc"] for error in errors if error["type"] in _UNKNOWN]
        if not unknown:
            break
        for *parents, key in unknown:
            section = struck
            for parent in parents:
                section = section[parent]
            value = section.pop(key)
            found.append(Problem(_dotted((*parents, key)), value, f"unknown key{close_to(key, fields_at(Recipe, parents))}"))
    found += [_problem(error) for error in errors]
    broken = {error["loc"][0] for error in errors}
    sections = {
        name: Recipe.__pydantic_validator__  # placeholder
        for name in Recipe.model_fields
    }
    return None, found
