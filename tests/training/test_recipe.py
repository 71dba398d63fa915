import json

import pytest
from pydantic import ValidationError

from hgrn.errors import UserError
from hgrn.training.recipe import LanguageRecipe, load_recipe, recipe_from_yaml, recipe_to_yaml
from tests.training.tiny_runs import tiny_recipe


def problems(tmp_path, **overrides):
    with pytest.raises(UserError) as caught:
        tiny_recipe(tmp_path, **overrides)
    heading, *lines = str(caught.value).splitlines()
    assert heading.endswith(
        f"{len(lines)} problem{'s' if len(lines) > 1 else ''}; nothing was started:"
    )
    return [line.strip() for line in lines]


def test_five_mistakes_are_five_lines(tmp_path):
    lines = problems(
        tmp_path,
        optimizer__lrr="1e-3",
        training__steps="many",
        batch__accumulation="3",
        model__hiden_size="16",
        data__splits__train__span="[0.9, 0.1]",
    )
    assert len(lines) == 5
    for start in (
        "optimizer.lrr = 0.001: unknown key; did you mean lr?",
        "training.steps = 'many': should be a valid integer (optimizer steps)",
        "batch.batch_size = 4: must be a multiple of batch.accumulation = 3",
        "model.hiden_size: no such field; did you mean hidden_size?",
        "data: splits.train: span must be [start, end]",
    ):
        assert [line for line in lines if line.startswith(start)], (start, lines)


@pytest.mark.parametrize(
    "overrides, line",
    [
        (
            {"schedule__warmup_steps": "13"},
            "schedule.warmup_steps = 13: must be at most training.steps = 12",
        ),
        (
            {"schedule__name": "linear"},
            "schedule.name = 'linear': should be 'inverse_sqrt', 'cosine' or 'constant'",
        ),
        (
            {"schedule__name": "inverse_sqrt", "schedule__warmup_steps": "0"},
            "schedule.warmup_steps = 0: must be at least 1 for inverse_sqrt",
        ),
        (
            {"schedule__name": "constant", "schedule__min_lr": "1e-4"},
            "schedule.min_lr = 0.0001: is for cosine",
        ),
        ({"schedule__min_lr": "0.1"}, "schedule.min_lr = 0.1: must be at most optimizer.lr = 0.01"),
        (
            {"schedule__warmup_init_lr": "0.1"},
            "schedule.warmup_init_lr = 0.1: must be at most optimizer.lr",
        ),
        (
            {"optimizer__betas": "[0.9, 1]"},
            "optimizer.betas = [0.9, 1.0]: both must be at least 0 and below 1",
        ),
        ({"optimizer__betas": "0.9"}, "optimizer.betas.1: required"),
        (
            {"optimizer__lr": "true"},
            "optimizer.lr = True: should be a valid number (peak learning rate)",
        ),
        (
            {"optimizer__lr": "-1"},
            "optimizer.lr = -1: should be greater than 0 (peak learning rate)",
        ),
        ({"training__keep": "0"}, "training.keep = 0: should be greater than 0 (how many"),
        ({"training__compile": "1"}, "training.compile = 1: should be a valid boolean"),
        ({"training__steps": "[1"}, "training.steps = '[1': not a YAML value"),
        ({"optimizer": "null"}, "optimizer = None"),
        ({"parallel__mode": "zero"}, "parallel.mode = 'zero': should be 'ddp' or 'fsdp'"),
        (
            {"parallel__context": "17"},
            "parallel.context = 17: must be at most batch.block_size = 16",
        ),
        (
            {"parallel__mode": "fsdp", "training__compile": "true"},
            "training.compile = True: goes with parallel.mode = ddp and parallel.context = 1 only",
        ),
        (
            {"optimizer__lr__peak": "1"},
            "optimizer.lr.peak = 1: optimizer.lr is a value, not a section",
        ),
        ({"optimiser__lr": "1"}, "optimiser = {'lr': 1}: unknown key; did you mean optimizer?"),
        ({"model__dropout": "2"}, "model.dropout: must be a number in [0, 1), got 2"),
        ({"model__preset": "wikitext"}, "model.preset: preset must be one of"),
        ({"data__files": "nowhere.txt"}, "data: files: file nowhere.txt not found"),
        ({"data__dataset": "wikitext"}, "data: files and dataset exclude each other"),
        ({"data__splits": "{train: {}}"}, "data: splits: validation is missing"),
    ],
)
def test_one_mistake_is_one_line(tmp_path, overrides, line):
    (found,) = problems(tmp_path, **overrides)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("optimizer__learning_rate", "lr"),
        ("optimizer__max_grad_norm", "clip_norm"),
        ("batch__gradient_accumulation_steps", "accumulation"),
        ("batch__seq_len", "block_size"),
        ("training__max_steps", "steps"),
    ],
)
def test_names_that_other_programs_use_are_known(tmp_path, theirs, ours):
    (line,) = problems(tmp_path, **{theirs: "1"})
    assert line == f"{theirs.replace('__', '.')} = 1: unknown key; did you mean {ours}?"


def test_rules_between_sections_hold_beside_a_mistake_in_another(tmp_path):
    lines = problems(tmp_path, schedule__warmup_steps="13", optimizer__lr="fast")
    assert [line.partition(":")[0] for line in lines] == [
        "optimizer.lr = 'fast'",
        "schedule.warmup_steps = 13",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, 2**63])
def test_numbers_that_no_field_can_mean(tmp_path, value):
    lines = problems(tmp_path, model__dropout=value)
    assert any(line.startswith(f"model.dropout = {value}: must be ") for line in lines)


