"""Recipes: everything that defines a training run, as typed data.

A recipe comes from a YAML file (a shipped one by name, anyone's by path) and dotted overrides. `load_recipe`
finds all of its problems before anything starts and reports them together.
"""

import json
import re
from fnmatch import fnmatchcase
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hgrn.data.text import TextData
from hgrn.data.text import problems as data_problems
from hgrn.errors import UserError
from hgrn.training.problems import (
    ABSENT,
    UNKNOWN_KEY,
    Problem,
    describe,
    near,
    report,
    takes_text,
    type_at,
)

if TYPE_CHECKING:
    from hgrn.models import HGRNConfig

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


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

    def config(self, vocab_size: int, special_tokens: dict[str, int | None]) -> "HGRNConfig":
        """The model's configuration for a tokenizer with so many tokens, these special ones among them.

        What the recipe sets comes first; a preset may have a larger vocabulary, but its special tokens are
        those of another tokenizer. Raises ValueError with every wrong field.
        """
        from hgrn.models import HGRNConfig

        if self.preset is None:
            return HGRNConfig(**{"vocab_size": vocab_size, **special_tokens, **self.model_extra})
        return HGRNConfig.preset(self.preset, **{**special_tokens, **self.model_extra})


class BatchSpec(BaseModel):
    """What one optimizer step sees."""

    model_config = STRICT
    block_size: int = Field(gt=0, description="tokens of one sequence")
    batch_size: int = Field(gt=0, description="sequences of one step, over all processes and micro-batches")
    accumulation: int = Field(
        1, gt=0, description="micro-batches into which a process splits its share of a step"
    )
    state: Literal["reset", "carry", "documents"] = Field(
        "reset", description="state at a block's start: zero, the block before's, or zero at each document"
    )


class OptimizerSpec(BaseModel):
    """The optimizer and the clipping of its gradients."""

    model_config = STRICT
    name: Literal["adamw", "muon"] = Field("adamw", description="muon: for the matrices of the layers; AdamW for the rest")
    lr: float = Field(gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the two moments")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled: p -= lr * weight_decay * p")
    no_decay: Literal["module", "none"] = Field(
        "module",
        description="module spares the parameters that the modules name, none decays every parameter",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="largest global gradient norm; null does not clip"
    )


class ScheduleSpec(BaseModel):
    """The learning rate over the steps; see hgrn.training.schedules."""

    model_config = STRICT
    name: Literal["inverse_sqrt", "cosine", "constant"]
    warmup_steps: int = Field(0, ge=0, description="steps of the linear warm-up")
    warmup_init_lr: float = Field(0.0, ge=0, description="rate at which the warm-up starts")
    min_lr: float = Field(0.0, ge=0, description="rate at the end of a cosine")


class TrainingSpec(BaseModel):
    """Length, precision and bookkeeping of the run."""

    model_config = STRICT
    steps: int = Field(gt=0, description="optimizer steps")
    seed: int = Field(1, ge=0, description="seed of the weights, of the order of the data and of dropout")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 computes under autocast, weights stay fp32"
    )
    eval_every: int | None = Field(None, gt=0, description="steps between validations; null never validates")
    eval_tokens: int | None = Field(
        None, gt=1, description="tokens of the validation split to read; null reads all"
    )
    save_every: int = Field(1000, gt=0, description="steps between checkpoints")
    keep: int | None = Field(
        2, gt=0, description="how many of the newest checkpoints to keep; null keeps all"
    )
    log_every: int = Field(10, gt=0, description="steps between log rows")
    threads: int | None = Field(None, gt=0, description="CPU threads; null leaves PyTorch's choice")
    compile: bool = Field(False, description="whether to torch.compile the model")


class ParallelSpec(BaseModel):
    """How the processes that torchrun starts share the work; without torchrun there is one, and `mode` says nothing."""

    model_config = STRICT
    mode: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp: whole weights in every process; fsdp: each holds a part of every parameter"
    )
    context: int = Field(1, gt=0, description="processes that share each sequence, a stretch for each")
    recompute: bool = Field(
        False, description="keep only the inputs of each layer and compute it again in the backward pass"
    )


class Recipe(BaseModel):
    """One training run. On one CPU, two runs of the same recipe end with the same weights, bit for bit."""

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
    parallel: ParallelSpec = ParallelSpec()


