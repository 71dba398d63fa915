"""YAML as recipes are written, and what a few bytes of it may stand for."""

import time

import pytest

from hgrn.errors import UserError
from hgrn.training.recipe import load_recipe, plain_yaml, recipe_from_yaml, recipe_to_yaml
from hgrn.training.recipe.plain_yaml import parse_yaml
from tests.training.tiny_runs import tiny_recipe

BOMB = "name: x\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij")
)
# Each level is named inside of the next, so that no level of the text is deep.
TOWER = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40))


def test_aliases_within_the_bounds_are_what_they_stand_for():
    assert parse_yaml("a: &a [1, {b: c}]\nd: [*a, *a]\ne: &e text\nf: *e\n") == {
        "a": [1, {"b": "c"}],
        "d": [[1, {"b": "c"}]] * 2,
        "e": "text",
        "f": "text",
    }
    assert parse_yaml("a: !!str 5\nc: 1e-3\nd: 2024-01-01\n<<: x\n1: y") == {
        "a": "5",
        "c": 1e-3,
        "d": "2024-01-01",
        "<<": "x",
        1: "y",
    }


@pytest.mark.parametrize(
    "text, message",
    [
        (BOMB, "more than 100,000 values"),
        (
            BOMB.replace("*", "{k: *").replace(",{", "},{").replace("]", "}]").replace("x}]", "x]"),
            "more than 100,000 values",
        ),
        (TOWER, "or 32 levels"),
        ("a: &a [*a]", "an alias stands inside of what it names"),
        ("a: &a {b: [*a]}", "an alias stands inside of what it names"),
        ("a: *b", "undefined alias"),
        ("[" * 20_000, "more than 32 levels"),
        ("{a: " * 20_000, "more than 32 levels"),
        ("- " * 20_000, "more than 32 levels"),
        *(
            (f"a: !!{tag}", f"the tag tag:yaml.org,2002:{tag.split()[0]} is not read")
            for tag in (
                "int abc",
                "float abc",
                "bool abc",
                "timestamp x",
                "binary x",
                "set {a}",
                "python/object/apply:os.system [ls]",
            )
        ),
        ("!!merge x: {a: 1}", "is not read"),
        ("!x y", "the tag !x is not read"),
        ("a: " + "9" * 5000, "digits"),
        ("? [a]\n: b", "unhashable"),
        ("a: 'x", "end of stream"),
        ("a: \0", "special characters"),
    ],
)
def test_what_is_not_read(tmp_path, text, message):
    began = time.process_time()
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    for read in (load_recipe, recipe_from_yaml):
        with pytest.raises(UserError, match=message):
            read(file)
    assert time.process_time() - began < 5


def test_a_large_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_yaml, "LARGEST_FILE", 1000)
    (tmp_path / "recipe.yaml").write_text("# " + "x" * 1000)
    with pytest.raises(UserError, match="has 1,002 bytes; such a file has at most 1,000"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/tmp/x",
        "a/../../b",
        "",
        "a\\..\\b",
        "C:x",
        "a\nb",
        "a\0b",
        ".",
        "x" * 201,
        "é" * 101,
    ],
)
def test_a_name_leads_nowhere_else(tmp_path, name):
    with pytest.raises(
        UserError, match="(?s)problem.*name = .*should be a name, or a path below a folder"
    ):
        tiny_recipe(tmp_path, name=name)
    saved = recipe_to_yaml(tiny_recipe(tmp_path)).replace("name: tiny\n", f"name: {name!r}\n")
    (tmp_path / "recipe.yaml").write_text(saved)
    with pytest.raises(UserError):
        recipe_from_yaml(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", ["lm/run", "2024", "a name", "..x", "überall", "x" * 200])
def test_names_of_runs(tmp_path, name):
    assert tiny_recipe(tmp_path, name=name).name == name


@pytest.mark.parametrize(
    "name", ["../recipes/quickstart", "/quickstart", "lm/../quickstart", "quickstart.yaml/..", "\0"]
)
def test_names_of_shipped_recipes_are_no_paths(name):
    with pytest.raises(UserError, match="no shipped recipe is called"):
        load_recipe(name)
