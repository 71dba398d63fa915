"""The gated linear recurrence of HGRN as PyTorch operators: one contract, a readable reference, fast engines."""

from .functional import gated_scan, hgru_carry, hgru_scan
from .layer import gated_norm, gated_unit
from .library import available_engines
from .linear_maps import int8_linear, linear, quantize_rows

__all__ = [
    "available_engines",
    "gated_norm",
    "gated_scan",
    "gated_unit",
    "hgru_carry",
    "hgru_scan",
    "int8_linear",
    "linear",
    "quantize_rows",
]
