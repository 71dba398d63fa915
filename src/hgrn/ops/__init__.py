"""The gated linear recurrence of HGRN as PyTorch operators: one contract, a readable reference, fast engines."""

from .functional import gated_scan, hgru_carry, hgru_scan
from .library import available_engines

__all__ = ["available_engines", "gated_scan", "hgru_carry", "hgru_scan"]
