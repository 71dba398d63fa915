"""Runs that take a fraction of a second, for tests and for the scripts that tests start."""

import random
import struct
from pathlib import Path

import numpy as np
import yaml

from hgrn.training.recipe import Recipe, load_recipe

TINY = {
    "name": "tiny",
    "model": {"hidden_size": 8, "num_hidden_layers": 2, "dropout": 0.1},
    "data": {"splits": {"train": {"span": [0, 0.8]}, "validation": {"span": [0.8, 1]}}},
    "batch": {"block_size": 16, "batch_size": 4, "state": "reset"},
    "optimizer": {"lr": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0},
    "schedule": {"name": "cosine", "warmup_steps": 2},
    "training": {
        "steps": 12,
        "eval_every": 4,
        "save_every": 4,
        "log_every": 3,
        "keep": 2,
        "threads": 1,
    },
}


def tiny_text(lines: int = 12, seed: int = 0) -> str:
    """Lines of words, about 400 bytes; the same for the same arguments."""
    choose = random.Random(seed)
    words = ["gate", "forget", "carry", "state", "bound", "layer", "time"]
    return "".join(" ".join(choose.choices(words, k=6)) + "\n" for _ in range(lines))


def tiny_recipe(folder: Path, text: str | None = None, **overrides: object) -> Recipe:
    """The tiny recipe on a text file in `folder`.

    overrides: dotted keys with __ for the dot (training__steps=3).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    if not (folder / "tiny.txt").exists():
        (folder / "tiny.txt").write_text(tiny_text() if text is None else text)
    given = {"data.files": [str(folder / "tiny.txt")], "data.cache": str(folder / "cache")}
    return load_recipe(
        folder / "tiny.yaml",
        given | {key.replace("__", "."): value for key, value in overrides.items()},
    )


TINY_IMAGES = {
    "name": "tiny images",
    "task": "image-classification",
    "model": {
        "patch_size": 4,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "bidirectional": True,
        "dropout": 0.1,
    },
    "data": {"format": "idx", "channels": 1, "validation": 13, "classes": ["a", "b", "c", "d"]},
    "images": {"size": 8, "mean": [0.3], "std": [0.4]},
    "augmentation": {"crop": "padded", "padding": 1, "flip": 0.5, "erasing": 0.25},
    "mixing": {"mixup": 0.4, "cutmix": 0.4, "probability": 0.7, "smoothing": 0.1},
    "batch": {"batch_size": 8, "accumulation": 2},
    "optimizer": {"lr": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0},
    "schedule": {"name": "cosine", "warmup_steps": 2},
    "training": {
        "steps": 12,
        "eval_every": 4,
        "save_every": 4,
        "log_every": 3,
        "keep": 2,
        "threads": 1,
    },
}


def write_tiny_images(folder: Path, train: int = 61, test: int = 17, size: int = 8) -> None:
    """idx files of grey noise in which one quarter is bright: its number is the class, 0 to 3."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    half = size // 2
    for stem, count in (("train", train), ("t10k", test)):
        labels = random.integers(4, size=count, dtype=np.uint8)
        images = random.integers(100, size=(count, size, size), dtype=np.uint8)
        for image, label in zip(images, labels.tolist()):
            top = half * (label // 2)
            left = half * (label % 2)
            image[top : top + half, left : left + half] += 120
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{stem}-{kind}-ubyte").write_bytes(header + array.tobytes())


def tiny_image_recipe(folder: Path, **overrides: object) -> Recipe:
    """As `tiny_recipe`, a classifier of the images of `write_tiny_images` in `folder`."""
    images = folder / "images"
    if not images.exists():
        write_tiny_images(images)
    (folder / "tiny images.yaml").write_text(yaml.safe_dump(TINY_IMAGES))
    given = {"data.path": str(images)} | {
        key.replace("__", "."): value for key, value in overrides.items()
    }
    return load_recipe(folder / "tiny images.yaml", given)
