"""Every recipe of the package is valid and builds its model; published ones have their values."""

import json
from dataclasses import dataclass, field

import pytest
import torch
import yaml

from hgrn.recipes import shipped
from hgrn.training.loop import train
from hgrn.training.recipe import load_recipe
from hgrn.training.runlog import read_rows
from tests.data.images.conftest import encoded
from tests.data.images.test_fixed import write_cifar
from tests.training.tiny_arena import write_arena
from tests.training.tiny_runs import write_tiny_images

SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
# The size where the recipe has a published or derived size; None: our own.
PARAMETERS = {
    "quickstart": None,
    "quickstart-hgrn2": None,
    "lm/sotu": None,
    "lm/text": None,
    "lm/long-context": None,
    "lm/wikitext103": 46_247_936,
    "lm/150m": 146.07e6,
    "lm/350m": 351.6e6,
    "lm/1b": 975.7e6,
    "image/imagenet-tiny": 6_107_560,
    "image/imagenet-small": 23_715_688,
    "image/cifar10": None,
    "image/fashion-mnist": None,
    "image/fashion-mnist-pixels": None,
    "lra/listops": 66_250,
    "lra/text": 683_394,
    "lra/retrieval": 132_290,
    "lra/image": 15_798_282,
    "lra/pathfinder": 999_170,
    "lra/pathx": 253_826,
    "lra/listops-cpu": None,
    "lra/text-cpu": None,
    "lra/retrieval-cpu": None,
    "lra/image-cpu": None,
    "lra/pathfinder-cpu": None,
    "lra/pathx-cpu": None,
}


