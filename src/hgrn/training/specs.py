"""What a recipe may say: its sections as typed data, and a recipe for each kind of task.

Every value is checked here by itself; `combinations` checks them together.
"""

import os
from pathlib import PurePosixPath, PureWindowsPath
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    TypeVar,
    get_args,
    get_type_hints,
)

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from hgrn.data.images.augment import Augmentation
from hgrn.data.images.mixing import Mixing
from hgrn.data.images.opening import ImageData
from hgrn.data.lra.load import LRAData
from hgrn.data.text import TextData
from hgrn.training.problems import ABSENT, Problem

if TYPE_CHECKING:
    from hgrn.models import HGRNConfig

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)

LONGEST_PART = 200  # bytes of a name of a folder; file systems take 255


def _stays_inside(name: str) -> str:
    """The name of a run, which is where its folder lies below `runs` as well. Raises ValueError for one that leads elsewhere."""
    parts = PurePosixPath(name).parts
    leads_out = name.startswith("/") or ".." in parts or PureWindowsPath(name).drive or "\\" in name
    if (
        not parts
        or leads_out
        or not name.isprintable()
        or any(len(part.encode()) > LONGEST_PART for part in parts)
    ):
        raise ValueError(
            f"should be a name, or a path below a folder, of printable characters and without .., of up to {LONGEST_PART} bytes a part"
        )
    return name


def _memory() -> float:
    """Bytes of memory of this machine; infinity where the system does not say."""
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not set(names) <= getattr(os, "sysconf_names", {}).keys():
        return float("inf")
    pages, size = map(os.sysconf, names)
    return pages * size if pages > 0 else float("inf")


class Target(BaseModel):
    """The published number that a recipe aims at."""

    model_config = STRICT
    table: str = Field(description="the table of the paper, and the row")
    metric: str = Field(description="what the number measures, and on which split")
    value: float | None = Field(
        None, description="the published number; null where it was not found"
    )


