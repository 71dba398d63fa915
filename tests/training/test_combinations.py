"""Rules of recipes of classifiers, one line for each mistake; and the kind of recipe in a file."""

import pytest
import yaml

from hgrn.errors import UserError
from hgrn.training.recipe import (
    ArenaRecipe,
    ImageRecipe,
    load_recipe,
    recipe_from_yaml,
    recipe_to_yaml,
)
from tests.training.tiny_arena import tiny_arena_recipe
from tests.training.tiny_runs import tiny_image_recipe


def problems(make):
    with pytest.raises(UserError) as caught:
        make()
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"images__resize": 7}, "images.resize = 7: must be at least images.size = 8"),
        (
            {"images__mean": [0.1, 0.2]},
            "images.mean = [0.1, 0.2]: must be as many numbers as data.channels = 1",
        ),
        (
            {"images__std": [0.1, 0.2]},
            "images.std = [0.1, 0.2]: must be as many numbers as data.channels = 1",
        ),
        ({"data": 3}, "data = 3: "),
        ({"augmentation__scale": [0.5, 0.2]}, "augmentation: scale must be [low, high]"),
        ({"mixing__smoothing": 1}, "mixing: smoothing must be in [0, 1); got 1"),
        ({"images__std": [0.0]}, "images.std = [0.0]: every number must be above 0"),
        ({"images__sise": 8}, "images.sise = 8: unknown key; did you mean size or resize?"),
        ({"augmentation__flip": 1.5}, "augmentation: flip must be in [0, 1]; got 1.5"),
        ({"augmentation__flipp": 0.5}, "augmentation.flipp = 0.5: unknown key; did you mean flip?"),
        ({"mixing__mixup": -1}, "mixing: mixup must be at least 0; got -1"),
        ({"mixing__smothing": 0.1}, "mixing.smothing = 0.1: unknown key; did you mean smoothing?"),
        ({"data__channels": 2}, "data: channels must be 1 or 3; got 2"),
        ({"batch__repeats": 0}, "batch.repeats = 0: should be greater than 0"),
        (
            {"batch__accumulation": 3},
            "batch.batch_size = 8: must be a multiple of batch.accumulation = 3",
        ),
        (
            {"parallel__context": 2},
            "parallel.context = 2: goes with task = language-model only (set it to 1)",
        ),
        (
            {"training__average": 0.9, "parallel__mode": "fsdp"},
            "training.average = 0.9: goes with parallel.mode = ddp only",
        ),
        ({"training__average": 1}, "training.average = 1: should be less than 1"),
        ({"training__eval_tokens": 5}, "training.eval_tokens = 5: unknown key"),
        (
            {"schedule__total_steps": 2},
            "schedule.total_steps = 2: must be above schedule.warmup_steps = 2",
        ),
        (
            {"schedule__name": "constant", "schedule__total_steps": 9},
            "schedule.total_steps = 9: is for cosine",
        ),
        (
            {"model__grid": True, "model__bidirectional": False},
            "model.grid: must be False unless patch_size is set",
        ),
    ],
)
def test_one_mistake_is_one_line_in_a_recipe_of_images(tmp_path, changes, line):
    found = problems(lambda: tiny_image_recipe(tmp_path, **changes))
    assert found[0].startswith(line) and (len(found) == 1 or "data__channels" in changes), found


@pytest.mark.parametrize(
    "kind, changes, line",
    [
        ("listops", {"data__maximum": 5}, "data.maximum = 5: unknown key; "),
        ("listops", {"batch__pad_to": 0}, "batch.pad_to = 0: should be greater than 0"),
        (
            "image",
            {"batch__pad_to": 9},
            "batch.pad_to = 9: is for sequences, and data.task = image has images (remove it)",
        ),
        (
            "pathfinder",
            {"batch__group_by_length": True},
            "batch.group_by_length = True: is for sequences",
        ),
        (
            "retrieval",
            {"parallel__context": 2},
            "parallel.context = 2: goes with task = language-model only",
        ),
        (
            "text",
            {"data__task": "texts"},
            "data.task = 'texts': must be one of listops, text, retrieval, image, pathfinder",
        ),
    ],
)
def test_one_mistake_is_one_line_in_a_recipe_of_the_arena(tmp_path, kind, changes, line):
    (found,) = problems(lambda: tiny_arena_recipe(kind, tmp_path, **changes))
    assert found.startswith(line)


@pytest.mark.parametrize(
    "document, line",
    [
        (
            {"task": "image-clasification"},
            "task = 'image-clasification': must be one of language-model, image-classification, "
            "long-range-arena",
        ),
        ({"task": ["x"]}, "task = ['x']: must be one of"),
        ({"task": "long-range-arena"}, "data.task: must be one of listops"),
        ({"task": "long-range-arena", "data": 3}, "data.task: must be one of listops"),
    ],
)
def test_what_the_task_is_comes_first(tmp_path, document, line):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "odd"} | document))
    (found,) = problems(lambda: load_recipe(tmp_path / "recipe.yaml"))
    assert found.startswith(line)


def test_written_recipes_read_back_equal(tmp_path):
    recipes = [
        tiny_image_recipe(tmp_path),
        *(tiny_arena_recipe(kind, tmp_path) for kind in ("listops", "pathfinder")),
    ]
    assert [
        type(recipe).__mro__[0 if number == 0 else 1] for number, recipe in enumerate(recipes)
    ] == [ImageRecipe, ArenaRecipe, ArenaRecipe]
    for recipe in recipes:
        (tmp_path / "written.yaml").write_text(recipe_to_yaml(recipe))
        assert (
            load_recipe(tmp_path / "written.yaml")
            == recipe_from_yaml(tmp_path / "written.yaml")
            == recipe
        )