@pytest.fixture
def with_data(tmp_path):
    """Load a shipped recipe, with small files in place of the user's."""

    def load(name, **overrides):
        records = [
            {"year": year, "text": f"It is the year {year}. " * 40} for year in range(1950, 2010)
        ]
        (tmp_path / "some.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )
        (tmp_path / "some.txt").write_text("Any text does. " * 2000)
        files = {
            "lm/sotu": {"data.files": [str(tmp_path / "some.jsonl")]},
            "lm/text": {"data.files": [str(tmp_path / "some.txt")]},
        }
        for name_of_pile in ("lm/150m", "lm/350m", "lm/1b"):
            files[name_of_pile] = {
                f"data.splits.{split}.files": [str(tmp_path / "some.jsonl")]
                for split in ("train", "validation")
            }
        if name.startswith(("image/", "lra/")):
            return load_recipe(name, {"data.path": str(tmp_path)} | overrides)
        return load_recipe(
            name, files.get(name, {}) | {"data.cache": str(tmp_path / "cache")} | overrides
        )

    return load


def test_all_recipes_are_known_here():
    assert list(shipped()) == sorted(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_dry_run(with_data, name):
    from hgrn.models import (
        HGRNForCausalLM,
        HGRNForImageClassification,
        HGRNForSequenceClassification,
        HGRNForSequencePairClassification,
    )

    recipe = with_data(name)
    with torch.device("meta"):
        if recipe.task == "long-range-arena":
            kind = {"retrieval": HGRNForSequencePairClassification}.get(
                recipe.data.task, HGRNForSequenceClassification
            )
            facts = (
                {}
                if recipe.model.preset
                else {"num_channels": 1, "vocab_size": 30, "num_labels": 10}
            )
            is_image = recipe.data.task in ("image", "pathfinder")
            model = (HGRNForImageClassification if is_image else kind)(recipe.model.config(**facts))
        elif recipe.task == "image-classification":
            classes = 1000 if recipe.data.format == "imagenet" else 10
            names = {number: str(number) for number in range(classes)}
            model = HGRNForImageClassification(
                recipe.model.config(num_channels=recipe.data.channels, id2label=names)
            )
        else:
            model = HGRNForCausalLM(recipe.model.config(vocab_size=259, **SPECIAL))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if name == "image/fashion-mnist":
        assert parameters <= 1e6
    elif name == "image/fashion-mnist-pixels":
        assert parameters < 2e5
    elif name.endswith("-cpu"):
        assert 5e4 < parameters < 3e5
    elif PARAMETERS[name] is None:
        assert 5e5 < parameters < 1e7
    else:
        assert parameters == pytest.approx(
            PARAMETERS[name], rel=0 if isinstance(PARAMETERS[name], int) else 2e-4
        )
    assert (recipe.target is None) == (PARAMETERS[name] is None)


@pytest.mark.parametrize("name", ["quickstart", "quickstart-hgrn2", "lm/sotu", "lm/text"])
def test_small_recipes_train(with_data, tmp_path, name):
    short = {
        "training.steps": 2,
        "training.eval_every": 2,
        "training.eval_tokens": 100,
        "training.threads": 1,
        "schedule.warmup_steps": 1,
        "model.hidden_size": 8,
        "model.num_hidden_layers": 2,
        "batch.block_size": 32,
        "batch.batch_size": 4,
    }
    if name == "quickstart-hgrn2":
        short["model.mixer_options"] = {"head_dim": 4}
    outcome = train(with_data(name, **short), tmp_path / "run")
    assert outcome.step == 2 and outcome.best["bits_per_byte"] < 12


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name.startswith("image/")])
def test_small_image_recipes_train(with_data, tmp_path, name):
    """The ImageNet recipes on a folder of two classes, with all of their augmentation."""
    given = {
        "training.steps": 2,
        "training.eval_every": 2,
        "training.log_every": 1,
        "training.threads": 1,
        "schedule.warmup_steps": 1,
        "model.hidden_size": 8,
        "model.num_hidden_layers": 2,
        "batch.batch_size": 4,
        "batch.accumulation": 2,
        "data.validation": 4,
    }
    if "imagenet" in name:
        for split in ("train", "val"):
            for number, kind in enumerate(("ant", "bee")):
                (tmp_path / split / kind).mkdir(parents=True)
                for image in range(4):
                    (tmp_path / split / kind / f"{image}.jpg").write_bytes(
                        encoded(4 * number + image, 40, 30, form="JPEG")
                    )
        given |= {
            "data.format": "folder",
            "images.workers": 0,
            "images.size": 28,
            "images.resize": 32,
        }
    elif "cifar" in name:
        write_cifar(tmp_path, 10, "bin")
    else:
        write_tiny_images(tmp_path)
    outcome = train(with_data(name, **given), tmp_path / "run")
    assert outcome.step == 2 and 0 <= outcome.best["accuracy"] <= 1
    assert (
        len([row for row in read_rows(tmp_path / "run" / "log.jsonl") if row["kind"] == "train"])
        == 2
    )


@pytest.mark.parametrize(
    "name, kind",
    [
        ("listops", "listops"),
        ("text", "text"),
        ("retrieval", "retrieval"),
        ("image", "image"),
        ("image", "idx"),
        ("pathfinder", "pathfinder"),
        ("pathx", "pathfinder"),
    ],
)
def test_small_arena_recipes_train(name, kind, tmp_path):
    if kind == "idx":
        write_tiny_images(tmp_path / kind)
    else:
        write_arena(kind, tmp_path / kind)
    short = {
        "data.path": str(tmp_path / kind),
        "data.cache": str(tmp_path / "cache"),
        "training.steps": 2,
        "training.eval_every": 2,
        "training.threads": 1,
        "schedule.warmup_steps": 1,
        "batch.batch_size": 4,
    }
    outcome = train(load_recipe(f"lra/{name}-cpu", short), tmp_path / "run")
    assert outcome.step == 2 and 0 <= outcome.best["accuracy"] <= 1


