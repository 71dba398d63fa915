"""What is wrong with a recipe although every single value of it is of its type."""

from dataclasses import fields
from typing import Any

from hgrn.data.images.opening import problems as image_problems
from hgrn.data.text import problems as text_problems
from hgrn.training.problems import ABSENT, Problem
from hgrn.training.specs import (
    ArenaRecipe,
    BatchSpec,
    ImageRecipe,
    LanguageRecipe,
    ModelSpec,
    OptimizerSpec,
    ParallelSpec,
    Recipe,
    ScheduleSpec,
    TrainingSpec,
)


def combination_problems(kind: type[Recipe], sections: dict[str, Any]) -> list[Problem]:
    """The problems of a recipe of a kind; sections that are wrong in themselves are left out."""
    (of_kind,) = [judge for base, judge in _OF_KIND.items() if issubclass(kind, base)]
    return _common(**sections) + of_kind(**sections)


def _common(
    model: ModelSpec | None = None,
    batch: BatchSpec | None = None,
    optimizer: OptimizerSpec | None = None,
    schedule: ScheduleSpec | None = None,
    training: TrainingSpec | None = None,
    parallel: ParallelSpec | None = None,
    **_: Any,
) -> list[Problem]:
    found = []
    if batch and batch.batch_size % batch.accumulation:
        rule = f"must be a multiple of batch.accumulation = {batch.accumulation}"
        found.append(Problem("batch.batch_size", batch.batch_size, rule, "change either"))
    if optimizer and not all(0 <= beta < 1 for beta in optimizer.betas):
        found.append(
            Problem("optimizer.betas", list(optimizer.betas), "both must be at least 0 and below 1")
        )
    if schedule:
        found += _schedule(schedule, optimizer, training)
    if (
        parallel
        and training
        and training.compile
        and (parallel.mode == "fsdp" or parallel.context > 1)
    ):
        rule = "goes with parallel.mode = ddp and parallel.context = 1 only"
        found.append(Problem("training.compile", True, rule, "set it to false"))
    if parallel and training and training.average and parallel.mode == "fsdp":
        found.append(
            Problem(
                "training.average",
                training.average,
                "goes with parallel.mode = ddp only",
                "set it to null",
            )
        )
    if model:
        found += _model(model)
    return found


def _language(data=None, batch=None, training=None, parallel=None, **_: Any) -> list[Problem]:
    found = []
    if parallel and batch and parallel.context > batch.block_size:
        rule = f"must be at most batch.block_size = {batch.block_size}: every process reads some of a sequence"
        found.append(Problem("parallel.context", parallel.context, rule))
    if data:
        required = ("train", "validation") if training and training.eval_every else ("train",)
        found += [Problem("data", ABSENT, problem) for problem in text_problems(data, required)]
    return found


def _images(
    data=None, images=None, augmentation=None, mixing=None, parallel=None, **_: Any
) -> list[Problem]:
    found = _whole_examples(parallel)
    if data:
        found += [Problem("data", ABSENT, problem) for problem in image_problems(data)]
    for section, name in ((augmentation, "augmentation"), (mixing, "mixing")):
        if section:
            found += [Problem(name, ABSENT, problem) for problem in section.problems()]
    if images:
        if images.resize is not None and images.resize < images.size:
            found.append(
                Problem(
                    "images.resize", images.resize, f"must be at least images.size = {images.size}"
                )
            )
        for name in ("mean", "std"):
            values = list(getattr(images, name))
            if data and len(values) != data.channels:
                found.append(
                    Problem(
                        f"images.{name}",
                        values,
                        f"must be as many numbers as data.channels = {data.channels}",
                    )
                )
        if any(value <= 0 for value in images.std):
            found.append(Problem("images.std", list(images.std), "every number must be above 0"))
    return found


def _arena(data=None, batch=None, parallel=None, **_: Any) -> list[Problem]:
    found = _whole_examples(parallel)
    if data and batch and not hasattr(data, "max_length"):
        rule = f"is for sequences, and data.task = {data.task} has images"
        found += [
            Problem(f"batch.{name}", value, rule, "remove it")
            for name, value in (
                ("pad_to", batch.pad_to),
                ("group_by_length", batch.group_by_length),
            )
            if value
        ]
    return found


_OF_KIND = {LanguageRecipe: _language, ImageRecipe: _images, ArenaRecipe: _arena}


def _whole_examples(parallel: ParallelSpec | None) -> list[Problem]:
    if parallel and parallel.context > 1:
        return [
            Problem(
                "parallel.context",
                parallel.context,
                "goes with task = language-model only",
                "set it to 1",
            )
        ]
    return []


def _schedule(
    schedule: ScheduleSpec, optimizer: OptimizerSpec | None, training: TrainingSpec | None
) -> list[Problem]:
    found = []
    if training and schedule.warmup_steps > training.steps:
        rule = f"must be at most training.steps = {training.steps}"
        found.append(
            Problem(
                "schedule.warmup_steps", schedule.warmup_steps, rule, "shorten it or train longer"
            )
        )
    if schedule.name == "inverse_sqrt" and schedule.warmup_steps == 0:
        rule = "must be at least 1 for inverse_sqrt, whose decay starts there"
        found.append(Problem("schedule.warmup_steps", 0, rule, "or choose another schedule.name"))
    for name, unset in (("min_lr", 0), ("total_steps", "null")):
        if schedule.name != "cosine" and getattr(schedule, name):
            rule = f"is for cosine, and schedule.name = {schedule.name}"
            found.append(
                Problem(f"schedule.{name}", getattr(schedule, name), rule, f"set it to {unset}")
            )
    if schedule.total_steps is not None and schedule.total_steps <= schedule.warmup_steps:
        rule = f"must be above schedule.warmup_steps = {schedule.warmup_steps}"
        found.append(Problem("schedule.total_steps", schedule.total_steps, rule))
    for name in ("warmup_init_lr", "min_lr"):
        if optimizer and getattr(schedule, name) > optimizer.lr:
            rule = f"must be at most optimizer.lr = {optimizer.lr}, the peak"
            found.append(Problem(f"schedule.{name}", getattr(schedule, name), rule))
    return found


def _model(spec: ModelSpec) -> list[Problem]:
    """What HGRNConfig says about the model; its message has a line "field: rule" for each."""
    from transformers import PreTrainedConfig

    from hgrn.models import HGRNConfig
    from hgrn.models.configuration import OF_TRANSFORMERS

    foreign = (OF_TRANSFORMERS | {field.name for field in fields(PreTrainedConfig)}) - {
        "num_labels"
    }
    if foreign := [name for name in spec.model_extra if name in foreign or name.startswith("_")]:
        rule = "is not a field of HGRNConfig that a recipe can set"
        return [
            Problem(f"model.{name}", spec.model_extra[name], rule, "leave it out")
            for name in foreign
        ]
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
