"""The norms of HGRN by name, and the output gate of those that have no operator of their own."""

from torch import Tensor, nn
from torch.nn import functional as F

from hgrn.ops.layer import ACTIVATIONS

from .parameters import at_least_float32

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def make_norm(norm_type: str, dim: int, eps: float) -> nn.Module:
    """A norm over the last axis: "layer", or "rms" (`x / rms(x)` with a gain and no offset; flash-linear-attention's).

    Raises:
        ValueError: norm_type is another.
    """
    if norm_type not in NORMS:
        raise ValueError(f"norm_type must be one of {tuple(NORMS)}, got {norm_type!r}")
    return NORMS[norm_type](dim, eps=eps)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, *, activation: str, gate_first: bool) -> Tensor:
    """`RMSNorm(x) * act(gate)`, or with gate_first `RMSNorm(x * act(gate))`; as `hgrn.ops.gated_norm`, of which it is the sibling.

    x, gate `[..., C]`, weight `[C]` -> `[..., C]` in x's dtype, computed in float32 (float64 for float64) and rounded once.
    """
    wide = at_least_float32(x.dtype)
    gate, weight = ACTIVATIONS[activation](gate.to(wide)), weight.to(wide)
    if gate_first:
        return F.rms_norm(x.to(wide) * gate, weight.shape, weight, eps).to(x.dtype)
    return (F.rms_norm(x.to(wide), weight.shape, weight, eps) * gate).to(x.dtype)
