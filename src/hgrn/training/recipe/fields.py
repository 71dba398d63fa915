"""The sections of a recipe: every field with its meaning, and the rules of each section by itself.

`kinds` puts the sections together and has the rules between them.
"""

import os
from dataclasses import fields
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hgrn.training.recipe.problems import ABSENT, Problem, broken

if TYPE_CHECKING:
    from hgrn.models import HGRNConfig

# Strict, because a lax reading takes `true` for a number; frozen, because a run depends on it.
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
LONGEST_PART = 200  # bytes of the name of a folder; file systems take 255


def is_new_run(info: ValidationInfo) -> bool:
    """Whether a recipe is read to start a run with it.

    Then its data must be there, and its model must be one that this version knows. The recipe of a
    saved run stays readable without its data.
    """
    return bool(info.context and info.context["new_run"])


def check_name(name: str) -> str:
    """The name of a run, which is also the path of its folder below `runs`.

    Raises ValueError for a name that leads elsewhere.
    """
    parts = PurePosixPath(name).parts
    leads_out = name.startswith("/") or ".." in parts or PureWindowsPath(name).drive or "\\" in name
    too_long = any(len(part.encode()) > LONGEST_PART for part in parts)
    if not parts or leads_out or too_long or not name.isprintable():
        raise ValueError(
            "should be a name, or a path below a folder, of printable characters and without .., "
            f"of up to {LONGEST_PART} bytes a part"
        )
    return name


class Target(BaseModel):
    """The published number that a recipe aims at."""

    model_config = STRICT
    table: str = Field(description="the table of the paper, and the row")
    metric: str = Field(description="what the number measures, and on which split")
    value: float | None = Field(
        default=None, description="the published number; null where it was not found"
    )


class ModelSpec(BaseModel):
    """A preset, or none, and any field of HGRNConfig to set on top of it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    preset: str | None = Field(default=None, description="a name that HGRNConfig.preset knows")
    weights: str | None = Field(
        default=None,
        description="a run folder or saved model whose weights the run starts from; null draws "
        "random ones",
    )

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of HGRNConfig that the recipe sets."""
        return self.model_extra or {}

    def config(self, **facts: Any) -> "HGRNConfig":
        """The model's configuration for data with these `facts`: vocab_size, num_channels, ...

        What the recipe sets wins over the facts, and the facts win over the preset, except its
        vocabulary.

        Raises ValueError that names every wrong field, or for another number of classes than the
        data has, or for a model that this machine cannot hold.
        """
        if classes := len(facts.get("id2label", ())):
            facts["num_labels"] = classes
            if (given := self.settings.get("num_labels", classes)) != classes:
                raise ValueError(
                    f"num_labels must be {classes}, the number of classes in the data, got "
                    f"{given!r}; leave it out"
                )
        # The vocabulary of a preset may be larger than the tokenizer's.
        if self.preset is not None:
            facts.pop("vocab_size", None)
        config = self._built(facts | self.settings)
        # Checked here, because PyTorch would ask for the memory tensor by tensor.
        needed = 4 * config.fewest_numbers
        there = _memory()
        if needed > there:
            raise ValueError(
                f"the model's weights need {needed / 1e9:,.0f} GB, and this machine has "
                f"{there / 1e9:,.0f} GB of memory: lower model.hidden_size, "
                "model.num_hidden_layers or model.vocab_size"
            )
        return config

    def _built(self, settings: dict[str, Any]) -> "HGRNConfig":
        # transformers takes seconds to import, and a saved recipe can be read without it.
        from hgrn.models import HGRNConfig

        if self.preset is None:
            return HGRNConfig(**settings)
        return HGRNConfig.preset(self.preset, **settings)

    @model_validator(mode="after")
    def _is_a_model(self, info: ValidationInfo) -> Self:
        """Report what HGRNConfig says; its message has a line "field: rule" for each mistake."""
        if not is_new_run(info):
            return self
        if foreign := [name for name in self.settings if _is_foreign(name)]:
            rule = "is not a field of HGRNConfig that a recipe can set"
            raise broken(
                *(
                    Problem(f"model.{name}", self.settings[name], rule, "leave it out")
                    for name in foreign
                )
            )
        try:
            self._built(self.settings)
        except ValueError as error:
            first, *lines = str(error).splitlines()
            # A name that is no preset is one line, without a field.
            if not lines:
                raise broken(Problem("model.preset", ABSENT, first)) from None
            rules = [line.strip().partition(": ") for line in lines]
            raise broken(
                *(Problem(f"model.{name}", ABSENT, rule) for name, _, rule in rules)
            ) from None
        return self


