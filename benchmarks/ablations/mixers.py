"""Variants of the HGRU as mixers, each registered under its name.

`E` is exp(i theta), gamma the layer's lower bound, `c_t = SiLU(W_c x_t)`, and as in HGRN
`lambda_t = gamma + (1 - gamma) sigmoid(W_f x_t)`. HGRN itself has
`h_t = lambda_t E h_{t-1} + (1 - lambda_t) c_t` and `y_t = W_o Norm(act(W_g x_t) * h_t)`. Each class
says what it has in place of that. The equations are our reading of the paper's names of variants.
Shape letters: B batch, T time, C channels of h, D channels.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgrn.modules import HGRU, Linear, register_mixer
from hgrn.modules.parameters import Init
from hgrn.ops import gated_scan

# The bound of the first layer is 0, whose logarithm has no gradient.
_SMALLEST = 1e-6


class Variant(HGRU):
    """An HGRU with gates of its own: `h_t = keep_t E h_{t-1} + write_t c_t`.

    `gates` says what is kept, and what would be written.
    """

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Arguments as `HGRU.forward`."""
        candidate, forget, gate = self.project(x)
        log_keep, write = self.gates(forget, lower_bound)
        write = self.written(x, write.to(x.dtype))
        if self.theta is not None:
            # Real and imaginary half of a channel share their gates.
            write = torch.cat([write, write], dim=-1)
        h, final = gated_scan(
            write * F.silu(candidate),
            log_keep.to(x.dtype),
            None if state is None else state[0],
            theta=self.theta,
            mask=mask,
            cu_seqlens=cu_seqlens,
        )
        return self.read_out(h, gate), (final,)

    def written(self, x: Tensor, write: Tensor) -> Tensor:
        """The share of c that is written, `[B, T, D]`, from that of HGRN."""
        return write


@register_mixer("ablation-random-bound")
class RandomBound(Variant):
    """gamma is drawn once for each layer and channel, uniform in 0 to 1, and not learned."""

    bound: Tensor

    def __init__(self, dim: int, **options: Any):
        super().__init__(dim, **options)
        self.register_buffer("bound", torch.rand(dim))

    def gates(self, forget: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
        """With the drawn bound in place of the stack's."""
        return super().gates(forget, self.bound)


@register_mixer("ablation-decreasing-bound")
class DecreasingBound(Variant):
    """gamma falls with depth: `max(0, 1 - 1/L - gamma)`, in L layers, from the learned gamma.

    At the start layer k of 0 to L - 1 has the bound that layer L - 1 - k has in HGRN.

    Args:
        depth: number of layers L.
    """

    def __init__(self, dim: int, *, depth: int, **options: Any):
        super().__init__(dim, **options)
        self.highest = 1 - 1 / depth

    def gates(self, forget: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
        """With the falling bound."""
        assert lower_bound is not None
        return super().gates(forget, (self.highest - lower_bound).clamp(min=0))


@register_mixer("ablation-only-bound")
class OnlyBound(Variant):
    """`h_t = gamma E h_{t-1} + (1 - gamma) c_t`: the gate does not depend on the data."""

    def gates(self, forget: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
        """The bound itself, at every position."""
        assert lower_bound is not None
        bound = lower_bound.clamp(min=_SMALLEST)
        return bound.log().expand(forget.shape), (1 - bound).expand(forget.shape)


@register_mixer("ablation-no-forget-gate")
class NoForgetGate(Variant):
    """`h_t = E h_{t-1} + c_t`: nothing is ever forgotten."""

    def gates(self, forget: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
        """All is kept, and all is written."""
        return torch.zeros_like(forget), torch.ones_like(forget)


@register_mixer("ablation-untied-input-gate")
class UntiedInputGate(Variant):
    """`h_t = lambda_t E h_{t-1} + sigmoid(W_i x_t) c_t`: an input gate with weights of its own."""

    def __init__(self, dim: int, **options: Any):
        super().__init__(dim, **options)
        self.input_gate = Linear(dim, dim, bias=self.in_proj.bias is not None)

    def written(self, x: Tensor, write: Tensor) -> Tensor:
        """The input gate."""
        return torch.sigmoid(self.input_gate(x))


@register_mixer("ablation-no-output-gate")
class NoOutputGate(Variant):
    """`y_t = W_o Norm(h_t)`: the recurrence is HGRN's, and no gate is read out with it."""

    def __init__(self, dim: int, **options: Any):
        super().__init__(dim, **options)
        width, forget, _ = self.joined_rows["in_proj"]
        self.in_proj = Linear(dim, width + forget, bias=self.in_proj.bias is not None)
        self.joined_rows["in_proj"] = (width, forget)
        self.norm = nn.LayerNorm(width, eps=self.norm.eps)

    def project(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Candidate and forget gate; the third has no channels."""
        candidate, forget = self.in_proj(x).split(self.joined_rows["in_proj"], dim=-1)
        return candidate, forget, candidate[..., :0]

    def read_out(self, h: Tensor, gate: Tensor) -> Tensor:
        """The norm and the output map alone."""
        return self.out_proj(self.norm(h))


@register_mixer("ablation-fixed-theta")
class FixedTheta(Variant):
    """HGRN with `theta_j = 10000^(-2j / D)`, not learned."""

    def reset_parameters(self, init: type[Init] | ModuleType = Init) -> None:
        """As in HGRN, and the angles stay."""
        super().reset_parameters(init)
        if self.theta is not None:
            self.theta.requires_grad_(False)
