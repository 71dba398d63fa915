"""Token mixers of other papers, each in the slot of `HGRN` and on the scans of this package.

Only the mixer is the paper's. Norms, residuals and the GLU around it are those of the stack, so
that a comparison shows what the mixer does. None of them takes a lower bound.
Shape letters: B batch, T time, N sequences, D channels.
"""

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgrn.modules import Mixer, ShortConvolution
from hgrn.modules.linear import Linear
from hgrn.modules.norms import make_norm
from hgrn.modules.parameters import Init
from hgrn.ops import gated_scan, gla_scan
from hgrn.ops.arguments import at_least_float32


class MinGRU(Mixer):
    """The minimal GRU (arXiv 2410.01201, section 3.1): gates of the input alone.

    `z = sigmoid(W_z x)`, `h_t = (1 - z_t) h_{t-1} + z_t W_h x_t`, `y = W_o h`.

    Args:
        dim: channels D.
        conv_size: taps of a causal convolution of x, as in the paper's language models; None
            leaves it out.
        bias: biases of the linear maps.

    The state is `(h [N, D],)`, with a convolution `(h, window [N, conv_size - 1, D])`.
    """

    def __init__(self, dim: int, *, conv_size: int | None = None, bias: bool = True, **_: Any):
        super().__init__()
        self.dim = dim
        self.short_conv = None if conv_size is None else ShortConvolution(dim, conv_size)
        self.in_proj = Linear(dim, 2 * dim, bias=bias)
        self.out_proj = Linear(dim, dim, bias=bias)

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One call for all uses; arguments as `Mixer.forward`."""
        memory, *window = (None, None) if state is None else state
        after = []
        if self.short_conv is not None:
            x, last = self.short_conv(x, *window, mask, cu_seqlens)
            after.append(last)
        candidate, gate = self.in_proj(x).chunk(2, dim=-1)
        # log(1 - sigmoid(g)) = logsigmoid(-g) keeps its digits where a gate is nearly closed.
        entering = torch.sigmoid(gate) * candidate
        h, memory = gated_scan(
            entering, F.logsigmoid(-gate), memory, mask=mask, cu_seqlens=cu_seqlens
        )
        return self.out_proj(h), (memory, *after)

    def initial_state(self, sequences: int) -> tuple[Tensor, ...]:
        """Zeros in the shapes that `forward` returns."""
        memory = _zeros(self.out_proj.weight, sequences, self.dim)
        if self.short_conv is None:
            return (memory,)
        return memory, self.short_conv.initial_state(sequences)


class FixedDecay(Mixer):
    """Linear attention with one constant decay in each head, as RetNet's (arXiv 2307.08621).

    `S_t = (1 - 2^(-5-h)) S_{t-1} + k_t v_t^T` in head h, `y = W_o Norm(K^-1/2 q_t S_t)`. It is
    HGRN2 with keys and decays that are not tied to a gate. RetNet's rotation of queries and keys,
    and its output gate, are left out.

    Args:
        dim: channels D.
        head_dim: channels K of each head.
        conv_size: taps of a causal convolution of query, key and value; None leaves it out.
        bias: biases of the linear maps.
        norm_eps: epsilon of the norm.
        norm_type: "layer" or "rms".

    The state is `(S [N, H, K, K],)`, with a convolution followed by its window.
    """

    log_decay: Tensor

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int = 16,
        conv_size: int | None = None,
        bias: bool = True,
        norm_eps: float = 1e-5,
        norm_type: str = "layer",
    ):
        super().__init__()
        self.heads = (dim // head_dim, head_dim)
        self.in_proj = Linear(dim, 3 * dim, bias=bias)
        self.short_conv = None if conv_size is None else ShortConvolution(3 * dim, conv_size)
        self.norm = make_norm(norm_type, dim, norm_eps)
        self.out_proj = Linear(dim, dim, bias=bias)
        # A buffer moves with the module; it is not saved, since the heads determine it.
        decays = torch.log1p(-(2.0 ** (-5.0 - torch.arange(self.heads[0]))))
        self.register_buffer("log_decay", decays[:, None], persistent=False)

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One call for all uses; arguments as `Mixer.forward`."""
        memory, *window = (None, None) if state is None else state
        after = []
        projected = self.in_proj(x)
        if self.short_conv is not None:
            projected, last = self.short_conv(projected, *window, mask, cu_seqlens)
            after.append(last)
        query, key, value = (part.unflatten(-1, self.heads) for part in projected.chunk(3, -1))
        # The scan has a gate for each row of the state; here all rows of a head share one.
        log_f = self.log_decay.expand(key.shape)
        y, memory = gla_scan(
            query * self.heads[1] ** -0.5,
            key,
            value,
            log_f,
            memory,
            mask=mask,
            cu_seqlens=cu_seqlens,
        )
        return self.out_proj(self.norm(y.flatten(-2))), (memory, *after)

    def initial_state(self, sequences: int) -> tuple[Tensor, ...]:
        """Zeros in the shapes that `forward` returns."""
        heads, channels = self.heads
        memory = _zeros(self.out_proj.weight, sequences, heads, channels, channels)
        if self.short_conv is None:
            return (memory,)
        return memory, self.short_conv.initial_state(sequences)


