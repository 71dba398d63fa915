"""Data of the Long Range Arena in the formats of the releases, so small that runs take seconds."""

import random
from pathlib import Path

import yaml
from PIL import Image

from hgrn.data.lra.listops_generator import Grammar, generate
from hgrn.data.lra.pathfinder import HARD
from hgrn.data.lra.retrieval import FILES
from hgrn.training.recipe import Recipe, load_recipe
from tests.data.images.test_fixed import write_cifar

KINDS = ("listops", "text", "retrieval", "image", "pathfinder")
TINY = {
    "name": "tiny arena",
    "task": "long-range-arena",
    "target": {
        "table": "Long Range Arena",
        "metric": "accuracy on the test split, percent",
        "value": 59.95,
    },
    "batch": {"batch_size": 4},
    "optimizer": {"lr": 1e-2, "weight_decay": 0.01, "no_decay": "none", "betas": [0.9, 0.999]},
    "schedule": {"name": "cosine", "warmup_steps": 1, "total_steps": 10},
    "training": {
        "steps": 2,
        "eval_every": 1,
        "save_every": 1,
        "log_every": 1,
        "keep": None,
        "threads": 1,
    },
}


def write_arena(kind: str, folder: Path) -> None:
    """The files of one of `KINDS` in a new folder."""
    choose = random.Random(0)

    def words(count: int, known: str) -> str:
        return " ".join(choose.choices(known.split(), k=count))

    if kind == "listops":
        generate(folder, 0, 24, 6, 6, Grammar(min_length=8, max_length=60), processes=1)
    elif kind == "pathfinder":
        lines = []
        (folder / HARD / "imgs" / "0").mkdir(parents=True)
        (folder / HARD / "metadata").mkdir()
        for number in range(30):
            Image.frombytes("L", (32, 32), choose.randbytes(32 * 32)).save(
                folder / HARD / "imgs" / "0" / f"{number}.png"
            )
            lines.append(f"imgs/0 {number}.png {number} {number % 2} 1.0 14 4 2 0.5 1 1\n")
        (folder / HARD / "metadata" / "0.npy").write_text("".join(lines))
    elif kind == "image":
        write_cifar(folder, 10, "bin")
    elif kind == "text":
        for split in ("train", "test"):
            for name, known in (("neg", "bad worse dull"), ("pos", "good fine lively")):
                (folder / split / name).mkdir(parents=True)
                for number in range(10):
                    (folder / split / name / f"{number}.txt").write_text(words(number + 1, known))
    else:
        folder.mkdir()
        for file in FILES.values():
            lines = [
                f"{number % 2}.0\t1\t2\t"
                f"{words(number + 1, 'gate scan')}\t{words(3, 'state gate')}\n"
                for number in range(20)
            ]
            (folder / file).write_text("".join(lines))


def tiny_arena_recipe(kind: str, folder: Path, **overrides: object) -> Recipe:
    """A small recipe of the authors' model for one of `KINDS`, on files in `folder`.

    overrides: as for `tiny_recipe`.
    """
    if not (folder / kind).exists():
        write_arena(kind, folder / kind)
    data = {"task": kind, "path": str(folder / kind), "cache": str(folder / "cache")}
    data |= {"text": {"min_count": 1}, "image": {"colour": True, "augment": True}}.get(kind, {})
    model = {
        "preset": f"lra-{kind}",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
    }
    (folder / f"{kind}.yaml").write_text(yaml.safe_dump(TINY | {"data": data, "model": model}))
    return load_recipe(
        folder / f"{kind}.yaml", {key.replace("__", "."): value for key, value in overrides.items()}
    )
