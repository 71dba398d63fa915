"""Recipes: everything that defines a training run, as typed data.

`fields` has the sections, `kinds` a recipe for each task, `load` reads, checks and writes one.
"""

from hgrn.training.recipe.changes import blocking_changes, can_be_longer, leaves
from hgrn.training.recipe.describe import FieldRow, describe
from hgrn.training.recipe.kinds import ArenaRecipe, ImageRecipe, LanguageRecipe, Recipe
from hgrn.training.recipe.load import load_recipe, recipe_from_yaml, recipe_to_yaml

__all__ = [
    "ArenaRecipe",
    "FieldRow",
    "ImageRecipe",
    "LanguageRecipe",
    "Recipe",
    "blocking_changes",
    "can_be_longer",
    "describe",
    "leaves",
    "load_recipe",
    "recipe_from_yaml",
    "recipe_to_yaml",
]
