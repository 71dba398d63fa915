"""What is trained: data, model, batches, loss and validation of each kind of recipe.

`base` says what the loop asks of a task; `language`, `images` and `arena` are the tasks; `classification` is what the
last two share. Import from those modules.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from hgrn.training.distributed import Ranks
from hgrn.training.recipe import ArenaRecipe, ImageRecipe, LanguageRecipe, Recipe
from hgrn.training.tasks.base import Task

if TYPE_CHECKING:
    from hgrn.training.tasks.classification import Examples


def build_task(
    recipe: Recipe, ranks: Ranks, progress: Callable[[int, int | None], None] | None = None
) -> Task:
    """Open the data of a recipe and build its seeded model; see `Task`."""
    return _room(recipe).TASK(recipe, ranks, progress)


def open_examples(recipe: ImageRecipe | ArenaRecipe, split: str) -> "Examples":
    """The labelled examples of a split of a recipe's data, to be evaluated. Raises UserError for what is wrong with them."""
    return _room(recipe).open_examples(recipe, split)


def _room(recipe: Recipe):
    """The module of a recipe's task; each imports readers of its own."""
    match recipe:
        case LanguageRecipe():
            from hgrn.training.tasks import language as room
        case ImageRecipe():
            from hgrn.training.tasks import images as room
        case ArenaRecipe():
            from hgrn.training.tasks import arena as room
    return room
