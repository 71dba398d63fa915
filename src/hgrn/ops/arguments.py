"""The arguments of a scan, as every engine takes them.

Shape letters, here and in all of `hgrn.ops`: O outer, T time, I inner, D channels, C = D (real state) or 2D (complex state,
laid out `[Re | Im]`), N sequences (N = O unless packed).

`[O, T, I, C]` is the canonical layout. Axes before the time axis are folded into O, axes between time and channels into I.
So rows and columns of a grid are both read where they are; neither is transposed in memory.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precisions; float32 and float64 as they are. States and sums have this dtype."""
    return torch.promote_types(dtype, torch.float32)


class Scan(NamedTuple):
    """One scan in the canonical layout: what `hgru_scan`, `hgru_carry` and `gated_scan` of an engine are given.

    x: `[O, T, I, C]`. For `hgru_scan` and `hgru_carry` the candidate before SiLU; for `gated_scan` what is added to the state.
    gate: `[O, T, I, D]` in x's dtype. For `hgru_scan` and `hgru_carry` the forget gate before the sigmoid; for
        `gated_scan` the logarithm of the gate.
    lower_bound: `[D]` or None, which is 0. Always None for `gated_scan`.
    theta: angles `[D]`; None if the state is real.
    initial_state: `[N, I, C]`; None is zeros. Always None for `hgru_carry`.
    cu_seqlens: boundaries `[N + 1]` of packed sequences, or None.
    mask: bool `[O, T, I]` or None.
    reverse: from the last position to the first.

    lower_bound, theta and initial_state are in the state's dtype (`at_least_float32` of x's).
    """

    x: Tensor
    gate: Tensor
    lower_bound: Tensor | None
    theta: Tensor | None
    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    mask: Tensor | None
    reverse: bool

    @property
    def channels(self) -> int:
        """D."""
        return self.gate.shape[-1]

    @property
    def sequences(self) -> int:
        """N."""
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1
