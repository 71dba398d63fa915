"""Small image sets in the published formats."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hgrn.data.images.source import TensorSource


def encoded(
    seed: int = 0, height: int = 12, width: int = 16, mode: str = "RGB", form: str = "PNG"
) -> bytes:
    """One random image, as the bytes of a file."""
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(
        256, size=(height, width, channels), dtype=np.uint8
    )
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(stream, form)
    return stream.getvalue()


@pytest.fixture
def image_folder(tmp_path):
    """train, val and test with the classes ant and bee, 6, 2 and 2 images of each."""
    root = tmp_path / "insects"
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(encoded(100 * label + number))
    return root


@pytest.fixture
def tensors():
    """40 images 1 x 8 x 8 whose pixels are all their own number; 4 classes."""
    values = torch.arange(40, dtype=torch.uint8)
    return TensorSource(
        "forty",
        values.view(40, 1, 1, 1).repeat(1, 1, 8, 8),
        values.long() % 4,
        ["a", "b", "c", "d"],
    )
