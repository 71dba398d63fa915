"""Runs so small that one takes a fraction of a second; also imported by the scripts that tests start."""

import random
from pathlib import Path

import yaml

from hgrn.training.recipe import load_recipe
from hgrn.training.specs import Recipe

TINY = {
    "name": "tiny",
    "model": {"hidden_size": 8, "num_hidden_layers": 2, "dropout": 0.1},
    "data": {"splits": {"train": {"span": [0, 0.8]}, "validation": {"span": [0.8, 1]}}},
    "batch": {"block_size": 16, "batch_size": 4, "state": "reset"},
    "optimizer": {"lr": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0},
    "schedule": {"name": "cosine", "warmup_steps": 2},
    "training": {"steps": 12, "eval_every": 4, "save_every": 4, "log_every": 3, "keep": 2, "threads": 1},
}


def tiny_text(lines: int = 12, seed: int = 0) -> str:
    """Lines of words, about 400 bytes; the same for the same arguments."""
    choose = random.Random(seed)
    words = ["gate", "forget", "carry", "state", "bound", "layer", "time"]
    return "".join(" ".join(choose.choices(words, k=6)) + "\n" for _ in range(lines))


def tiny_recipe(folder: Path, text: str | None = None, **overrides: object) -> Recipe:
    """The tiny recipe on a text file in `folder`; `overrides` with __ for the dot (training__steps=3)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    if not (folder / "tiny.txt").exists():
        (folder / "tiny.txt").write_text(tiny_text() if text is None else text)
    given = {"data.files": [str(folder / "tiny.txt")], "data.cache": str(folder / "cache")}
    return load_recipe(
        folder / "tiny.yaml", given | {key.replace("__", "."): value for key, value in overrides.items()}
    )
