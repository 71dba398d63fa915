"""What is trained: data, model, batches, loss and validation of each kind of recipe.

`base` says what the loop asks of a task. `language`, `images` and `arena` are the tasks;
`classification` is what the last two share.
"""

from types import ModuleType
from typing import TYPE_CHECKING

from hgrn.progress import OnProgress
from hgrn.training.distributed import Ranks
from hgrn.training.recipe import ArenaRecipe, ImageRecipe, LanguageRecipe, Recipe
from hgrn.training.tasks.base import Task

if TYPE_CHECKING:
    from hgrn.training.tasks.classification import Examples


def build_task(recipe: Recipe, ranks: Ranks, on_progress: OnProgress | None = None) -> Task:
    """Open the data of a recipe and build its seeded model; see `Task`."""
    return _module(recipe).TASK(recipe, ranks, on_progress)


def open_examples(recipe: ImageRecipe | ArenaRecipe, split: str) -> "Examples":
    """The labelled examples of a split of a recipe's data, for an evaluation.

    Raises UserError for what is wrong with them.
    """
    return _module(recipe).open_examples(recipe, split)


def _module(recipe: Recipe) -> ModuleType:
    """The module of a recipe's task. It is imported only when needed, with its readers of data."""
    match recipe:
        case LanguageRecipe():
            from hgrn.training.tasks import language as module
        case ImageRecipe():
            from hgrn.training.tasks import images as module
        case ArenaRecipe():
            from hgrn.training.tasks import arena as module
        case _:
            raise TypeError(f"no task trains a {type(recipe).__name__}")
    return module
