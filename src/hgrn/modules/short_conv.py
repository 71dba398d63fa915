"""A short causal convolution: every channel mixes its own last few inputs.

Shape letters: B batch, T time, N sequences (B of them, or as many as are packed), C channels,
W taps, P = B * T positions.
"""

from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn

from hgrn.modules.parameters import Init
from hgrn.ops.arguments import at_least_float32
from hgrn.ops.packing import check_cu_seqlens, sequence_ids


class Halo(Protocol):
    """What a `ShortConvolution` calls for the inputs in front of x: `own_halo`, or a replacement.

    Args:
        x: the inputs `[B, T, C]`.
        state: the inputs in front of each sequence as far as the caller knows, `[N, W - 1, C]`.
        mask: bool `[B, T]`.
        cu_seqlens: boundaries `[N + 1]`.

    Returns:
        the inputs in front of each sequence, `[N, W - 1, C]`, oldest first.
    """

    def __call__(
        self, x: Tensor, state: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor: ...


def own_halo(x: Tensor, state: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The `Halo` on one device: only the state precedes a sequence."""
    return state


class ShortConvolution(nn.Module):
    """`y_t = w_1 x_{t-W+1} + ... + w_W x_t` in each channel, without bias or activation.

    It is the convolution of flash-linear-attention.

    Args:
        channels: C.
        size: taps W.

    Attributes:
        halo: what finds the inputs in front of x. `hgrn.parallel.parallelize` replaces it where x
            is one rank's stretch of longer sequences.
    """

    no_decay = ("weight",)
    halo: Halo = staticmethod(own_halo)

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size))
        self.reset_parameters()

    def reset_parameters(self, init: type[Init] | ModuleType = Init) -> None:
        limit = self.weight.shape[1] ** -0.5
        init.uniform_(self.weight, -limit, limit)

    def extra_repr(self) -> str:
        return f"channels={self.weight.shape[0]}, size={self.weight.shape[1]}"

    def initial_state(self, sequences: int) -> Tensor:
        """What precedes the first position: zeros `[N, W - 1, C]`."""
        channels, size = self.weight.shape
        dtype = at_least_float32(self.weight.dtype)
        return self.weight.new_zeros(sequences, size - 1, channels, dtype=dtype)

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
            state: the last W - 1 inputs of each sequence, `[N, W - 1, C]`, oldest first; None is
                zeros.
            mask: bool `[B, T]`; a position where it is False is no input, and its output means
                nothing.
            cu_seqlens: boundaries `[N + 1]`.

        Returns:
            y like x, computed in float32 (float64 for float64) and rounded once, and the state
            after the last position in that precision.

        Raises:
            ValueError, TypeError: state, mask or cu_seqlens does not fit x.
        """
        sequences = self._check(x, state, mask, cu_seqlens)
        state = self.initial_state(sequences) if state is None else state
        wide = at_least_float32(x.dtype)
        inputs = x.to(wide)
        state = self.halo(inputs, state.to(wide), mask, cu_seqlens)
        if cu_seqlens is None and (mask is None or x.shape[1] == 1):
            stream = torch.cat([state, inputs], dim=1)
            after = stream[:, x.shape[1] :]
            # A copy, because a view would keep the whole stream alive.
            after = after.clone() if mask is None else torch.where(mask[..., None], after, state)
            return self._convolve(stream).to(x.dtype), after

        # Lay all sequences end to end in one stream `[P + N * (W - 1), C]`. Each stands behind its
        # own halo, so no window reaches into the sequence before.
        halo_rows, input_rows, after_rows = self._rows(x, mask, cu_seqlens)
        stream = torch.cat([state.flatten(0, 1), inputs.flatten(0, 1)])
        order = torch.cat([halo_rows.flatten(), input_rows])
        stream = torch.empty_like(stream).index_copy(0, order, stream)

        # Row r of the result mixes the rows r to r + W - 1 of the stream.
        window = halo_rows.shape[1]
        y = self._convolve(stream[None])[0].index_select(0, input_rows - window)
        return y.to(x.dtype).view_as(x), stream.index_select(0, after_rows.flatten()).view_as(state)

    def _convolve(self, stream: Tensor) -> Tensor:
        """`[B, R + W - 1, C]` -> `[B, R, C]`, as a sum of shifted copies.

        For short windows that is faster than PyTorch's convolution.
        """
        taps = self.weight.to(stream.dtype).unbind(1)
        rows = stream.shape[1] - len(taps) + 1
        y = stream[:, :rows] * taps[0]
        for shift, tap in enumerate(taps[1:], 1):
            y = torch.addcmul(y, stream[:, shift : shift + rows], tap)
        return y

    def _rows(
        self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows of the stream hold the halos, the inputs and the states after them.

        The stream holds for each sequence: its halo (W - 1 rows), its kept positions in order, its
        masked positions. So every window of a kept position sees kept positions only, and the state
        after a sequence is the W - 1 rows that end with its last kept position.

        Returns:
            `[N, W - 1]`, `[P]` and `[N, W - 1]`.
        """
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
        counts = edges.diff()  # of the kept positions of each sequence
        rank = positions - starts[sequence]  # of each position in its sequence

        if mask is not None:
            keep = mask.flatten()
            # How many are kept before each position; the last entry is how many are kept in all.
            kept_before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))
            counts = kept_before[edges[1:]] - kept_before[starts]
            kept_rank = kept_before[:-1] - kept_before[starts][sequence]
            # A masked position's rank among the masked is `rank - kept_rank`; they follow the kept.
            rank = torch.where(keep, kept_rank, counts[sequence] + rank - kept_rank)

        # In front of sequence n are the positions and the halos of the n sequences before it.
        steps = torch.arange(window, device=x.device)
        firsts = starts + window * torch.arange(len(starts), device=x.device)
        halo_rows = firsts[:, None] + steps
        input_rows = firsts[sequence] + window + rank
        after_rows = (firsts + counts)[:, None] + steps
        return halo_rows, input_rows, after_rows

    def _check(
        self, x: Tensor, state: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> int:
        """Raises TypeError or ValueError unless the arguments fit; returns N."""
        # A graph cannot read the values of a tensor.
        if cu_seqlens is not None and not torch.compiler.is_compiling():
            check_cu_seqlens(cu_seqlens, x.shape[0] * x.shape[1])
        if mask is not None:
            rule = "mask must be a bool tensor (True where there is input)"
            if not isinstance(mask, Tensor):
                raise TypeError(f"{rule}, got {type(mask).__name__}")
            if mask.dtype != torch.bool:
                raise TypeError(f"{rule}, got {mask.dtype}; use mask.bool()")
            if mask.shape != x.shape[:2]:
                raise ValueError(
                    f"mask must have shape {tuple(x.shape[:2])}, got {tuple(mask.shape)}"
                )
        channels, size = self.weight.shape
        # Not len(), which would become a constant under torch.export.
        sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        expected = (sequences, size - 1, channels)
        if state is not None and state.shape != expected:
            raise ValueError(
                f"the convolution's state must have shape {expected}, got {tuple(state.shape)}"
            )
        return sequences
