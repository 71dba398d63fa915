"""GRU, LSTM and attention as token mixers, so that they stand in the same stack as ours.

They read whole sequences only: no state goes in or out, and nothing is masked or packed.
Shape letters: B batch, T time, D channels.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgrn.modules import HGRU, Mixer, ShortConvolution
from hgrn.modules.linear import Linear


class _Whole(Mixer):
    """A mixer of whole sequences, after an optional short convolution."""

    def __init__(self, dim: int, conv_size: int | None):
        super().__init__()
        self.short_conv = None if conv_size is None else ShortConvolution(dim, conv_size)

    def mix(self, x: Tensor) -> Tensor:
        """x `[B, T, D]` -> y like x."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Arguments as `Mixer.forward`; the last three must be None."""
        if any(part is not None for part in (state, mask, cu_seqlens)):
            raise ValueError(f"a {type(self).__name__} takes no state, mask or cu_seqlens")
        if self.short_conv is not None:
            x, _ = self.short_conv(x, None, None, None)
        return self.mix(x), None


class Recurrent(_Whole):
    """`nn.GRU` or `nn.LSTM` with a map to D channels, with at most as many parameters as an HGRU.

    Args:
        dim: channels D.
        kind: `nn.GRU` or `nn.LSTM`.
        horizon: None leaves PyTorch's start. Otherwise the gate that keeps the state starts so that
            units forget after 1 to `horizon` steps: its bias is the logarithm of a uniform draw
            (arXiv 1804.11188, section 2.3), and that of the LSTM's input gate its negative.
        conv_size: as of our mixers.
    """

    def __init__(
        self,
        dim: int,
        *,
        kind: type[nn.GRU] | type[nn.LSTM],
        horizon: int | None = None,
        conv_size: int | None = None,
        **_: Any,
    ):
        super().__init__(dim, conv_size)
        gates = 3 if kind is nn.GRU else 4
        allowed = sum(parameter.numel() for parameter in HGRU(dim).parameters())
        inner = max(
            width
            for width in range(1, 2 * dim)
            if gates * width * (dim + width + 2) + (width + 1) * dim <= allowed
        )
        self.rnn = kind(dim, inner, batch_first=True)
        self.out_proj = Linear(inner, dim)
        if horizon is not None:
            self._remember(inner, horizon)

    @torch.no_grad()
    def _remember(self, inner: int, horizon: int) -> None:
        cast(Tensor, self.rnn.bias_hh_l0).zero_()
        biases = cast(Tensor, self.rnn.bias_ih_l0)
        keeps = torch.empty(inner).uniform_(1, horizon - 1).log()
        # The second gate in both: z of the GRU, f of the LSTM.
        biases[inner : 2 * inner] = keeps
        if isinstance(self.rnn, nn.LSTM):
            biases[:inner] = -keeps

    def mix(self, x: Tensor) -> Tensor:
        """x `[B, T, D]` -> y like x."""
        return self.out_proj(self.rnn(x)[0])


class Attention(_Whole):
    """Causal softmax attention with rotary positions (arXiv 2104.09864).

    Args:
        dim: channels D.
        head_dim: channels of a head.
        conv_size: as of our mixers.
    """

    angle: Tensor

    def __init__(self, dim: int, *, head_dim: int = 16, conv_size: int | None = None, **_: Any):
        super().__init__(dim, conv_size)
        self.head_dim = head_dim
        self.in_proj = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)
        rates = 10_000 ** -torch.linspace(0, 1, head_dim // 2 + 1)[:-1]
        self.register_buffer("angle", rates, persistent=False)

    def mix(self, x: Tensor) -> Tensor:
        """x `[B, T, D]` -> y like x."""
        heads = (part.unflatten(-1, (-1, self.head_dim)) for part in self.in_proj(x).chunk(3, -1))
        query, key, value = (part.transpose(1, 2) for part in heads)
        turns = torch.arange(x.shape[1])[:, None] * self.angle
        query, key = (self._rotated(part, turns) for part in (query, key))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    @staticmethod
    def _rotated(x: Tensor, turns: Tensor) -> Tensor:
        real, imaginary = x.chunk(2, -1)
        turned = torch.polar(torch.ones_like(turns), turns) * torch.complex(real, imaginary)
        return torch.cat([turned.real, turned.imag], -1)
