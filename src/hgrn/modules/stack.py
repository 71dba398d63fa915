"""HGRN: the whole stack on anyone's tensors, in the place of an `nn.LSTM`.

Shape letters: B batch, T time, N packed sequences, H, W rows and columns of a grid, D channels,
C = D (real state) or 2D (complex state).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hgrn.modules.arguments import check_dtype, check_input, check_states
from hgrn.modules.block import Block
from hgrn.modules.bounds import LowerBounds
from hgrn.modules.glu import GLU
from hgrn.modules.hgru import HGRU, HGRU2d
from hgrn.modules.mixer import Mixer
from hgrn.modules.mixers import mixer_named
from hgrn.modules.norms import make_norm

# A class of mixers, its registered name, or anything that makes one when it is called like a class.
MixerKind = str | Callable[..., Mixer]


class HGRN(nn.Module):
    """Blocks of HGRU and GLU with lower bounds that rise with depth, and a final norm.

    Args:
        dim: channels D of input and output.
        depth: number of blocks.
        mixer: what mixes positions in each block: a class like `HGRU` or `HGRN2Mixer`, or its
            registered name ("hgru", "hgrn2", or of `register_mixer`). A sequence has one for each
            block.
        glu_dim: channels inside each GLU; None is `2 * dim`.
        glu_act: "silu" or "identity".
        dropout: probability on the output of every HGRU and GLU.
        glu_dropout: probability inside every GLU, on the activated branch.
        bias: biases of all linear maps.
        norm_eps: epsilon of all norms.
        norm_type: "layer" or "rms" for all norms; or "batch" (`BatchNorm`) for all but the norms
            inside the HGRUs, which are then "layer".
        final_norm: whether a norm follows the last block.
        grid: read grids along both axes (`HGRU2d`) instead of sequences.
        use_lower_bound: False leaves every forget gate free between 0 and 1, the paper's ablation.
        mixer_options: arguments of the mixers in place of those of the stack, such as another
            norm_eps.
        **options: further arguments of the mixers. Those of `HGRU` are bidirectional, shared_theta,
            complex_state, gate_position, gate_act, gate_rank and conv_size.

    Set `gradient_checkpointing = True` on members of `blocks` to trade time for memory in training.

    Raises:
        ValueError: an option has a value that is not allowed, or options exclude each other.

    Example:
        >>> import torch
        >>> from hgrn import HGRN
        >>> rnn = HGRN(dim=32, depth=2)
        >>> x = torch.randn(4, 100, 32)               # batch first
        >>> y, state = rnn(x)                         # zeros at the start, like nn.LSTM
        >>> y.shape
        torch.Size([4, 100, 32])
        >>> more, state = rnn(torch.randn(4, 1, 32), state)   # goes on where x ended
        >>> [part.shape for part in state[0]]         # one tuple of tensors for each block
        [torch.Size([4, 64])]
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        mixer: MixerKind | Sequence[MixerKind] = HGRU,
        glu_dim: int | None = None,
        glu_act: str = "silu",
        dropout: float = 0.0,
        glu_dropout: float = 0.0,
        bias: bool = True,
        norm_eps: float = 1e-5,
        norm_type: str = "layer",
        final_norm: bool = True,
        grid: bool = False,
        use_lower_bound: bool = True,
        mixer_options: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__()
        self.dim = dim
        self.grid = grid
        kinds = [mixer] * depth if isinstance(mixer, str) or callable(mixer) else list(mixer)
        if len(kinds) != depth:
            raise ValueError(
                f"mixer must be one class, or one for each of {depth} blocks, got {len(kinds)}"
            )
        makers = [mixer_named(kind) if isinstance(kind, str) else kind for kind in kinds]
        if grid and any(make is not HGRU for make in makers):
            raise ValueError("grid=True reads grids with HGRU2d, and goes with no other mixer")
        makers = [HGRU2d] * depth if grid else makers
        # A read-out's norm is fused with its gate. No published model has a batch norm there.
        inner_norm = "layer" if norm_type == "batch" else norm_type
        of_mixer = {"bias": bias, "norm_eps": norm_eps, "norm_type": inner_norm, **options}
        of_mixer |= mixer_options or {}
        self.bounds = LowerBounds(depth, dim) if use_lower_bound else None
        self.blocks = nn.ModuleList(
            Block(
                dim,
                make(dim, **of_mixer),
                GLU(
                    dim,
                    2 * dim if glu_dim is None else glu_dim,
                    glu_act,
                    bias=bias,
                    dropout=glu_dropout,
                ),
                dropout=dropout,
                norm_eps=norm_eps,
                norm_type=norm_type,
            )
            for make in makers
        )
        self.norm = make_norm(norm_type, dim, norm_eps) if final_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        state: tuple | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        hidden_states: list[Tensor] | None = None,
        hidden_shape: Sequence[int] | None = None,
    ) -> tuple[Tensor, tuple | None]:
        """A whole sequence, a chunk or a single step; all three give the same numbers.

        Args:
            x: `[B, T, D]`; with cu_seqlens `[1, total, D]`. A stack of grids takes `[B, H, W, D]`,
                and neither state, mask nor cu_seqlens.
            state: what the call on the previous chunk returned: for each block a tuple
                `(recurrent [B, C],)`, `[N, C]` if packed, longer with conv_size (see
                `HGRU.forward`); None is zeros. Gradients flow through it: detach it to cut them.
            mask: bool `[B, T]`, False where there is no input: on either side, or inside. Such
                positions are skipped exactly; their outputs mean nothing.
            cu_seqlens: int32 or int64 `[N + 1]`, boundaries of N sequences packed end to end.
            hidden_states: a list to which the input of every block is appended; gradients reach it.
            hidden_shape: the shape of the positions in hidden_states, such as `[B, H * W]` for a
                grid; None keeps the shape of x.

        Returns:
            y like x, and the state after the last position; None if bidirectional or of grids.

        Raises:
            ValueError: a shape or the number of states does not fit, or a bidirectional stack gets
                a state.
            TypeError: an argument is of another type or dtype.
        """
        self._check(x, state)
        states = []
        for index, (block, bound) in enumerate(zip(self.blocks, self.lower_bounds(), strict=True)):
            if hidden_states is not None:
                kept = x if hidden_shape is None else x.reshape(*hidden_shape, x.shape[-1])
                hidden_states.append(kept)
                # The next block reads the kept tensor, so that gradients pass through it.
                x = kept.view(x.shape)
            x, after = block(x, bound, None if state is None else state[index], mask, cu_seqlens)
            states.append(after)
        return self.norm(x), None if None in states else tuple(states)

    def _check(self, x: Tensor, state: tuple | None) -> None:
        check_input(x, "[B, H, W, D]" if self.grid else "[B, T, D]", self.dim)
        check_states(state, len(self.blocks))
        first = self.blocks[0].mixer_norm
        # A LayerNorm takes inputs of half precision with float32 weights, but no other mixture.
        if type(first) is nn.LayerNorm and x.dtype in (torch.float32, torch.float64):
            check_dtype(x, first.weight, "blocks.0.mixer_norm.weight")

    def lower_bounds(self) -> Sequence[Tensor | None]:
        """The lower bound of the forget gates of each block: `[D]`, or None."""
        return [None] * len(self.blocks) if self.bounds is None else self.bounds().unbind()