def shipped_recipes() -> list[str]:
    """The names of the recipes inside the package, such as "quickstart" and "lm/wikitext103"."""
    return sorted(_shipped())


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a shipped name or of a YAML file (a path ending in .yaml or .yml), with overrides.

    `overrides` maps dotted keys ("optimizer.lr") to values; a string is read as YAML ("1e-3", "[a, b]"),
    unless the field holds text, and one value for a list is a list of one. UserError lists all problems.
    """
    document, found = _read(name_or_path), []
    for key, value in (overrides or {}).items():
        found += _override(document, key.split("."), value)
    recipe, wrong = check(document)
    if found or wrong:
        raise UserError(report(f"recipe {name_or_path}", found + wrong))
    return recipe


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out; `recipe_from_yaml` and `load_recipe` read it back equal."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def recipe_from_yaml(file: Path) -> Recipe:
    """The recipe that `recipe_to_yaml` wrote into `file`; its data may be gone. Raises UserError."""
    try:
        return Recipe.model_validate_json(json.dumps(yaml.load(file.read_text(encoding="utf-8"), _Loader)))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not a recipe that this version of hgrn saved: {error}") from error


def check(document: dict) -> tuple[Recipe | None, list[Problem]]:
    """The recipe that a nested dictionary of plain values describes, or None, and its problems.

    Unknown keys are struck out and sections that are wrong are left out before combinations are judged, so
    that no mistake hides another.
    """
    document, found = json.loads(json.dumps(document, default=str)), []
    errors = _errors(document)
    for error in [error for error in errors if error["type"] in UNKNOWN_KEY]:
        found.append(describe(Recipe, error))
        section = document
        for key in error["loc"][:-1]:
            section = section[key]
        section.pop(error["loc"][-1])
    errors = [error for error in errors if error["type"] not in UNKNOWN_KEY]
    found += [describe(Recipe, error) for error in errors]
    wrong = {error["loc"][0] for error in errors}
    sections = {
        name: TypeAdapter(Recipe.model_fields[name].annotation).validate_json(json.dumps(value))
        for name, value in document.items()
        if name not in wrong
    }
    found += _combinations(**sections)
    return (None if found else Recipe.model_validate_json(json.dumps(document))), found


_FREE_TO_CHANGE = (
    "name",
    "about",
    "target*",
    "data.files",
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
    "batch.accumulation",
    "parallel*",
)


def blocking_changes(saved: Recipe, now: Recipe) -> list[str]:
    """How `now` differs from the recipe that a checkpoint was saved under, in what decides the weights.

    Names, bookkeeping, validation, threads and how a batch is shared out may change, and so may the path of the
    training text, whose content the checkpoint's fingerprint holds; the run may get longer if its learning rate
    does not depend on the length.
    """
    before, after = _leaves(saved.model_dump(mode="json")), _leaves(now.model_dump(mode="json"))
    free = list(_FREE_TO_CHANGE)
    if now.schedule.name != "cosine" and now.training.steps >= saved.training.steps:
        free.append("training.steps")
    return [
        f"{key}: {before.get(key)!r} in the checkpoint, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not any(fnmatchcase(key, pattern) for pattern in free)
    ]


def _leaves(document: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of everything in nested dictionaries; lists are values."""
    if not isinstance(document, dict):
        return {prefix: document}
    leaves = {}
    for key, value in document.items():
        leaves |= _leaves(value, f"{prefix}.{key}" if prefix else key)
    return leaves


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of JSON: 1e-3 is a number, and a date or `on` is text."""

    yaml_implicit_resolvers = {}


for _kind, _form, _starts in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_form})$"), _starts)


def _shipped() -> dict[str, Any]:
    """Name -> the file inside the package."""
    root = package_files("hgrn") / "recipes"
    found = {}
    for entry in root.iterdir():
        inside = [(f"{entry.name}/", file) for file in entry.iterdir()] if entry.is_dir() else [("", entry)]
        found |= {
            prefix + file.name.removesuffix(".yaml"): file
            for prefix, file in inside
            if file.name.endswith(".yaml")
        }
    return found


def _read(name_or_path: str | Path) -> dict:
    """The plain dictionary in a shipped or a user's YAML file."""
    name, shipped = str(name_or_path), _shipped()
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
            f"no shipped recipe is called {name!r}; {near(name, shipped)} (your own end in .yaml)"
        )
    try:
        document = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {name} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise UserError(
            f"recipe {name} must be a mapping of sections (model, data, ...), not {type(document).__name__}"
        )
    return document


