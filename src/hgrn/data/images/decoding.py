"""Encoded images to tensors, by Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from hgrn.data.images.source import CorruptImage
from hgrn.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MOST_PIXELS = 90_000_000  # as Pillow's own limit, which only warns
GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
DEEP_MODES = ("I", "I;16", "F")  # more than 8 bits: a conversion would clip them to white


def decode(
    data: bytes,
    name: str,
    channels: int,
    no_colour: str = "channels is 1; set channels to 3, or make the images grey",
) -> torch.Tensor:
    """Image uint8 [channels, H, W].

    Grey images, palettes and transparency become RGB where 3 channels are wanted. Raises CorruptImage for data
    that is not a whole image, UserError for a colour image where one channel is wanted; no_colour is its reason and advice.
    """
    with opened(io.BytesIO(data), name) as image:
        mode = image.mode
        if mode in DEEP_MODES:
            raise CorruptImage(name, f"pixels of mode {mode}; 8 bits a channel are read")
        if channels == 1 and mode not in GREY_MODES:
            raise UserError(f"{name} has colour (mode {mode}), and {no_colour}")
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return (
        torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()
    )


@contextmanager
def opened(file: Path | BinaryIO, name: str) -> Iterator[Any]:
    """An image of Pillow, read within this block. Raises CorruptImage for whatever is wrong with it, also a size above `MOST_PIXELS`."""
    image_module = pillow()
    try:
        with image_module.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise CorruptImage(
                    name, f"{image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read"
                )
            yield image
    except UserError:
        raise
    # What Pillow's readers fail with: SyntaxError for a broken PNG, the others where a damaged number is believed.
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        EOFError,
        struct.error,
        zlib.error,
        RuntimeError,
        image_module.DecompressionBombError,
        image_module.DecompressionBombWarning,
    ) as error:
        raise CorruptImage(name, _reason(error)) from None


def pillow():
    """The module PIL.Image. Raises UserError that says what to install."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("reading images needs Pillow: pip install pillow") from None
    return Image


def _reason(error: Exception) -> str:
    # Pillow names the memory address of the stream it was given.
    return (
        "not an image that Pillow knows"
        if "cannot identify image file" in str(error)
        else str(error)
    )
