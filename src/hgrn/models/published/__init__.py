"""Checkpoints in published layouts: read as ours, and written from ours.

`layouts` lists the records, `tensors` and `config` convert by them, `files` finds and reads a
checkpoint, and `convert` is the command on top.
"""

from hgrn.models.published.layouts import LAYOUTS
from hgrn.models.published.record import ConversionError, Layout
from hgrn.models.published.tensors import from_published, load_published, to_published

__all__ = [
    "LAYOUTS",
    "ConversionError",
    "Layout",
    "from_published",
    "load_published",
    "to_published",
]
