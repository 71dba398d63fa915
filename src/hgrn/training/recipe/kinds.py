"""A recipe for each kind of task: its sections, and the rules between them.

A rule between two sections stands at the later one. pydantic then gives the earlier ones in
`info.data`, without those that are wrong in themselves; so no mistake hides another.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, field_validator

from hgrn.data.images.augment import Augmentation
from hgrn.data.images.mixing import Mixing
from hgrn.data.images.opening import ImageData
from hgrn.data.images.opening import problems as image_problems
from hgrn.data.lra.load import LRAData
from hgrn.data.text import TextData, missing_splits
from hgrn.data.text import problems as text_problems
from hgrn.training.recipe.fields import (
    STRICT,
    BatchSpec,
    BlockBatchSpec,
    ImageBatchSpec,
    ImageSpec,
    LanguageTrainingSpec,
    ModelSpec,
    OptimizerSpec,
    ParallelSpec,
    ScheduleSpec,
    SequenceBatchSpec,
    Target,
    TrainingSpec,
    check_name,
    is_new_run,
)
from hgrn.training.recipe.problems import ABSENT, Problem, broken

_TASK = "what is trained"


class Recipe(BaseModel):
    """One training run. On one CPU, two runs of the same recipe end with the same weights, bit for
    bit.

    The recipe of each task, below, says what it trains on; this is what they share.
    """

    model_config = STRICT
    name: Annotated[str, AfterValidator(check_name)] = Field(
        description="what the run is called, and where its folder is below runs"
    )
    about: str = Field(default="", description="one line for people")
    target: Target | None = Field(default=None, description="the published number that it aims at")
    task: str = Field(description=_TASK)
    model: ModelSpec
    # Each kind of recipe says what its data is.
    data: Any
    batch: BatchSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    training: TrainingSpec
    parallel: ParallelSpec = ParallelSpec()

    @field_validator("schedule")
    @classmethod
    def _stays_below_the_peak(cls, schedule: ScheduleSpec, info: ValidationInfo) -> ScheduleSpec:
        if optimizer := info.data.get("optimizer"):
            rule = f"must be at most optimizer.lr = {optimizer.lr}, the peak"
            _refuse(
                Problem(f"schedule.{name}", rate, rule)
                for name in ("warmup_init_lr", "min_lr")
                if (rate := getattr(schedule, name)) > optimizer.lr
            )
        return schedule

    @field_validator("training")
    @classmethod
    def _is_longer_than_the_warmup(
        cls, training: TrainingSpec, info: ValidationInfo
    ) -> TrainingSpec:
        schedule = info.data.get("schedule")
        if schedule and schedule.warmup_steps > training.steps:
            rule = f"must be at most training.steps = {training.steps}"
            remedy = "shorten it or train longer"
            raise broken(Problem("schedule.warmup_steps", schedule.warmup_steps, rule, remedy))
        return training

    @field_validator("parallel")
    @classmethod
    def _suits_the_training(cls, parallel: ParallelSpec, info: ValidationInfo) -> ParallelSpec:
        training = info.data.get("training")
        # torch.compile traces one process that reads whole sequences.
        found = []
        if training and training.compile and (parallel.mode == "fsdp" or parallel.context > 1):
            rule = "goes with parallel.mode = ddp and parallel.context = 1 only"
            found.append(Problem("training.compile", True, rule, "set it to false"))
        if training and training.average and parallel.mode == "fsdp":
            rule = "goes with parallel.mode = ddp only"
            remedy = "set it to null"
            found.append(Problem("training.average", training.average, rule, remedy))
        _refuse(found)
        return parallel


class LanguageRecipe(Recipe):
    """A language model of text."""

    task: Literal["language-model"] = Field(default="language-model", description=_TASK)
    data: TextData
    batch: BlockBatchSpec
    training: LanguageTrainingSpec

    @field_validator("data")
    @classmethod
    def _text_is_there(cls, data: TextData, info: ValidationInfo) -> TextData:
        # Whether the validation split is needed is known only when `training` is.
        if is_new_run(info):
            _refuse(Problem("data", ABSENT, rule) for rule in text_problems(data, ("train",)))
        return data

    @field_validator("training")
    @classmethod
    def _has_text_to_validate(
        cls, training: LanguageTrainingSpec, info: ValidationInfo
    ) -> LanguageTrainingSpec:
        data = info.data.get("data")
        if training.eval_every and data and is_new_run(info):
            _refuse(Problem("data", ABSENT, rule) for rule in missing_splits(data, ["validation"]))
        return training

    @field_validator("parallel")
    @classmethod
    def _has_something_to_share(cls, parallel: ParallelSpec, info: ValidationInfo) -> ParallelSpec:
        batch = info.data.get("batch")
        if batch and parallel.context > batch.block_size:
            rule = (
                f"must be at most batch.block_size = {batch.block_size}: every process reads some "
                "of a sequence"
            )
            raise broken(Problem("parallel.context", parallel.context, rule))
        return parallel


def _reads_whole_examples(parallel: ParallelSpec) -> ParallelSpec:
    """Only a language model can share a sequence over processes."""
    if parallel.context > 1:
        rule = "goes with task = language-model only"
        raise broken(Problem("parallel.context", parallel.context, rule, "set it to 1"))
    return parallel


class ImageRecipe(Recipe):
    """A classifier of images."""

    task: Literal["image-classification"] = Field(description=_TASK)
    data: ImageData
    images: ImageSpec
    augmentation: Augmentation = Augmentation()
    mixing: Mixing = Mixing()
    batch: ImageBatchSpec
    parallel: Annotated[ParallelSpec, AfterValidator(_reads_whole_examples)] = ParallelSpec()

    @field_validator("data")
    @classmethod
    def _images_are_there(cls, data: ImageData, info: ValidationInfo) -> ImageData:
        if is_new_run(info):
            _refuse(Problem("data", ABSENT, rule) for rule in image_problems(data))
        return data

    @field_validator("images")
    @classmethod
    def _suits_the_channels(cls, images: ImageSpec, info: ValidationInfo) -> ImageSpec:
        if data := info.data.get("data"):
            rule = f"must be as many numbers as data.channels = {data.channels}"
            _refuse(
                Problem(f"images.{name}", list(values), rule)
                for name, values in (("mean", images.mean), ("std", images.std))
                if len(values) != data.channels
            )
        return images

    @field_validator("augmentation", "mixing")
    @classmethod
    def _has_its_own_rules(
        cls, section: Augmentation | Mixing, info: ValidationInfo
    ) -> Augmentation | Mixing:
        _refuse(Problem(str(info.field_name), ABSENT, rule) for rule in section.problems())
        return section


Data = TypeVar("Data")


class ArenaRecipe(Recipe, Generic[Data]):
    """A classifier for a task of Long Range Arena; `data.task` says which, and so what else `data`
    may say."""

    task: Literal["long-range-arena"] = Field(description=_TASK)
    data: Data
    batch: SequenceBatchSpec
    parallel: Annotated[ParallelSpec, AfterValidator(_reads_whole_examples)] = ParallelSpec()

    @field_validator("batch")
    @classmethod
    def _pads_only_sequences(
        cls, batch: SequenceBatchSpec, info: ValidationInfo
    ) -> SequenceBatchSpec:
        data = info.data.get("data")
        # Only the data of sequences has a longest one.
        if data and not hasattr(data, "max_length"):
            rule = f"is for sequences, and data.task = {data.task} has images"
            _refuse(
                Problem(f"batch.{name}", value, rule, "remove it")
                for name in ("pad_to", "group_by_length")
                if (value := getattr(batch, name))
            )
        return batch


# By `task`, and for Long Range Arena by `data.task`.
RECIPES: dict[str, type[Recipe]] = {
    "language-model": LanguageRecipe,
    "image-classification": ImageRecipe,
}
ARENA_RECIPES: dict[str, type[Recipe]] = {
    get_args(get_type_hints(kind)["task"])[0]: ArenaRecipe[kind] for kind in get_args(LRAData)
}


def kind_of(document: dict) -> type[Recipe] | Problem:
    """The class of recipe that a nested dictionary of plain values describes, by its task; or what
    is wrong with the task."""
    task = document.get("task", "language-model")
    path = "task"
    name = task
    known = RECIPES
    names = [*RECIPES, "long-range-arena"]
    if task == "long-range-arena":
        data = document.get("data")
        path = "data.task"
        name = data.get("task") if isinstance(data, dict) else None
        known = ARENA_RECIPES
        names = list(ARENA_RECIPES)
    if isinstance(name, str) and name in known:
        return known[name]
    return Problem(path, ABSENT if name is None else name, f"must be one of {', '.join(names)}")


def _refuse(found: Iterable[Problem]) -> None:
    """Raise the error for these problems, if there are any."""
    if problems := list(found):
        raise broken(*problems)