class ModelSpec(BaseModel):
    """A preset, or none, and any field of HGRNConfig to set on top of it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    preset: str | None = Field(None, description="a name that HGRNConfig.preset knows")
    weights: str | None = Field(
        None,
        description="a run folder or saved model whose weights the run starts from; null draws them",
    )

    def config(self, **facts: Any) -> "HGRNConfig":
        """The model's configuration for data of which these `facts` hold: vocab_size, num_channels, id2label, ...

        What the recipe sets comes first, then the facts, then the preset; but a preset keeps its vocabulary, which may be larger
        than the tokenizer's. Raises ValueError with every wrong field, for another number of classes than the data has, or for a model
        that this machine cannot hold.
        """
        from hgrn.models import HGRNConfig

        if classes := len(facts.get("id2label", ())):
            facts["num_labels"] = classes
            if (given := self.model_extra.get("num_labels", classes)) != classes:
                raise ValueError(
                    f"num_labels must be {classes}, the number of classes in the data, got {given!r}; leave it out"
                )
        if self.preset is None:
            config = HGRNConfig(**facts | self.model_extra)
        else:
            facts.pop("vocab_size", None)
            config = HGRNConfig.preset(self.preset, **facts | self.model_extra)
        if (needed := 4 * config.fewest_numbers) > (
            there := _memory()
        ):  # before PyTorch asks for it tensor by tensor
            raise ValueError(
                f"the model's weights need {needed / 1e9:,.0f} GB, and this machine has {there / 1e9:,.0f} GB of memory: lower "
                "model.hidden_size, model.num_hidden_layers or model.vocab_size"
            )
        return config


class BatchSpec(BaseModel):
    """What one optimizer step sees."""

    model_config = STRICT
    batch_size: int = Field(
        gt=0, description="examples of one step, over all processes and micro-batches"
    )
    accumulation: int = Field(
        1, gt=0, description="micro-batches into which a process splits its share of a step"
    )


class BlockBatchSpec(BatchSpec):
    """What one optimizer step of a language model sees; its examples are blocks of text."""

    block_size: int = Field(gt=0, description="tokens of one sequence")
    state: Literal["reset", "carry", "documents"] = Field(
        "reset",
        description="state at a block's start: zero, the block before's, or zero at each document",
    )


class ImageBatchSpec(BatchSpec):
    """What one optimizer step of an image classifier sees."""

    repeats: int = Field(
        1, gt=0, description="how often an epoch takes an image, each time augmented anew"
    )


class SequenceBatchSpec(BatchSpec):
    """What one optimizer step of a task of Long Range Arena sees."""

    pad_to: int | None = Field(
        None, gt=0, description="length of all sequences; null pads to the longest of a step"
    )
    group_by_length: bool = Field(
        False,
        description="take sequences of about one length into a step, of every 50 steps' examples, so that little is padded",
    )


class ImageSpec(BaseModel):
    """How images are read, and brought to what the model takes."""

    model_config = STRICT
    size: int = Field(gt=0, description="rows and columns that the model sees")
    resize: int | None = Field(
        None,
        gt=0,
        description="shorter side in evaluation, of which the centre is cut; null is size",
    )
    mean: tuple[float, ...] = Field(
        description="subtracted from values in [0, 1], one number a channel"
    )
    std: tuple[float, ...] = Field(description="then divided by, one number a channel")
    workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="processes that decode images; 0 decodes in the training process",
    )
    max_corrupt: int = Field(
        10, ge=0, description="images that may be skipped because they cannot be decoded"
    )


class OptimizerSpec(BaseModel):
    """The optimizer and the clipping of its gradients."""

    model_config = STRICT
    name: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices of the layers; AdamW for the rest"
    )
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
    min_lr: float = Field(0.0, ge=0, description="rate at the end of a cosine; null is 0")
    total_steps: int | None = Field(
        None,
        gt=0,
        description="step at which a cosine is at its end, and rises again behind; null is training.steps",
    )

    @field_validator("warmup_init_lr", "min_lr", mode="before")
    @classmethod
    def _without_one(cls, rate: Any) -> Any:
        """Null takes out what a recipe says, as for the other fields that may be left out."""
        return 0.0 if rate is None else rate


class TrainingSpec(BaseModel):
    """Length, precision and bookkeeping of the run."""

    model_config = STRICT
    steps: int = Field(gt=0, description="optimizer steps")
    seed: int = Field(
        1,
        ge=0,
        le=2**63 - 1,
        description="seed of the weights, of the order of the data and of dropout",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 computes under autocast, weights stay fp32"
    )
    average: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is then evaluated and saved; null has none",
    )
    eval_every: int | None = Field(
        None, gt=0, description="steps between validations; null never validates"
    )
    save_every: int = Field(1000, gt=0, description="steps between checkpoints")
    keep: int | None = Field(
        2, gt=0, description="how many of the newest checkpoints to keep; null keeps all"
    )
    log_every: int = Field(10, gt=0, description="steps between log rows")
    threads: int | None = Field(None, gt=0, description="CPU threads; null leaves PyTorch's choice")
    compile: bool = Field(False, description="whether to torch.compile the model")


class LanguageTrainingSpec(TrainingSpec):
    """The same, where a validation reads text."""

    eval_tokens: int | None = Field(
        None, gt=1, description="tokens of the validation split to read; null reads all"
    )


class ParallelSpec(BaseModel):
    """How the processes that torchrun starts share the work; without torchrun there is one, and `mode` says nothing."""

    model_config = STRICT
    mode: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: whole weights in every process; fsdp: each holds a part of every parameter",
    )
    context: int = Field(
        1, gt=0, description="processes that share each sequence, a stretch for each"
    )
    recompute: bool = Field(
        False,
        description="keep only the inputs of each layer and compute it again in the backward pass",
    )


class Recipe(BaseModel):
    """One training run. On one CPU, two runs of the same recipe end with the same weights, bit for bit.

    What a run trains on is said by the recipe of its task, below; this is what they share.
    """

    model_config = STRICT
    name: Annotated[str, AfterValidator(_stays_inside)] = Field(
        description="what the run is called"
    )
    about: str = Field("", description="one line for people")
    target: Target | None = None
    task: str = Field(description="what is trained")
    model: ModelSpec
    data: Any
    batch: BatchSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    training: TrainingSpec
    parallel: ParallelSpec = ParallelSpec()


class LanguageRecipe(Recipe):
    """A language model of text."""

    task: Literal["language-model"] = "language-model"
    data: TextData
    batch: BlockBatchSpec
    training: LanguageTrainingSpec


class ImageRecipe(Recipe):
    """A classifier of images."""

    task: Literal["image-classification"]
    data: ImageData
    images: ImageSpec
    augmentation: Augmentation = Augmentation()
    mixing: Mixing = Mixing()
    batch: ImageBatchSpec


Data = TypeVar("Data")


class ArenaRecipe(Recipe, Generic[Data]):
    """A classifier for a task of Long Range Arena; `data.task` says which, and so what else `data` may say."""

    task: Literal["long-range-arena"]
    data: Data
    batch: SequenceBatchSpec


RECIPES: dict[str, type[Recipe]] = {
    "language-model": LanguageRecipe,
    "image-classification": ImageRecipe,
}
ARENA_RECIPES: dict[str, type[Recipe]] = {
    get_args(get_type_hints(kind)["task"])[0]: ArenaRecipe[kind] for kind in get_args(LRAData)
}


def recipe_type(document: dict) -> type[Recipe] | Problem:
    """The recipe that a nested dictionary of plain values has to be, by its task; or what is wrong with that."""
    task = document.get("task", "language-model")
    if task == "long-range-arena":
        data = document.get("data")
        path = "data.task"
        name = data.get("task") if isinstance(data, dict) else None
        known = ARENA_RECIPES
    else:
        path = "task"
        name = task
        known = RECIPES
    if isinstance(name, str) and name in known:
        return known[name]
    names = [*known, "long-range-arena"] if path == "task" else list(known)
    return Problem(path, ABSENT if name is None else name, f"must be one of {', '.join(names)}")
