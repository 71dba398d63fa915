"""The gated linear recurrence of HGRN as PyTorch operators, with a reference and fast engines."""

from hgrn.ops.engines import available_engines
from hgrn.ops.gla import gla_scan
from hgrn.ops.layers import gated_norm, gated_unit
from hgrn.ops.linear_maps import int8_linear, linear, quantize_rows
from hgrn.ops.scans import gated_scan, hgru_carry, hgru_scan

__all__ = [
    "available_engines",
    "gated_norm",
    "gated_scan",
    "gated_unit",
    "gla_scan",
    "hgru_carry",
    "hgru_scan",
    "int8_linear",
    "linear",
    "quantize_rows",
]