def test_a_missing_section(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: short\nmodel: {}\n")
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    for section in ("data", "batch", "optimizer", "schedule", "training"):
        assert f"  {section}: required" in str(caught.value)


@pytest.mark.parametrize(
    "text, value",
    [("1e-3", 1e-3), ("5E-4", 5e-4), (".5", 0.5), ("1", 1.0), ("+2.5e+0", 2.5), (0.25, 0.25)],
)
def test_numbers_are_read_as_people_write_them(tmp_path, text, value):
    assert tiny_recipe(tmp_path, optimizer__lr=text).optimizer.lr == value


def test_overrides_of_lists_text_and_null(tmp_path):
    (tmp_path / "1999.txt").write_text("text")
    recipe = tiny_recipe(
        tmp_path,
        name="2024",
        optimizer__betas="[0.5, 0.75]",
        optimizer__clip_norm="null",
        data__files=str(tmp_path / "1999.txt"),
        data__splits__test__span="[0, 1]",
    )
    assert recipe.name == "2024"
    assert recipe.optimizer.betas == (0.5, 0.75) and recipe.optimizer.clip_norm is None
    assert recipe.data.files == [str(tmp_path / "1999.txt")]
    assert recipe.data.splits["test"].span == (0, 1)


@pytest.mark.parametrize("null", ["null", "~", "none", "None", "NULL", None])
@pytest.mark.parametrize(
    "key",
    [
        "data__cache",
        "data__config",
        "data__splits__test__name",
        "model__weights",
        "model__preset",
        "training__eval_tokens",
        "optimizer__clip_norm",
        "data__splits__test__files",
    ],
)
def test_null_is_null_where_a_field_may_be(tmp_path, key, null):
    value = tiny_recipe(tmp_path, **{key: null})
    for part in key.split("__"):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value is None


def test_a_word_that_a_field_knows_is_that_word(tmp_path):
    assert tiny_recipe(tmp_path, optimizer__no_decay="none").optimizer.no_decay == "none"
    assert tiny_recipe(tmp_path, data__cache="./null").data.cache == "./null"


@pytest.mark.parametrize("key", ["name", "data__tokenizer", "data__text_field"])
def test_null_is_an_error_where_a_field_must_be_text(tmp_path, key):
    (line,) = problems(tmp_path, **{key: "null"})
    assert line.startswith(f"{key.replace('__', '.')} = 'null': must be text, and cannot be null")


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize(
    "key",
    [
        "name",
        "data__cache",
        "data__tokenizer",
        "data__splits__test__name",
        "model__weights",
        "model__dropout",
        "optimizer__clip_norm",
        "training__steps",
    ],
)
def test_an_empty_value_is_one_mistake(tmp_path, key, empty):
    lines = problems(tmp_path, **{key: empty})
    assert [
        line for line in lines if line.startswith(f"{key.replace('__', '.')} = {empty!r}: is empty")
    ]


@pytest.mark.parametrize("files", ["", " ", [""], '["", corpus:shakespeare]'])
def test_an_empty_name_of_a_file_is_not_the_current_folder(tmp_path, files):
    (line,) = problems(tmp_path, data__files=files)
    assert line.startswith("data: files: the name '")


def test_an_empty_path_in_a_file_is_a_mistake_too(tmp_path):
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "own.yaml").write_text(
        recipe_to_yaml(recipe).replace(f"cache: {recipe.data.cache}", 'cache: ""')
    )
    with pytest.raises(UserError, match="data.cache = '': is empty"):
        load_recipe(tmp_path / "own.yaml")


def test_a_field_of_several_types_is_read_as_yaml():
    names = {"data.path": ".", "data.format": "folder"}
    assert load_recipe(
        "image/imagenet-small", {**names, "data.classes": "[a, b]"}
    ).data.classes == ["a", "b"]
    assert load_recipe("image/imagenet-small", {**names, "data.classes": "7"}).data.classes == 7


def test_yaml_reads_1e_3_as_a_number_and_a_date_as_text(tmp_path):
    tiny_recipe(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(
        file.read_text().replace("lr: 0.01", "lr: 1e-2").replace("name: tiny", "name: 2024-01-01")
    )
    recipe = tiny_recipe_again(file, tmp_path)
    assert recipe.optimizer.lr == 0.01 and recipe.name == "2024-01-01"


def tiny_recipe_again(file, tmp_path):
    return load_recipe(file, {"data.files": str(tmp_path / "tiny.txt")})


def test_the_written_recipe_reads_back_equal(tmp_path):
    recipe = tiny_recipe(tmp_path, optimizer__eps="1e-9", model__dropout=0.25)
    file = tmp_path / "written.yaml"
    file.write_text(recipe_to_yaml(recipe))
    assert load_recipe(file) == recipe_from_yaml(file) == recipe
    (tmp_path / "tiny.txt").unlink()
    assert recipe_from_yaml(file) == recipe
    file.write_text(recipe_to_yaml(recipe).replace("seed:", "sed:"))
    with pytest.raises(UserError, match="(?s)not a recipe that this version.*training.sed"):
        recipe_from_yaml(file)


def test_names_that_are_no_recipe(tmp_path):
    with pytest.raises(UserError, match="called 'lm/wikitext'; did you mean lm/wikitext103"):
        load_recipe("lm/wikitext")
    with pytest.raises(UserError, match="no recipe file nowhere.yaml.*quickstart"):
        load_recipe("nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="must be a mapping of sections .*, not list"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match="is not YAML"):
        load_recipe(tmp_path / "broken.yaml")


def test_the_schema_alone_refuses_unknown_keys(tmp_path):
    document = tiny_recipe(tmp_path).model_dump(mode="json")
    document["batch"]["size"] = 3
    with pytest.raises(ValidationError, match="batch.size"):
        LanguageRecipe.model_validate_json(json.dumps(document))