class Mamba(Mixer):
    """The selective state space model (arXiv 2312.00752, sections 3.2 and 3.4).

    `u, z = W_in x`, `u = SiLU(conv(u))`, `dt = softplus(W_dt u)`, and in each of E = 2 D channels
    with a state of S numbers `h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t`,
    `y = W_out ((C_t h_t + D u_t) SiLU(z))`. A is diagonal; B and C are linear in u.
    The states of all channels stand side by side, so one scan of E S channels runs them all.

    Args:
        dim: channels D.
        state_dim: numbers S in the state of each channel.
        conv_size: taps of the causal convolution.
        bias: biases of the maps in and out.

    The state is `(h [N, E S], window [N, conv_size - 1, E])`.
    """

    no_decay = ("log_a", "skip")

    def __init__(
        self, dim: int, *, state_dim: int = 16, conv_size: int = 4, bias: bool = True, **_: Any
    ):
        super().__init__()
        inner = 2 * dim
        self.state_dim = state_dim
        rank = math.ceil(dim / 16)
        self.rows = (rank, state_dim, state_dim)
        self.in_proj = Linear(dim, 2 * inner, bias=bias)
        self.short_conv = ShortConvolution(inner, conv_size)
        self.select = Linear(inner, sum(self.rows), bias=False)
        self.step = Linear(rank, inner)
        self.log_a = nn.Parameter(torch.empty(inner, state_dim))
        self.skip = nn.Parameter(torch.empty(inner))
        self.out_proj = Linear(inner, dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self, init: type[Init] | ModuleType = Init) -> None:
        """A is -1 to -S in each channel; the steps dt are 0.001 to 0.1, evenly on a log scale."""
        inner, state_dim = self.log_a.shape
        init.copy_(self.log_a, torch.arange(1.0, state_dim + 1).log().expand(inner, -1))
        init.ones_(self.skip)
        steps = torch.logspace(-3, -1, inner)
        # The bias is the inverse of softplus.
        init.copy_(self.step.bias, steps + torch.log(-torch.expm1(-steps)))

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One call for all uses; arguments as `Mixer.forward`."""
        memory, window = (None, None) if state is None else state
        # The convolution comes first, so that the gates see the tokens before theirs.
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u, window = self.short_conv(u, window, mask, cu_seqlens)
        u = F.silu(u)
        low, write, read = self.select(u).split(self.rows, dim=-1)
        dt = F.softplus(self.step(low))
        # From here on `[B, T, E, S]`: the largest tensors, S times as many numbers as u.
        log_f = dt[..., None] * -self.log_a.exp()
        entering = (dt * u)[..., None] * write[..., None, :]
        h, memory = gated_scan(
            entering.flatten(-2), log_f.flatten(-2), memory, mask=mask, cu_seqlens=cu_seqlens
        )
        y = (h.unflatten(-1, (-1, self.state_dim)) @ read[..., None])[..., 0] + self.skip * u
        return self.out_proj(y * F.silu(gate)), (memory, window)

    def initial_state(self, sequences: int) -> tuple[Tensor, ...]:
        """Zeros in the shapes that `forward` returns."""
        memory = _zeros(self.log_a, sequences, self.log_a.numel())
        return memory, self.short_conv.initial_state(sequences)


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return like.new_zeros(shape, dtype=at_least_float32(like.dtype))
