"""HGRU and HGRU2d: the token mixers of HGRN, over sequences and over grids.

Shape letters: B batch, T time, H, W rows and columns of a grid, D channels, N packed sequences,
C = D (real state) or 2D (complex, [Re | Im]).
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hgrn.modules.arguments import (
    check_choice,
    check_dtype,
    check_input,
    check_recurrent,
    check_state_tuple,
)
from hgrn.modules.directions import Direction, DirectionalScan, scan_directions
from hgrn.modules.linear import Linear
from hgrn.modules.mixer import Mixer, StepBuilder, Use, defined_anew
from hgrn.modules.norms import GATED_NORMS, GatedLayerNorm
from hgrn.modules.parameters import Init
from hgrn.modules.short_conv import ShortConvolution
from hgrn.ops.arguments import at_least_float32
from hgrn.ops.packing import check_boundaries

GATE_ACTS = ("silu", "sigmoid")
GATE_POSITIONS = ("after_norm", "before_norm")


def initial_theta(dim: int) -> Tensor:
    """The angles at the start, `theta_j = 10000^(-2j / dim)` (hgru-pytorch), float64 `[dim]`."""
    return 10000.0 ** (-2.0 * torch.arange(dim, dtype=torch.float64, device="cpu") / dim)


class HGRU(Mixer):
    """The hierarchically gated recurrent unit: projections, scans, output gate.

    `c = SiLU(W_c x)`, `lambda = gamma + (1 - gamma) sigmoid(W_f x)`,
    `h_t = lambda_t exp(i theta) h_{t-1} + (1 - lambda_t) c_t`,
    `y = W_o (Norm([Re h, Im h]) * act(W_g x))`
    (paper, section 3, with the norm where the authors' hgru-pytorch has it).

    Args:
        dim: channels D of input and output.
        bidirectional: add a second scan of the same projections, from the end; the sum of both is
            read out.
        shared_theta: one theta for both directions; False (bidirectional and complex only) is one
            for each.
        complex_state: two numbers per channel, turned by theta each step; False is the authors'
            real variant, with half the state and no theta.
        gate_position: "after_norm" (`Norm(h) * gate`, the authors' code) or "before_norm"
            (`Norm(h * gate)`, the paper's text and `hgru1d_v3`).
        gate_act: activation of the output gate, "silu" or "sigmoid" (`hgru1d_v2`, `hgru1d_v3`).
        gate_rank: factor the forget and gate projections through this many channels (`hgru1d_v2`,
            `hgru1d_v3`).
        norm_type: "layer", or "rms" (flash-linear-attention).
        conv_size: taps of a causal convolution of candidate and forget gate before their
            activations (4 in flash-linear-attention); None leaves it out. It goes neither with
            bidirectional nor with gate_rank, because no published model combines them.
        bias: biases of the linear maps; the norm keeps its own.
        norm_eps: epsilon of the norm.

    Attributes:
        scan: what runs over time. `hgrn.parallel.parallelize` replaces it where x is one rank's
            stretch of longer sequences.

    One product makes all three projections. `joined_rows["in_proj"]` says how many of its rows
    belong to candidate, forget gate and output gate; the rows of candidate and output gate are
    ordered [Re | Im]. With gate_rank, `forget_up` and `gate_up` widen the second and the third.
    `short_conv` has the channels of the candidate, then those of the forget gate.

    Raises:
        ValueError: an option has a value that is not allowed, or options exclude each other.
    """

    no_decay = ("theta",)
    float32_parameters = ("theta",)
    scan: DirectionalScan = staticmethod(scan_directions)

    def __init__(
        self,
        dim: int,
        *,
        bidirectional: bool = False,
        shared_theta: bool = True,
        complex_state: bool = True,
        gate_position: str = "after_norm",
        gate_act: str = "silu",
        gate_rank: int | None = None,
        norm_type: str = "layer",
        conv_size: int | None = None,
        bias: bool = True,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        check_choice("gate_position", gate_position, GATE_POSITIONS)
        check_choice("gate_act", gate_act, GATE_ACTS)
        check_choice("norm_type", norm_type, tuple(GATED_NORMS))
        if not shared_theta and not (bidirectional and complex_state):
            raise ValueError("shared_theta=False needs bidirectional=True and complex_state=True")
        if conv_size is not None and (bidirectional or gate_rank is not None):
            raise ValueError(
                f"conv_size={conv_size} goes neither with bidirectional=True nor with gate_rank; "
                "pass conv_size=None"
            )
        self.dim = dim
        self.bidirectional = bidirectional
        self.gate_position = gate_position
        self.gate_act = gate_act
        width = 2 * dim if complex_state else dim
        # One wide product is faster than three, so the projections share a weight.
        rows = (width, gate_rank or dim, gate_rank or width)
        self.joined_rows: dict[str, tuple[int, ...]] = {"in_proj": rows}
        self.in_proj = Linear(dim, sum(rows), bias=bias)
        self.forget_up = Linear(gate_rank, dim, bias=bias) if gate_rank else None
        self.gate_up = Linear(gate_rank, width, bias=bias) if gate_rank else None
        self.short_conv = None
        if conv_size is not None:
            self.short_conv = ShortConvolution(width + dim, conv_size)
            self.joined_rows["short_conv"] = (width, dim)
        self.norm = GATED_NORMS[norm_type](width, eps=norm_eps)
        self.out_proj = Linear(width, dim, bias=bias)
        self.theta = None
        if complex_state:
            shape = (dim,) if shared_theta else (2, dim)
            wide = at_least_float32(torch.get_default_dtype())
            self.theta = nn.Parameter(torch.empty(shape, dtype=wide))
        self.reset_parameters()

    def reset_parameters(self, init: type[Init] | ModuleType = Init) -> None:
        """Sets theta; the linear maps, the norm and the convolution set themselves."""
        if self.theta is not None:
            init.copy_(self.theta, initial_theta(self.dim))

    def extra_repr(self) -> str:
        gate = f"{self.gate_act} {self.gate_position}"
        return f"{self.dim}, bidirectional={self.bidirectional}, gate={gate}"

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """One call for all uses: training, prefill, a further chunk, a single step (T = 1).

        Args:
            x: `[B, T, D]`; with cu_seqlens `[1, total, D]`.
            lower_bound: this layer's row of `LowerBounds`, `[D]`; None is 0.
            state: what the call on the previous chunk returned: `(recurrent [B, C],)`, `[N, C]` if
                packed. With conv_size a second tensor follows: the last inputs of the convolution,
                `[N, conv_size - 1, C + D]`. None is zeros.
            mask: bool `[B, T]`; where False the position is skipped exactly.
            cu_seqlens: boundaries `[N + 1]` of sequences packed end to end; each starts from its
                own state.

        Returns:
            y like x, and the state after the last position, float32 (float64 for float64 input);
            None if bidirectional.

        Raises:
            ValueError: x or state has another shape, or a bidirectional layer is given a state.
            TypeError: an argument is of another type or dtype.
        """
        self._check_x(x, "[B, T, D]")
        if self.bidirectional and state is not None:
            raise ValueError(
                "a bidirectional HGRU reads whole sequences and takes no state; pass state=None"
            )
        if cu_seqlens is not None:
            check_boundaries(cu_seqlens)
        parts = 1 if self.short_conv is None else 2
        if state is not None:
            # Not len(), which would become a constant under torch.export.
            sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            self._check_state(state, parts, sequences)
        recurrent, *window = (None,) * parts if state is None else state
        candidate, forget, gate, *window = self.project(
            x, *window, mask=mask, cu_seqlens=cu_seqlens
        )
        h, final = self.scan(
            candidate,
            forget,
            lower_bound,
            self._directions(),
            recurrent,
            mask=mask,
            cu_seqlens=cu_seqlens,
        )
        return self.read_out(h, gate), None if self.bidirectional else (final, *window)

    def initial_state(self, sequences: int) -> tuple[Tensor, ...]:
        """What state=None stands for: zeros in the shapes that `forward` returns."""
        weight = self.norm.weight
        recurrent = weight.new_zeros(sequences, len(weight), dtype=at_least_float32(weight.dtype))
        if self.short_conv is None:
            return (recurrent,)
        return recurrent, self.short_conv.initial_state(sequences)

    def project(
        self,
        x: Tensor,
        window: Tensor | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Candidate, forget gate and output gate of x, before their activations.

        Args:
            window: the convolution's state, `[N, conv_size - 1, C + D]`; None is zeros.
            mask, cu_seqlens: as in `forward`; only the convolution needs them.

        Shape:
            `[..., D]` -> `[..., C]`, `[..., D]`, `[..., C]`. With a convolution x is `[B, T, D]`,
            and a fourth tensor is its new state.
        """
        projected = self.in_proj(x)
        rows = self.joined_rows["in_proj"]
        if self.short_conv is not None:
            # The output gate stays out of the convolution.
            mixed, gate = projected.split((rows[0] + rows[1], rows[2]), dim=-1)
            mixed, after = self.short_conv(mixed, window, mask, cu_seqlens)
            candidate, forget = mixed.split(rows[:2], dim=-1)
            return candidate, forget, gate, after
        candidate, forget, gate = projected.split(rows, dim=-1)
        if self.forget_up is not None and self.gate_up is not None:
            forget = self.forget_up(forget)
            gate = self.gate_up(gate)
        return candidate, forget, gate

    def _directions(self) -> list[Direction]:
        # With shared_theta=False each direction has a row of its own.
        first = self.theta
        second = self.theta
        if self.theta is not None and self.theta.ndim == 2:
            first = self.theta[0]
            second = self.theta[1]
        return [(False, first), (True, second)] if self.bidirectional else [(False, first)]

    def read_out(self, h: Tensor, gate: Tensor) -> Tensor:
        """The output `[..., D]` of hidden states and output gate `[..., C]`."""
        return self.out_proj(self.norm(h, gate, self.gate_act, self.gate_position == "before_norm"))

    def why_not(self, use: Use) -> str | None:
        """Why the layer cannot be used so; None if it can (see `Mixer.why_not`)."""
        if use in ("steps", "split") and (own := defined_anew(self, HGRU)):
            # What is compiled or split is the computation of this class and no other.
            return f"a {type(self).__name__} has {', '.join(own)} of its own"
        if use in ("state", "steps") and self.bidirectional:
            return "a bidirectional stack reads whole sequences and has no steps"
        if use == "steps" and self.scan is not scan_directions:
            return "the stack reads one stretch of longer sequences (hgrn.parallel)"
        if use == "steps" and (
            self.short_conv is not None or type(self.norm) is not GatedLayerNorm
        ):
            part = self.norm if self.short_conv is None else self.short_conv
            return f"the mixer has a {type(part).__name__}, of which there are no compiled steps"
        return None

    def add_step(
        self,
        builder: StepBuilder,
        x: Tensor,
        lower_bound: Tensor | None,
        state: tuple[Tensor, ...],
        total: Tensor,
    ) -> None:
        """The calls of one position (see `Mixer.add_step`)."""
        (recurrent,) = state
        program = builder.program
        projected = builder.zeros(len(x), len(self.in_proj.weight))
        builder.linear(self.in_proj, x, projected)
        candidate, forget, gate = projected.split(self.joined_rows["in_proj"], dim=-1)
        if self.forget_up is not None and self.gate_up is not None:
            low_forget = forget
            low_gate = gate
            forget = builder.zeros(len(x), self.dim)
            gate = builder.zeros(*recurrent.shape)
            builder.linear(self.forget_up, low_forget, forget)
            builder.linear(self.gate_up, low_gate, gate)
        h = builder.zeros(*recurrent.shape)
        gated = builder.zeros(*recurrent.shape)
        program.hgru_step(candidate, forget, lower_bound, self.theta, recurrent, h)
        if self.theta is not None:
            program.watch(self.theta)
        program.gated_norm(
            h,
            gate,
            self.norm.weight,
            self.norm.bias,
            self.norm.eps,
            gated,
            activation=self.gate_act,
            gate_first=self.gate_position == "before_norm",
        )
        builder.linear(self.out_proj, gated, total, add=total)

    def _check_x(self, x: Tensor, letters: str) -> None:
        check_input(x, letters, self.dim)
        # Replacements of the map (adapters, 8-bit weights) may take other dtypes.
        if type(self.in_proj) is Linear:
            check_dtype(x, self.in_proj.weight, "in_proj.weight")

    def _check_state(self, state: tuple[Tensor, ...], parts: int, sequences: int) -> None:
        check_state_tuple(state)
        if len(state) != parts:
            raise ValueError(
                f"state must be a tuple of {parts} tensor(s), as this layer returns it, "
                f"got {len(state)}"
            )
        check_recurrent(state[0], sequences, self.joined_rows["in_proj"][0])


class HGRU2d(HGRU):
    """An HGRU over a grid: it scans along both axes and reads out the sum (the authors' Hgru2d).

    It takes the arguments of `HGRU`, and makes two scans (down and right), or four if
    bidirectional. Both axes share theta, and neither is ever transposed in memory. There is no
    conv_size, because the convolution belongs to sequences.
    """

    def __init__(self, dim: int, **options: Any):
        if options.get("conv_size") is not None:
            raise ValueError(
                f"conv_size={options['conv_size']}: an HGRU2d has no convolution; "
                "pass conv_size=None"
            )
        super().__init__(dim, **options)

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: None = None,
        mask: None = None,
        cu_seqlens: None = None,
    ) -> tuple[Tensor, None]:
        """x `[B, H, W, D]`, lower_bound `[D]` or None (0) -> y like x, and no state.

        Raises:
            ValueError: x has another shape, or an argument is given that only sequences have.
        """
        self._check_x(x, "[B, H, W, D]")
        for name, given in dict(state=state, mask=mask, cu_seqlens=cu_seqlens).items():
            if given is not None:
                raise ValueError(
                    f"a grid is read whole and has no {name}, which belongs to sequences; "
                    f"pass {name}=None"
                )
        candidate, forget, gate = self.project(x)
        h, _ = scan_directions(candidate, forget, lower_bound, self._directions(), dims=(1, 2))
        return self.read_out(h, gate), None

    def why_not(self, use: Use) -> str | None:
        """Why the layer cannot be used so; None if it can (see `Mixer.why_not`)."""
        if use in ("state", "steps"):
            return "a grid is read whole and has no steps"
        if use == "split":
            return "an HGRU2d scans a grid, which is not split over ranks"
        return None
