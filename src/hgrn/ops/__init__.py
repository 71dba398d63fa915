"""The gated linear recurrence of HGRN as PyTorch operators: one contract, a readable reference, fast engines."""

from hgrn.ops.engines import available_engines
from hgrn.ops.layers import gated_norm, gated_unit
from hgrn.ops.linear_maps import int8_linear, linear, quantize_rows
from hgrn.ops.scans import gated_scan, hgru_carry, hgru_scan

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
