"""What may change in the recipe of a run that is resumed."""

from fnmatch import fnmatchcase
from typing import Any

from hgrn.training.recipe.kinds import Recipe

# Patterns of dotted fields that do not decide the weights.
_FREE_TO_CHANGE = (
    "name",
    "about",
    "target*",
    # The content of the data is in the fingerprint of a checkpoint.
    "data.files",
    "data.path",
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
    "images.workers",
    "images.max_corrupt",
    "batch.accumulation",
    "parallel*",
)


def blocking_changes(saved: Recipe, now: Recipe) -> list[str]:
    """How `now` differs from the recipe of a checkpoint in what decides the weights.

    Names, bookkeeping, validation, threads and how a batch is shared out may change. So may the
    path of the training data, since the checkpoint has a fingerprint of its content. The run may
    get longer if its learning rate does not depend on the length. That of a cosine does, unless
    `schedule.total_steps` says where it ends.
    """
    before = leaves(saved.model_dump(mode="json"))
    after = leaves(now.model_dump(mode="json"))
    free = list(_FREE_TO_CHANGE)
    is_longer = now.training.steps >= saved.training.steps
    if is_longer and _end_of_rate(now) == _end_of_rate(saved):
        free += ["training.steps", "schedule.total_steps"]
    return [
        f"{key}: {before.get(key)!r} in the checkpoint, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not any(fnmatchcase(key, pattern) for pattern in free)
    ]


def can_be_longer(recipe: Recipe) -> bool:
    """Whether a run of this recipe may be resumed with more `training.steps`."""
    return _end_of_rate(recipe) is None or recipe.schedule.total_steps is not None


def leaves(document: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of everything in nested dictionaries; lists are values."""
    if not isinstance(document, dict):
        return {prefix: document}
    found = {}
    for key, value in document.items():
        found |= leaves(value, f"{prefix}.{key}" if prefix else key)
    return found


def _end_of_rate(recipe: Recipe) -> int | None:
    return recipe.schedule.end(recipe.training.steps)
