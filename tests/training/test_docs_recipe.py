"""The recipe that the documents show is one."""

import re
from pathlib import Path

from hgrn.training.recipe import ImageRecipe, load_recipe

ROOT = Path(__file__).parents[2]


def test_the_recipe_of_images(tmp_path):
    (shown,) = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL
    )
    (tmp_path / "flowers.yaml").write_text(shown)
    recipe = load_recipe(tmp_path / "flowers.yaml", {"data.path": str(tmp_path)})
    assert (
        isinstance(recipe, ImageRecipe) and recipe.model.config(num_channels=3).hidden_size == 128
    )