def _is_foreign(name: str) -> bool:
    """Whether a field of a configuration belongs to transformers rather than to the model."""
    from transformers import PreTrainedConfig

    from hgrn.models.configuration import OF_TRANSFORMERS

    # num_labels is theirs too, but it is part of the model.
    theirs = OF_TRANSFORMERS | {field.name for field in fields(PreTrainedConfig)}
    return name.startswith("_") or name in theirs - {"num_labels"}


def _memory() -> float:
    """Bytes of memory of this machine; infinity where the system does not say."""
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not set(names) <= getattr(os, "sysconf_names", {}).keys():
        return float("inf")
    pages, size = map(os.sysconf, names)
    return pages * size if pages > 0 else float("inf")


class BatchSpec(BaseModel):
    """What one optimizer step sees."""

    model_config = STRICT
    batch_size: int = Field(
        gt=0, description="examples of one step, over all processes and micro-batches"
    )
    accumulation: int = Field(
        default=1, gt=0, description="micro-batches into which a process splits its share of a step"
    )

    @model_validator(mode="after")
    def _can_be_split(self) -> Self:
        if self.batch_size % self.accumulation:
            rule = f"must be a multiple of batch.accumulation = {self.accumulation}"
            raise broken(Problem("batch.batch_size", self.batch_size, rule, "change either"))
        return self


class BlockBatchSpec(BatchSpec):
    """What one optimizer step of a language model sees; its examples are blocks of text."""

    block_size: int = Field(gt=0, description="tokens of one sequence")
    state: Literal["reset", "carry", "documents"] = Field(
        default="reset",
        description="state at the start of a block: zero, that of the block before, or zero at "
        "each document",
    )


class ImageBatchSpec(BatchSpec):
    """What one optimizer step of an image classifier sees."""

    repeats: int = Field(
        default=1,
        gt=0,
        description="how often an epoch takes each image, augmented anew every time",
    )


class SequenceBatchSpec(BatchSpec):
    """What one optimizer step of a task of Long Range Arena sees."""

    pad_to: int | None = Field(
        default=None,
        gt=0,
        description="length of all sequences; null pads to the longest of a step",
    )
    group_by_length: bool = Field(
        default=False,
        description="batch sequences of similar length, sorted within 50 steps, to pad less",
    )


class ImageSpec(BaseModel):
    """How images are read, and brought to what the model takes."""

    model_config = STRICT
    size: int = Field(gt=0, description="rows and columns that the model sees")
    resize: int | None = Field(
        default=None,
        gt=0,
        description="shorter side in evaluation, before the centre is cut; null is size",
    )
    mean: tuple[float, ...] = Field(
        description="subtracted from values in [0, 1], one number a channel"
    )
    std: tuple[float, ...] = Field(description="then divided by, one number a channel")
    workers: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="processes that decode images; 0 decodes in the training process",
    )
    max_corrupt: int = Field(
        default=10, ge=0, description="images that may be skipped because they cannot be decoded"
    )

    @model_validator(mode="after")
    def _can_be_brought_to_size(self) -> Self:
        found = []
        if self.resize is not None and self.resize < self.size:
            rule = f"must be at least images.size = {self.size}"
            found.append(Problem("images.resize", self.resize, rule))
        if any(value <= 0 for value in self.std):
            found.append(Problem("images.std", list(self.std), "every number must be above 0"))
        if found:
            raise broken(*found)
        return self


