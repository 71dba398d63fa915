"""HGRU: the token mixer of HGRN over sequences.

Shape letters: B batch, T time, D channels, N packed sequences, C = D (real state) or 2D (complex, [Re | Im]).
"""

import torch
from torch import Tensor, nn

from hgrn.modules.arguments import check_dtype, check_input, check_recurrent, check_state_tuple
from hgrn.modules.linear import Linear
from hgrn.modules.norms import GATED_NORMS
from hgrn.modules.parameters import KeepsFloat32, at_least_float32
from hgrn.modules.short_conv import ShortConvolution
from hgrn.ops import hgru_scan
from hgrn.ops.packing import check_boundaries

GATE_ACTS = ("silu", "sigmoid")
GATE_POSITIONS = ("after_norm", "before_norm")


def initial_theta(dim: int) -> Tensor:
    """The angles at the start, `theta_j = 10000^(-2j / dim)` (the authors' hgru-pytorch), float64 `[dim]`."""
    return 10000.0 ** (-2.0 * torch.arange(dim, dtype=torch.float64, device="cpu") / dim)


class HGRU(KeepsFloat32):
    """The hierarchically gated recurrent unit: projections, one scan (two if bidirectional), output gate.

    `c = SiLU(W_c x)`, `lambda = gamma + (1 - gamma) sigmoid(W_f x)`,
    `h_t = lambda_t exp(i theta) h_{t-1} + (1 - lambda_t) c_t`, `y = W_o (Norm([Re h, Im h]) * act(W_g x))`
    (paper, section 3, with the norm where the authors' hgru-pytorch has it).

    Args:
        dim: channels D of input and output.
        bidirectional: add a scan from the end to the same projections; the sum of both is read out.
        shared_theta: one theta for both directions, or one for each (bidirectional and complex only).
        complex_state: two numbers per channel, turned by theta each step; False is the authors' real variant,
            with half the state and no theta.
        gate_position: "after_norm" (`Norm(h) * gate`, the authors' code) or "before_norm" (`Norm(h * gate)`,
            the paper's text and `hgru1d_v3`).
        gate_act: activation of the output gate, "silu" or "sigmoid" (`hgru1d_v2`, `hgru1d_v3`).
        gate_rank: factor the forget and gate projections through this many channels (`hgru1d_v2`,
            `hgru1d_v3`).
        norm_type: "layer", or "rms" (flash-linear-attention).
        conv_size: taps of a causal convolution of candidate and forget gate before their activations; None is none
            (flash-linear-attention has 4, or none). Not with bidirectional or gate_rank, which no published model adds to it.
        bias: biases of the linear maps; the norm keeps its own.
        norm_eps: epsilon of the norm.

    One product makes all three projections: `joined_rows["in_proj"]` says how many rows of it belong to candidate, forget gate and
    output gate; those of candidate and output gate are ordered [Re | Im]. With gate_rank the second and third are what
    `forget_up` and `gate_up` widen. `short_conv` has the channels of the candidate, then those of the forget gate.
    """

    no_decay = ("theta",)
    float32_parameters = ("theta",)
    context = None  # set by hgrn.parallel where x is one rank's stretch of longer sequences

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
        if gate_position not in GATE_POSITIONS:
            raise ValueError(
                f"gate_position must be one of {GATE_POSITIONS}, got {gate_position!r}"
            )
        if gate_act not in GATE_ACTS:
            raise ValueError(f"gate_act must be one of {GATE_ACTS}, got {gate_act!r}")
        if norm_type not in GATED_NORMS:
            raise ValueError(f"norm_type must be one of {tuple(GATED_NORMS)}, got {norm_type!r}")
        if not shared_theta and not (bidirectional and complex_state):
            raise ValueError("shared_theta=False needs bidirectional=True and complex_state=True")
        if conv_size is not None and (bidirectional or gate_rank is not None):
            raise ValueError(
                f"conv_size={conv_size} goes neither with bidirectional=True nor with gate_rank; pass conv_size=None"
            )
        self.dim = dim
        self.bidirectional = bidirectional
        self.gate_position = gate_position
        self.gate_act = gate_act
        width = 2 * dim if complex_state else dim
        self.joined_rows = {"in_proj": (width, gate_rank or dim, gate_rank or width)}
        self.in_proj = Linear(dim, sum(self.joined_rows["in_proj"]), bias=bias)
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
            self.theta = nn.Parameter(
                torch.empty(shape, dtype=at_least_float32(torch.get_default_dtype()))
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets theta; the linear maps and the norm are modules of their own and set themselves."""
        if self.theta is not None:
            with torch.no_grad():
                self.theta.copy_(initial_theta(self.dim))

    def extra_repr(self) -> str:
        return f"{self.dim}, bidirectional={self.bidirectional}, gate={self.gate_act} {self.gate_position}"

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Training, prefill, a further chunk and a single step (T = 1) are all this call.

        Args:
            x: `[B, T, D]`; with cu_seqlens `[1, total, D]`.
            lower_bound: this layer's row of `LowerBounds`, `[D]`; None is 0.
            state: what the call on the previous chunk returned: `(recurrent [B, C],)`, `[N, C]` if packed, and with conv_size
                the last inputs of the convolution, `[N, conv_size - 1, C + D]`, behind it; None is zeros.
            mask: bool `[B, T]`; where False the position is skipped exactly.
            cu_seqlens: boundaries `[N + 1]` of sequences packed end to end; each starts from its own state.

        Returns:
            y like x, and the state after the last position, float32 (float64 for float64 input); None if
            bidirectional.

        Raises:
            ValueError: x or state has another shape, or a bidirectional layer is given a state.
            TypeError: an argument is of another type or dtype.
        """
        self._check(x, "[B, T, D]")
        if self.bidirectional and state is not None:
            raise ValueError(
                "a bidirectional HGRU reads whole sequences and takes no state; pass state=None"
            )
        parts = 1 if self.short_conv is None else 2
        if cu_seqlens is not None:
            check_boundaries(cu_seqlens)
        if state is not None:
            sequences = (
                x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            )  # len() would be a constant under export
            self._check_state(state, parts, sequences)
        initial, *window = (None,) * parts if state is None else state
        candidate, forget, gate, *window = self._project(
            x, *window, mask=mask, cu_seqlens=cu_seqlens
        )
        h, final = self._scan(
            candidate, forget, (1,), lower_bound, initial, mask=mask, cu_seqlens=cu_seqlens
        )
        return self._read_out(h, gate), None if self.bidirectional else (final, *window)

    def initial_state(self, sequences: int) -> tuple[Tensor, ...]:
        """What state=None stands for: zeros in the shapes that `forward` returns."""
        weight = self.norm.weight
        recurrent = weight.new_zeros(sequences, len(weight), dtype=at_least_float32(weight.dtype))
        return (
            (recurrent,)
            if self.short_conv is None
            else (recurrent, self.short_conv.initial_state(sequences))
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidate `[..., C]`, forget gate `[..., D]` and output gate `[..., C]` of x `[..., D]`, before their activations.

        With a convolution x is `[B, T, D]`, whole sequences.
        """
        return self._project(x)[:3]

    def _project(self, x: Tensor, window: Tensor | None = None, **where) -> tuple[Tensor, ...]:
        """The three of `project`, and where there is a convolution its new state."""
        projected = self.in_proj(x)
        rows = self.joined_rows["in_proj"]
        if self.short_conv is not None:
            mixed, gate = projected.split((rows[0] + rows[1], rows[2]), dim=-1)
            mixed, window = self.short_conv(mixed, window, **where)
            return *mixed.split(rows[:2], dim=-1), gate, window
        candidate, forget, gate = projected.split(rows, dim=-1)
        return (
            (candidate, forget, gate)
            if self.forget_up is None
            else (candidate, self.forget_up(forget), self.gate_up(gate))
        )

    def _check(self, x: Tensor, letters: str) -> None:
        check_input(x, letters, self.dim)
        if type(self.in_proj) is Linear:
            check_dtype(x, self.in_proj.weight, "in_proj.weight")

    def _check_state(self, state: tuple[Tensor, ...], parts: int, sequences: int) -> None:
        check_state_tuple(state)
        if len(state) != parts:
            raise ValueError(
                f"state must be a tuple of {parts} tensor(s), as this layer returns it, got {len(state)}"
            )
        if self.context is None:  # else each rank has sequences of its own
            check_recurrent(state[0], sequences, self.joined_rows["in_proj"][0])

    def _scan(
        self,
        candidate: Tensor,
        forget: Tensor,
        dims: tuple[int, ...],
        lower_bound,
        initial_state=None,
        **where,
    ):
        """The sum of the scans along `dims` in each direction, and the final state of the first."""
        own = self.theta is not None and self.theta.ndim == 2
        directions = [(False, self.theta[0] if own else self.theta)]
        if self.bidirectional:
            directions.append((True, self.theta[1] if own else self.theta))
        if self.context is not None:
            return self.context.scan(
                candidate, forget, lower_bound, directions, initial_state, **where
            )
        (h, final), *others = [
            hgru_scan(
                candidate,
                forget,
                lower_bound,
                theta,
                initial_state,
                dim=dim,
                reverse=reverse,
                **where,
            )
            for dim in dims
            for reverse, theta in directions
        ]
        for other, _ in others:
            h = h + other
        return h, final

    def _read_out(self, h: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(self.norm(h, gate, self.gate_act, self.gate_position == "before_norm"))
