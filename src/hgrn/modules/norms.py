"""The norms of HGRN by name, and the norms of a read-out, which have an output gate.

Shape letters: P positions, D channels, C channels of a state.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgrn.modules.arguments import check_choice
from hgrn.modules.parameters import Init, KeepsFloat32
from hgrn.ops import gated_norm
from hgrn.ops.arguments import at_least_float32
from hgrn.ops.layers import ACTIVATIONS


class BatchNorm(KeepsFloat32):
    """Norms each channel over all positions of the batch (the authors' Long Range Arena code).

    The numbers are those of `nn.BatchNorm1d` on `[P, D]`; padding counts. In evaluation the running
    statistics replace the batch's. The statistics and the sums stay float32.

    This is no subclass of `nn.BatchNorm1d`, because tools that convert those (SyncBatchNorm, for
    one) assume that the channels are axis 1.

    Attributes:
        updates: set it to False to leave the running statistics as they are in training.

    Shape:
        `[..., D]` -> `[..., D]`; training needs more than one position.
    """

    no_decay = ("weight",)
    float32_parameters = ("running_mean", "running_var")
    momentum = 0.1
    updates = True
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

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

    def reset_parameters(self, init: type[Init] | ModuleType = Init) -> None:
        # As if no batch had been seen: mean 0, variance 1.
        for ones in (self.weight, self.running_var):
            init.ones_(ones)
        for zeros in (self.bias, self.running_mean, self.num_batches_tracked):
            init.zeros_(zeros)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        mean = self.running_mean
        var = self.running_var
        if self.training and not self.updates:
            # Copies take the update. With None, a checkpointed block would save fewer tensors the
            # second time it is computed, which PyTorch refuses.
            mean = mean.clone()
            var = var.clone()
        elif self.training:
            self.num_batches_tracked.add_(1)
        wide = self.running_mean.dtype
        y = F.batch_norm(
            x.to(wide).flatten(0, -2),
            mean,
            var,
            self.weight.to(wide),
            self.bias.to(wide),
            self.training,
            self.momentum,
            self.eps,
        )
        return y.to(x.dtype).view(x.shape)


class SimpleRMSNorm(nn.Module):
    """`x / (||x|| / sqrt(D) + 1e-8)` over the last axis, without weights.

    It is the norm of the authors' image code (helpers/normlization.py).

    Shape:
        `[..., D]` -> `[..., D]`.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(at_least_float32(x.dtype))
        rms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return (wide / (rms + 1e-8)).to(x.dtype)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "batch": BatchNorm,
}


def make_norm(norm_type: str, dim: int, eps: float) -> nn.Module:
    """A norm over the last axis, of `dim` channels.

    Args:
        norm_type: "layer"; "rms" (`x / rms(x)` with a gain and no offset, as in
            flash-linear-attention); or "batch" (`BatchNorm`).
        dim: channels D.
        eps: what is added to the variance or the mean square.

    Raises:
        ValueError: norm_type is another.
    """
    check_choice("norm_type", norm_type, tuple(NORMS))
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
    """Like `GatedLayerNorm`, with the root mean square for mean and deviation, and no offset."""

    def forward(self, x: Tensor, gate: Tensor, activation: str, gate_first: bool) -> Tensor:
        return gated_rms_norm(
            x, gate, self.weight, self.eps, activation=activation, gate_first=gate_first
        )


GATED_NORMS = {"layer": GatedLayerNorm, "rms": GatedRMSNorm}


def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    eps: float | None,
    *,
    activation: str,
    gate_first: bool,
) -> Tensor:
    """`RMSNorm(x) * act(gate)`, or with gate_first `RMSNorm(x * act(gate))`.

    The sibling of `hgrn.ops.gated_norm`.

    Shape:
        x, gate `[..., C]`, weight `[C]` -> `[..., C]` in x's dtype, computed in float32 (float64
        for float64) and rounded once.
    """
    # Rounding to a half precision before the end would cost digits twice.
    wide = at_least_float32(x.dtype)
    gate = ACTIVATIONS[activation](gate.to(wide))
    weight = weight.to(wide)
    if gate_first:
        return F.rms_norm(x.to(wide) * gate, weight.shape, weight, eps).to(x.dtype)
    return (F.rms_norm(x.to(wide), weight.shape, weight, eps) * gate).to(x.dtype)
