"""Decodes image files into tensors, with Pillow."""

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
# Modes of Pillow. Deep ones have more than 8 bits, which a conversion would clip to white.
DEEP_MODES = ("I", "I;16", "F")
GREY_MODES = ("1", "L", "LA", *DEEP_MODES)


def decode(
    data: bytes,
    name: str,
    channels: int,
    no_colour: str = "channels is 1; set channels to 3, or make the images grey",
) -> torch.Tensor:
    """Decode one image file, uint8 [channels, H, W].

    With 3 channels, grey images, palettes and transparency become RGB. name: what messages call the
    image. no_colour: reason and remedy in the error for a colour image where one channel is wanted.

    Raises CorruptImage for data that is not a whole image, UserError for colour where channels is
    1.
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
    """A Pillow image, to be read within this block.

    Raises CorruptImage for whatever is wrong with it, and for more than `MOST_PIXELS` pixels.
    """
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
    # Pillow's readers fail in all these ways: SyntaxError for a broken PNG, the others where they
    # believe a damaged number.
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
    # Pillow's own text has the memory address of the stream, which says nothing to a user.
    if "cannot identify image file" in str(error):
        return "not an image that Pillow knows"
    return str(error)
