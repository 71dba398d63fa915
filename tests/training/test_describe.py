"""A recipe as rows: every field with its value, default and meaning."""

import pytest

from hgrn import recipes
from hgrn.training.recipe import FieldRow, describe, recipe_to_yaml
from hgrn.training.recipe.changes import leaves
from hgrn.training.recipe.describe import REQUIRED
from hgrn.training.recipe.plain_yaml import parse_yaml
from tests.training.tiny_arena import tiny_arena_recipe
from tests.training.tiny_runs import tiny_image_recipe, tiny_recipe

MAKE = {
    "text": tiny_recipe,
    "images": tiny_image_recipe,
    "arena": lambda folder: tiny_arena_recipe("text", folder),
}


@pytest.mark.parametrize("kind", MAKE)
def test_there_is_a_row_for_every_field_of_the_written_recipe(tmp_path, kind):
    recipe = MAKE[kind](tmp_path)
    # `leaves` passes over an empty mapping.
    rows = {row.field: row.value for row in describe(recipe) if row.value != {}}
    assert rows == leaves(parse_yaml(recipe_to_yaml(recipe)))


def test_a_row_has_value_default_and_meaning(tmp_path):
    rows = describe(tiny_recipe(tmp_path))
    assert FieldRow("optimizer.lr", 0.01, REQUIRED, "peak learning rate") in rows
    found = {row.field: row for row in rows}
    assert found["optimizer.betas"].default == [0.9, 0.95]
    assert found["data.splits.train.span"].value == [0.0, 0.8]
    assert found["model.hidden_size"].default == 512
    assert found["model.hidden_size"].meaning == "channels D"


def test_every_field_of_a_recipe_of_text_has_a_meaning(tmp_path):
    assert [row.field for row in describe(tiny_recipe(tmp_path)) if not row.meaning] == []


def test_every_shipped_recipe_has_one_line_about_it():
    lines = recipes.summaries()
    assert list(lines) == list(recipes.shipped()) == sorted(lines)
    assert all(lines.values())
    assert lines["quickstart"].startswith("byte-level HGRN on Shakespeare's works")
