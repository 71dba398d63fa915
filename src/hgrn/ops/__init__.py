"""The gated linear recurrence of HGRN as PyTorch operators: one contract, a readable reference, fast engines."""

from .functional import gated_scan, hgru_carry, hgru_scan
from .int8 import int8_linear, quantize_rows
from .layer import gated_norm, gated_unit
from .library import available_engines

__all__ = ["available_engines", "gated_norm", "gated_scan", "gated_unit", "hgru_carry", "hgru_scan", "int8_linear", "quantize_rows"]
