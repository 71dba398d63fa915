"""A model that no machine holds is refused before its first tensor."""

import pytest

from hgrn.errors import UserError
from hgrn.training.recipe import fields, load_recipe
from tests.training.tiny_runs import tiny_recipe


def test_a_model_that_the_machine_cannot_hold(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, model__hidden_size="100000", model__num_hidden_layers="3")
    monkeypatch.setattr(fields, "_memory", lambda: 8e9)
    with pytest.raises(
        ValueError,
        match="the model's weights need 960 GB, and this machine has 8 GB of memory: "
        "lower model.hidden_size",
    ):
        recipe.model.config(vocab_size=259)
    assert tiny_recipe(tmp_path).model.config(vocab_size=259).hidden_size == 8


@pytest.mark.parametrize(
    "field, value",
    [
        ("hidden_size", "1000000000"),
        ("num_hidden_layers", "1000000000"),
        ("__class__", "x"),
        ("_x", "1"),
    ],
)
def test_fields_of_a_model_that_no_machine_holds(tmp_path, field, value):
    tiny_recipe(tmp_path)
    with pytest.raises(
        UserError, match=f"1 problem; nothing was started:\n  model.{field}( = |: )"
    ):
        load_recipe(
            tmp_path / "tiny.yaml",
            {"data.files": str(tmp_path / "tiny.txt"), f"model.{field}": value},
        )
