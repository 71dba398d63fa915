"""The norms of HGRN by name, and those of a read-out, which have an output gate.

Shape letters: P positions, D channels, C channels of a state.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgrn.modules.parameters import KeepsFloat32, at_least_float32
from hgrn.ops import gated_norm
from hgrn.ops.layers import ACTIVATIONS


class BatchNorm(KeepsFloat32):
    """Each channel normed over all positions of the batch, as `nn.BatchNorm1d` norms `[P, D]` (the authors' Long Range Arena code).

    Padding counts. In evaluation the running statistics take the place of the batch's; they stay float32, as do the sums.
    It is no `nn.BatchNorm1d`, which tools turn into modules whose channels are the second axis.

    Attributes:
        updates: set it to False to leave the running statistics as they are in training.

    Shape:
        `[..., D]` -> `[..., D]`; in training of more than one position.
    """

    no_decay = ("weight",)
    float32_parameters = ("running_mean", "running_var")
    momentum = 0.1
    updates = True

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        wide = at_least_float32(torch.get_default_dtype())
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.register_buffer("running_mean", torch.empty(dim, dtype=wide))
        self.register_buffer("running_var", torch.empty(dim, dtype=wide))
        self.register_buffer("num_batches_tracked", torch.empty((), dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for ones in (self.weight, self.running_var):
            nn.init.ones_(ones)
        for zeros in (self.bias, self.running_mean, self.num_batches_tracked):
            nn.init.zeros_(zeros)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        running = (self.running_mean, self.running_var)
        if self.training and not self.updates:
            running = (
                self.running_mean.clone(),
                self.running_var.clone(),
            )  # not None: a checkpoint saves the same tensors twice
        elif self.training:
            self.num_batches_tracked.add_(1)
        wide = self.running_mean.dtype
        y = F.batch_norm(
            x.to(wide).flatten(0, -2),
            *running,
            self.weight.to(wide),
            self.bias.to(wide),
            self.training,
            self.momentum,
            self.eps,
        )
        return y.to(x.dtype).view(x.shape)


class SimpleRMSNorm(nn.Module):
    """`x / (||x|| / sqrt(D) + 1e-8)` over the last axis, without weights (the authors' image code: helpers/normlization.py)."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(at_least_float32(x.dtype))
        return (
            wide
            / (torch.linalg.vector_norm(wide, dim=-1, keepdim=True) / x.shape[-1] ** 0.5 + 1e-8)
        ).to(x.dtype)


NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": BatchNorm}


def make_norm(norm_type: str, dim: int, eps: float) -> nn.Module:
    """A norm over the last axis: "layer", or "rms" (`x / rms(x)` with a gain and no offset; flash-linear-attention's); or "batch".

    Raises:
        ValueError: norm_type is another.
    """
    if norm_type not in NORMS:
        raise ValueError(f"norm_type must be one of {tuple(NORMS)}, got {norm_type!r}")
    return NORMS[norm_type](dim, eps=eps)


class GatedLayerNorm(nn.LayerNorm):
    """`LayerNorm(x) * act(gate)`, or with gate_first `LayerNorm(x * act(gate))`, in one pass.

    It is a module of its own, so that hooks, adapters and offloading see it called.

    Shape:
        x, gate `[..., C]` -> `[..., C]`.
    """

    def forward(self, x: Tensor, gate: Tensor, activation: str, gate_first: bool) -> Tensor:
        return gated_norm(
            x, gate, self.weight, self.bias, self.eps, activation=activation, gate_first=gate_first
        )


class GatedRMSNorm(nn.RMSNorm):
    """As `GatedLayerNorm`, with the root mean square in place of mean and deviation, and no offset."""

    def forward(self, x: Tensor, gate: Tensor, activation: str, gate_first: bool) -> Tensor:
        return gated_rms_norm(
            x, gate, self.weight, self.eps, activation=activation, gate_first=gate_first
        )


GATED_NORMS = {"layer": GatedLayerNorm, "rms": GatedRMSNorm}


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, *, activation: str, gate_first: bool
) -> Tensor:
    """`RMSNorm(x) * act(gate)`, or with gate_first `RMSNorm(x * act(gate))`; as `hgrn.ops.gated_norm`, of which it is the sibling.

    x, gate `[..., C]`, weight `[C]` -> `[..., C]` in x's dtype, computed in float32 (float64 for float64) and rounded once.
    """
    wide = at_least_float32(x.dtype)
    gate = ACTIVATIONS[activation](gate.to(wide))
    weight = weight.to(wide)
    if gate_first:
        return F.rms_norm(x.to(wide) * gate, weight.shape, weight, eps).to(x.dtype)
    return (F.rms_norm(x.to(wide), weight.shape, weight, eps) * gate).to(x.dtype)