def _override(document: dict, path: list[str], value: Any) -> list[Problem]:
    """Set one dotted key of the document in place."""
    kind = type_at(Recipe, path)
    if isinstance(value, str) and not takes_text(kind):
        is_list = get_origin(kind) in (tuple, list)
        keep_text = is_list and takes_text(type_at(kind, [0])) and not value.startswith("[")
        try:
            value = value if keep_text else yaml.load(value, _Loader)
        except yaml.YAMLError:
            return [Problem(".".join(path), value, "not a YAML value", "close every bracket and quote")]
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


def _errors(document: dict) -> list[dict]:
    """What pydantic finds; as JSON, because only there a strict reading takes a list for a tuple."""
    try:
        Recipe.model_validate_json(json.dumps(document))
    except ValidationError as error:
        return error.errors(include_url=False, include_context=False)
    return []


def _combinations(
    model: ModelSpec | None = None,
    data: TextData | None = None,
    batch: BatchSpec | None = None,
    optimizer: OptimizerSpec | None = None,
    schedule: ScheduleSpec | None = None,
    training: TrainingSpec | None = None,
    parallel: ParallelSpec | None = None,
    **_: Any,
) -> list[Problem]:
    """What is wrong although every single value is of its type; None stands for a section that is not."""
    found = []
    if batch and batch.batch_size % batch.accumulation:
        rule = f"must be a multiple of batch.accumulation = {batch.accumulation}"
        found.append(Problem("batch.batch_size", batch.batch_size, rule, "change either"))
    if optimizer and not all(0 <= beta < 1 for beta in optimizer.betas):
        found.append(Problem("optimizer.betas", list(optimizer.betas), "both must be at least 0 and below 1"))
    if schedule:
        found += _schedule_problems(schedule, optimizer, training)
    if parallel and batch and parallel.context > batch.block_size:
        rule = f"must be at most batch.block_size = {batch.block_size}: every process reads some of a sequence"
        found.append(Problem("parallel.context", parallel.context, rule))
    if parallel and training and training.compile and (parallel.mode == "fsdp" or parallel.context > 1):
        rule = "goes with parallel.mode = ddp and parallel.context = 1 only"
        found.append(Problem("training.compile", True, rule, "set it to false"))
    if data:
        required = ("train", "validation") if training and training.eval_every else ("train",)
        found += [Problem("data", ABSENT, problem) for problem in data_problems(data, required)]
    if model:
        found += _model_problems(model)
    return found


def _schedule_problems(
    schedule: ScheduleSpec, optimizer: OptimizerSpec | None, training: TrainingSpec | None
) -> list[Problem]:
    found = []
    if training and schedule.warmup_steps > training.steps:
        rule = f"must be at most training.steps = {training.steps}"
        found.append(
            Problem("schedule.warmup_steps", schedule.warmup_steps, rule, "shorten it or train longer")
        )
    if schedule.name == "inverse_sqrt" and schedule.warmup_steps == 0:
        rule = "must be at least 1 for inverse_sqrt, whose decay starts there"
        found.append(Problem("schedule.warmup_steps", 0, rule, "or choose another schedule.name"))
    if schedule.name != "cosine" and schedule.min_lr > 0:
        rule = f"is for cosine, and schedule.name = {schedule.name}"
        found.append(Problem("schedule.min_lr", schedule.min_lr, rule, "remove it"))
    for name in ("warmup_init_lr", "min_lr"):
        if optimizer and getattr(schedule, name) > optimizer.lr:
            rule = f"must be at most optimizer.lr = {optimizer.lr}, the peak"
            found.append(Problem(f"schedule.{name}", getattr(schedule, name), rule))
    return found


def _model_problems(spec: ModelSpec) -> list[Problem]:
    """What HGRNConfig says about the model; its message has a line "field: rule" for each."""
    from hgrn.models import HGRNConfig

    try:
        HGRNConfig(**spec.model_extra) if spec.preset is None else HGRNConfig.preset(
            spec.preset, **spec.model_extra
        )
    except ValueError as error:
        first, *lines = str(error).splitlines()
        if not lines:
            return [Problem("model.preset", ABSENT, first)]
        fields_and_rules = [line.strip().partition(": ") for line in lines]
        return [Problem(f"model.{name}", ABSENT, rule) for name, _, rule in fields_and_rules]
    return []