@pytest.mark.parametrize("size, width", [("tiny", 192), ("small", 384)])
def test_imagenet_is_the_authors_script(with_data, size, width):
    """The authors' script, line by line."""
    recipe = with_data(f"image/imagenet-{size}")
    augmentation = recipe.augmentation
    mixing = recipe.mixing
    batch = recipe.batch
    optimizer = recipe.optimizer
    schedule = recipe.schedule
    training = recipe.training
    assert (recipe.data.format, recipe.data.channels) == ("imagenet", 3)
    assert (recipe.images.size, recipe.images.resize) == (224, 256)
    assert (recipe.images.mean, recipe.images.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (augmentation.crop, augmentation.flip, augmentation.erasing) == ("resized", 0.5, 0.25)
    assert (augmentation.randaugment, augmentation.randaugment_deviation) == (9, 0.5)
    assert (mixing.mixup, mixing.cutmix, mixing.probability, mixing.switch, mixing.smoothing) == (
        0.8,
        1.0,
        1.0,
        0.5,
        0.1,
    )
    assert (batch.batch_size, batch.repeats) == (2048, 3)
    epoch = 1_281_167 // batch.batch_size
    assert (training.steps, schedule.warmup_steps) == (300 * epoch, 10 * epoch)
    assert optimizer.lr == 5e-4 * batch.batch_size / 512
    assert (optimizer.name, optimizer.betas, optimizer.eps) == ("adamw", (0.9, 0.999), 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.05, 5)
    assert (schedule.name, schedule.warmup_init_lr, schedule.min_lr, schedule.total_steps) == (
        "cosine",
        1e-6,
        1e-5,
        None,
    )
    assert (training.precision, training.seed, training.average) == ("fp32", 3407, None)
    config = recipe.model.config()
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (
        width,
        2 * width,
        12,
    )
    assert (config.patch_size, config.num_labels, config.bidirectional, config.grid) == (
        14,
        1000,
        True,
        False,
    )
    assert config.dropout == 0 and config.final_norm == "pooled" and not config.shared_theta


@dataclass
class Script:
    """A column of the authors' script for Long Range Arena.

    shape: width, layers, width of the GLU, classes.
    """

    batch: int
    lr: float
    decay: float
    warmup: int
    total: int
    epochs: int
    examples: int
    shape: tuple[int, int, int, int]
    dropout: float = 0.0
    positions: bool = True
    sequences: dict = field(default_factory=dict)


ARENA = {
    "listops": Script(
        128, 5e-4, 0.01, 5_000, 50_000, 50, 96_000, (32, 6, 32, 10), sequences={"max_length": 2048}
    ),
    "text": Script(
        32,
        5e-3,
        0,
        10_000,
        50_000,
        32,
        25_000,
        (128, 4, 128, 2),
        0.1,
        sequences={"max_length": 4096, "level": "characters", "min_count": 15},
    ),
    "retrieval": Script(
        64,
        5e-3,
        0,
        312,
        50_000,
        20,
        147_086,
        (64, 2, 128, 2),
        sequences={"max_length": 4000, "level": "characters", "min_count": 1},
    ),
    "image": Script(50, 3e-3, 0, 30_000, 50_000, 100, 45_000, (512, 6, 512, 10)),
    "pathfinder": Script(
        128, 2e-3, 0, 50_000, 500_000, 200, 160_000, (128, 6, 128, 2), positions=False
    ),
    "pathx": Script(16, 7.5e-4, 0, 150_000, 500_000, 100, 160_000, (64, 6, 64, 2), positions=False),
}
PUBLISHED = {
    "listops": 59.95,
    "text": 88.14,
    "retrieval": 94.23,
    "image": 88.69,
    "pathfinder": 92.92,
    "pathx": 97.50,
}


@pytest.mark.parametrize("name", ARENA)
def test_long_range_arena_is_the_authors_script(name):
    """The authors' script, line by line."""
    recipe = load_recipe(f"lra/{name}")
    script = ARENA[name]
    data = recipe.data
    optimizer = recipe.optimizer
    schedule = recipe.schedule
    training = recipe.training
    assert recipe.target.value == PUBLISHED[name]
    assert data.task == {"pathx": "pathfinder"}.get(name, name)
    assert {key: getattr(data, key) for key in script.sequences} == script.sequences
    if name == "image":
        assert data.colour and data.augment
    batch = recipe.batch
    assert (batch.batch_size, batch.accumulation, batch.pad_to, batch.group_by_length) == (
        script.batch,
        1,
        None,
        False,
    )
    assert (optimizer.name, optimizer.lr, optimizer.betas, optimizer.eps) == (
        "adamw",
        script.lr,
        (0.9, 0.999),
        1e-8,
    )
    assert (optimizer.weight_decay, optimizer.no_decay, optimizer.clip_norm) == (
        script.decay,
        "none",
        None,
    )
    assert (schedule.name, schedule.warmup_steps, schedule.total_steps) == (
        "cosine",
        script.warmup,
        script.total,
    )
    assert (schedule.warmup_init_lr, schedule.min_lr) == (0, 0)
    epoch = script.examples // script.batch
    assert training.steps == script.epochs * epoch
    assert (training.eval_every, training.save_every) == (epoch, epoch)
    assert (training.seed, training.precision, training.average) == (2222, "fp32", None)
    config = recipe.model.config()
    assert recipe.model.preset == f"lra-{name}" and not recipe.model.model_extra
    assert (
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        config.num_labels,
    ) == script.shape
    assert (config.bidirectional, config.complex_state, config.norm_type, config.mask_padding) == (
        True,
        True,
        "batch",
        False,
    )
    assert config.grid == (name in ("image", "pathfinder", "pathx"))
    assert (config.dropout, config.glu_dropout or 0) == (script.dropout, script.dropout)
    assert (config.sinusoidal_positions, config.embedding_dropout or 0) == (
        script.positions,
        0.1 * script.positions,
    )


def test_wikitext103_is_the_authors_script():
    """The authors' script, line by line."""
    recipe = load_recipe("lm/wikitext103")
    data = recipe.data
    batch = recipe.batch
    optimizer = recipe.optimizer
    schedule = recipe.schedule
    training = recipe.training
    assert (data.dataset, data.config, data.tokenizer) == (
        "wikitext",
        "wikitext-103-raw-v1",
        "gpt2",
    )
    assert data.documents == "line"
    assert (batch.block_size, batch.batch_size, batch.state) == (512, 128, "reset")
    assert batch.block_size * batch.batch_size == 65_536
    assert (optimizer.lr, optimizer.betas, optimizer.eps) == (5e-4, (0.9, 0.98), 1e-8)
    assert (optimizer.weight_decay, optimizer.no_decay, optimizer.clip_norm) == (0.2, "none", None)
    assert (schedule.name, schedule.warmup_steps, schedule.warmup_init_lr) == (
        "inverse_sqrt",
        8000,
        1e-7,
    )
    assert (training.steps, training.seed, training.precision) == (100_000, 1, "fp32")
    config = recipe.model.config(vocab_size=50257, **SPECIAL)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (50264, 512, 6)
    assert (config.intermediate_size, config.glu_act, config.dropout) == (1024, "identity", 0.1)
    assert (
        config.tie_word_embeddings
        and config.scale_embeddings
        and config.complex_state
        and config.bias
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_header_names_what_the_recipe_aims_at(name):
    from importlib.resources import files

    text = (files("hgrn") / "recipes" / f"{name}.yaml").read_text()
    header = text[: text.index("\nname:")]
    assert all(line.startswith("#") for line in header.splitlines())
    target = yaml.safe_load(text).get("target")
    if target is None:
        assert "aims at no table of the paper" in " ".join(header.replace("#", " ").split())
    else:
        assert f"{target['value']:.2f}" in header and "table" in header
