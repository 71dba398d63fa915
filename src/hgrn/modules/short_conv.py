"""A short causal convolution: every channel mixes its own last few inputs.

Shape letters: B batch, T time, N sequences (B, or those of a packing), C channels, W taps, P = B * T positions.
"""

import torch
from torch import Tensor, nn

from hgrn.modules.parameters import at_least_float32
from hgrn.ops.packing import check_cu_seqlens, sequence_ids


class ShortConvolution(nn.Module):
    """`y_t = w_1 x_{t-W+1} + ... + w_W x_t` in each channel, without bias or activation (flash-linear-attention's).

    Args:
        channels: C.
        size: taps W.
    """

    no_decay = ("weight",)
    context = None  # set by hgrn.parallel where x is one rank's stretch of longer sequences

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        limit = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -limit, limit)

    def extra_repr(self) -> str:
        return f"channels={self.weight.shape[0]}, size={self.weight.shape[1]}"

    def initial_state(self, sequences: int) -> Tensor:
        """What came before the first position: zeros `[N, W - 1, C]`."""
        channels, size = self.weight.shape
        return self.weight.new_zeros(
            sequences, size - 1, channels, dtype=at_least_float32(self.weight.dtype)
        )

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A whole sequence, a chunk or a single step; arguments as `HGRU.forward`.

        Args:
            x: `[B, T, C]`.
            state: the last W - 1 inputs of each sequence, `[N, W - 1, C]`, oldest first; None is zeros.
            mask: bool `[B, T]`; a position where it is False is no input, and its output means nothing.
            cu_seqlens: boundaries `[N + 1]`.

        Returns:
            y like x, computed in float32 (float64 for float64) and rounded once, and the state after the last position in that
            precision.

        Raises:
            ValueError, TypeError: state, mask or cu_seqlens does not fit x.
        """
        self._check(x, state, mask, cu_seqlens)
        sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        state = self.initial_state(sequences) if state is None else state
        wide = at_least_float32(x.dtype)
        state = state.to(wide)
        inputs = x.to(wide)
        if self.context is not None:
            state = self.context.window(inputs, state, mask, cu_seqlens)
        if cu_seqlens is None and (mask is None or x.shape[1] == 1):
            stream = torch.cat([state, inputs], dim=1)
            after = stream[:, x.shape[1] :]
            # Not the view, which would keep the stream alive.
            after = after.clone() if mask is None else torch.where(mask[..., None], after, state)
            return self._convolve(stream).to(x.dtype), after

        # All sequences end to end, each behind the inputs that its state holds, so that none reaches another; its masked
        # positions come last, behind all that counts.
        before, places, after = self._places(x, mask, cu_seqlens)
        order = torch.cat([before.flatten(), places])
        stream = torch.cat([state.flatten(0, 1), inputs.flatten(0, 1)])
        stream = torch.empty_like(stream).index_copy(0, order, stream)
        y = self._convolve(stream[None])[0].index_select(0, places - before.shape[1])
        return y.to(x.dtype).view_as(x), stream.index_select(0, after.flatten()).view_as(state)

    def _convolve(self, stream: Tensor) -> Tensor:
        """`[B, R + W - 1, C]` -> `[B, R, C]`: for short windows, sums of shifted copies are faster than PyTorch's convolution."""
        taps = self.weight.to(stream.dtype).unbind(1)
        rows = stream.shape[1] - len(taps) + 1
        y = stream[:, :rows] * taps[0]
        for shift, tap in enumerate(taps[1:], 1):
            y = torch.addcmul(y, stream[:, shift : shift + rows], tap)
        return y

    def _places(
        self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where in the stream the initial states are `[N, W - 1]`, the positions `[P]`, and the final states `[N, W - 1]`."""
        total = x.shape[0] * x.shape[1]
        window = self.weight.shape[1] - 1
        positions = torch.arange(total, device=x.device)
        if cu_seqlens is None:
            edges = torch.arange(x.shape[0] + 1, device=x.device) * x.shape[1]
            sequence = torch.arange(x.shape[0], device=x.device).repeat_interleave(x.shape[1])
        else:
            edges = cu_seqlens.long()
            sequence = sequence_ids(cu_seqlens, total)
        starts = edges[:-1]
        counts = edges.diff()
        rank = positions - starts[sequence]  # of each position among those of its sequence
        if mask is not None:
            keep = mask.flatten()
            kept = torch.nn.functional.pad(
                keep.cumsum(0), (1, 0)
            )  # before each position, and in all
            counts = kept[edges[1:]] - kept[starts]
            kept_rank = kept[:-1] - kept[starts][sequence]
            rank = torch.where(keep, kept_rank, counts[sequence] + rank - kept_rank)
        steps = torch.arange(window, device=x.device)
        firsts = starts + window * torch.arange(len(starts), device=x.device)
        return (
            firsts[:, None] + steps,
            firsts[sequence] + window + rank,
            (firsts + counts)[:, None] + steps,
        )

    def _check(
        self, x: Tensor, state: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> None:
        if cu_seqlens is not None and not torch.compiler.is_compiling():
            check_cu_seqlens(cu_seqlens, x.shape[0] * x.shape[1])
        if mask is not None and not isinstance(mask, Tensor):
            raise TypeError(
                f"mask must be a bool tensor (True where there is input), got {type(mask).__name__}"
            )
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(
                f"mask must be a bool tensor (True where there is input), got {mask.dtype}; use mask.bool()"
            )
        if mask is not None and mask.shape != x.shape[:2]:
            raise ValueError(f"mask must have shape {tuple(x.shape[:2])}, got {tuple(mask.shape)}")
        channels, size = self.weight.shape
        expected = (
            x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1,
            size - 1,
            channels,
        )
        if state is not None and state.shape != expected:
            raise ValueError(
                f"the convolution's state must have shape {expected}, got {tuple(state.shape)}"
            )