class OptimizerSpec(BaseModel):
    """The optimizer and the clipping of its gradients."""

    model_config = STRICT
    name: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for the matrices of the layers, with AdamW for the rest"
    )
    lr: float = Field(gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="decay of the two moments")
    eps: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled: p -= lr * weight_decay * p"
    )
    no_decay: Literal["module", "none"] = Field(
        default="module",
        description="module spares the parameters that the modules name, none decays every "
        "parameter",
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="largest global gradient norm; null does not clip"
    )

    @model_validator(mode="after")
    def _betas_are_decays(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            rule = "both must be at least 0 and below 1"
            raise broken(Problem("optimizer.betas", list(self.betas), rule))
        return self


class ScheduleSpec(BaseModel):
    """The learning rate over the steps; see hgrn.training.schedules."""

    model_config = STRICT
    name: Literal["inverse_sqrt", "cosine", "constant"] = Field(
        description="what follows the warm-up"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps of the linear warm-up")
    warmup_init_lr: float = Field(default=0.0, ge=0, description="rate at which the warm-up starts")
    min_lr: float = Field(default=0.0, ge=0, description="rate at the end of a cosine; null is 0")
    total_steps: int | None = Field(
        default=None,
        gt=0,
        description="step at which a cosine ends, after which it rises again; null is "
        "training.steps",
    )

    @field_validator("warmup_init_lr", "min_lr", mode="before")
    @classmethod
    def _null_is_zero(cls, rate: Any) -> Any:
        """Null takes a rate out of a recipe, as it does for other optional fields."""
        return 0.0 if rate is None else rate

    @model_validator(mode="after")
    def _suits_its_name(self) -> Self:
        found = []
        # The decay is peak * sqrt(warmup_steps / step), which is 0 without a warm-up.
        if self.name == "inverse_sqrt" and self.warmup_steps == 0:
            rule = "must be at least 1 for inverse_sqrt, whose decay starts there"
            remedy = "or choose another schedule.name"
            found.append(Problem("schedule.warmup_steps", 0, rule, remedy))
        for name, unset in (("min_lr", 0), ("total_steps", "null")):
            if self.name != "cosine" and (value := getattr(self, name)):
                rule = f"is for cosine, and schedule.name = {self.name}"
                found.append(Problem(f"schedule.{name}", value, rule, f"set it to {unset}"))
        if self.total_steps is not None and self.total_steps <= self.warmup_steps:
            rule = f"must be above schedule.warmup_steps = {self.warmup_steps}"
            found.append(Problem("schedule.total_steps", self.total_steps, rule))
        if found:
            raise broken(*found)
        return self

    def end(self, steps: int) -> int | None:
        """The step at which the rate has come to its end in a run of `steps`; None if it has no
        end."""
        if self.name != "cosine":
            return None
        return self.total_steps or steps


class TrainingSpec(BaseModel):
    """Length, precision and bookkeeping of the run."""

    model_config = STRICT
    steps: int = Field(gt=0, description="optimizer steps")
    seed: int = Field(
        default=1,
        ge=0,
        le=2**63 - 1,
        description="seed of the weights, of the order of the data and of dropout",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16 computes under autocast, weights stay fp32"
    )
    average: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is then evaluated and saved; "
        "null keeps no average",
    )
    eval_every: int | None = Field(
        default=None, gt=0, description="steps between validations; null never validates"
    )
    save_every: int = Field(default=1000, gt=0, description="steps between checkpoints")
    keep: int | None = Field(
        default=2, gt=0, description="how many of the newest checkpoints to keep; null keeps all"
    )
    log_every: int = Field(default=10, gt=0, description="steps between log rows")
    threads: int | None = Field(
        default=None, gt=0, description="CPU threads; null leaves the choice to PyTorch"
    )
    compile: bool = Field(default=False, description="whether to torch.compile the model")


class LanguageTrainingSpec(TrainingSpec):
    """The same for a language model, whose validation reads text."""

    eval_tokens: int | None = Field(
        default=None, gt=1, description="tokens of the validation split to read; null reads all"
    )


class ParallelSpec(BaseModel):
    """How the processes of torchrun share the work; without torchrun there is one process, and
    `mode` has no effect."""

    model_config = STRICT
    mode: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="ddp: whole weights in every process; fsdp: a part of every parameter in each",
    )
    context: int = Field(
        default=1, gt=0, description="processes that share each sequence, a stretch for each"
    )
    recompute: bool = Field(
        default=False,
        description="keep only the inputs of each layer and compute it again in the backward pass",
    )
