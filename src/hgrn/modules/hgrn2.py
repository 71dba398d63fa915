"""HGRN2: a token mixer whose state is a matrix in each head (arXiv 2404.07904).

Shape letters: B batch, T time, D channels, H heads of K channels each (D = H K), N sequences.
"""

from torch import Tensor

from hgrn.modules.arguments import check_choice, check_dtype, check_input, check_state_tuple
from hgrn.modules.linear import Linear
from hgrn.modules.mixer import Mixer, StepBuilder, Use, defined_anew
from hgrn.modules.norms import make_norm
from hgrn.modules.outer import OuterScan, scan_heads
from hgrn.modules.short_conv import ShortConvolution
from hgrn.ops.arguments import at_least_float32
from hgrn.ops.hgrn2 import hgrn2_inputs
from hgrn.ops.layers import ACTIVATIONS
from hgrn.ops.packing import check_boundaries


class HGRN2Mixer(Mixer):
    """The token mixer of HGRN2: each head keeps an outer-product memory, and a query reads it.

    `q = act(W_q x)`, `f = gamma + (1 - gamma) sigmoid(W_f x)`, `c = act(W_c x)`, and in each head
    `S_t = Diag(f_t) S_{t-1} + (1 - f_t) c_t^T`, `y = W_o Norm(scale q_t S_t)`
    (HGRN2 paper, section 3; the forms of the authors' hgru2-pytorch and of flash-linear-attention
    differ in the options). The state is K times as large as that of a real HGRU, at as many
    parameters as a real HGRU without its output gate.

    Args:
        dim: channels D of input and output.
        head_dim: channels K of each head, which must divide dim; None is the largest that does, up
            to 64.
        query_act: activation of the query, "silu" or "sigmoid" or "identity".
        candidate_act: activation of the candidate, likewise; "identity" is that of the language
            models.
        scale: factor of the query; None is `K ** -0.5`, as in flash-linear-attention.
        conv_size: taps of a causal convolution of all three before their activations (4 in
            flash-linear-attention); None leaves it out.
        bias: biases of the linear maps.
        norm_eps: epsilon of the norm.
        norm_type: "layer", or "rms".

    Attributes:
        scan: what runs over time. `hgrn.parallel.parallelize` replaces it where x is one rank's
            stretch of longer sequences.

    One product makes all three projections: the rows of `in_proj` are those of query, forget gate
    and candidate (`joined_rows`), and so are the channels of `short_conv`.

    Raises:
        ValueError: an option has a value that is not allowed.
    """

    scan: OuterScan = staticmethod(scan_heads)

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int | None = None,
        query_act: str = "silu",
        candidate_act: str = "identity",
        scale: float | None = None,
        conv_size: int | None = None,
        bias: bool = True,
        norm_eps: float = 1e-5,
        norm_type: str = "rms",
    ):
        super().__init__()
        if head_dim is None:
            head_dim = max(size for size in range(1, 65) if dim % size == 0)
        if head_dim < 1 or dim % head_dim:
            raise ValueError(f"head_dim must divide dim ({dim}), got {head_dim}")
        check_choice("query_act", query_act, tuple(ACTIVATIONS))
        check_choice("candidate_act", candidate_act, tuple(ACTIVATIONS))
        check_choice("norm_type", norm_type, ("layer", "rms"))
        self.dim = dim
        self.head_dim = head_dim
        self.heads = dim // head_dim
        self.query_act = query_act
        self.candidate_act = candidate_act
        self.scale = head_dim**-0.5 if scale is None else scale
        rows = (dim, dim, dim)
        self.joined_rows: dict[str, tuple[int, ...]] = {"in_proj": rows}
        self.in_proj = Linear(dim, sum(rows), bias=bias)
        self.short_conv = None
        if conv_size is not None:
            self.short_conv = ShortConvolution(sum(rows), conv_size)
            self.joined_rows["short_conv"] = rows
        self.norm = make_norm(norm_type, dim, norm_eps)
        self.out_proj = Linear(dim, dim, bias=bias)

    def extra_repr(self) -> str:
        acts = f"query={self.query_act}, candidate={self.candidate_act}, scale={self.scale:.6g}"
        return f"{self.dim}, heads={self.heads} of {self.head_dim}, {acts}"

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One call for all uses; arguments as `Mixer.forward`.

        The state is `(S [N, H, K, K],)`, keys before values; with conv_size a second tensor
        follows, the last inputs of the convolution `[N, conv_size - 1, 3 D]`.

        Raises:
            ValueError: x or state has another shape.
            TypeError: an argument is of another type or dtype.
        """
        check_input(x, "[B, T, D]", self.dim)
        # Replacements of the map (adapters, 8-bit weights) may take other dtypes.
        if type(self.in_proj) is Linear:
            check_dtype(x, self.in_proj.weight, "in_proj.weight")
        if cu_seqlens is not None:
            check_boundaries(cu_seqlens)
        parts = 1 if self.short_conv is None else 2
        if state is not None:
            # Not len(), which would become a constant under torch.export.
            sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            self._check_state(state, parts, sequences)
        memory, *window = (None,) * parts if state is None else state
        projected, *window = self._joined(x, *window, mask=mask, cu_seqlens=cu_seqlens)
        inputs = hgrn2_inputs(
            projected,
            lower_bound,
            scale=self.scale,
            query_act=self.query_act,
            candidate_act=self.candidate_act,
        )
        q, k, v, log_f = (part.unflatten(-1, (self.heads, self.head_dim)) for part in inputs)
        y, memory = self.scan(q, k, v, log_f, memory, mask=mask, cu_seqlens=cu_seqlens)
        return self.read_out(y.flatten(-2)), (memory, *window)

    def initial_state(self, sequences: int) -> tuple[Tensor, ...]:
        """What state=None stands for: zeros in the shapes that `forward` returns."""
        # The linear maps may have 8-bit weights; the norm never has.
        weight = self.norm.get_parameter("weight")
        shape = (sequences, self.heads, self.head_dim, self.head_dim)
        memory = weight.new_zeros(shape, dtype=at_least_float32(weight.dtype))
        if self.short_conv is None:
            return (memory,)
        return memory, self.short_conv.initial_state(sequences)

    def project(
        self,
        x: Tensor,
        window: Tensor | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Query, forget gate and candidate of x, before their activations.

        Args:
            window: the convolution's state, `[N, conv_size - 1, 3 D]`; None is zeros.
            mask, cu_seqlens: as in `forward`; only the convolution needs them.

        Shape:
            `[..., D]` -> three times `[..., D]`. With a convolution x is `[B, T, D]`, and a fourth
            tensor is its new state.
        """
        projected, *after = self._joined(x, window, mask, cu_seqlens)
        return *projected.chunk(3, dim=-1), *after

    def _joined(
        self,
        x: Tensor,
        window: Tensor | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The three of `project` side by side, `[..., 3 D]`; with a convolution its new state."""
        projected = self.in_proj(x)
        if self.short_conv is None:
            return (projected,)
        return self.short_conv(projected, window, mask, cu_seqlens)

    def read_out(self, y: Tensor) -> Tensor:
        """The output `[..., D]` of what the queries have read, `[..., D]`."""
        return self.out_proj(self.norm(y))

    def why_not(self, use: Use) -> str | None:
        """Why the mixer cannot be used so; None if it can (see `Mixer.why_not`)."""
        if use in ("steps", "split") and (own := defined_anew(self, HGRN2Mixer)):
            # What is compiled or split is the computation of this class and no other.
            return f"a {type(self).__name__} has {', '.join(own)} of its own"
        if use == "steps" and self.scan is not scan_heads:
            return "the stack reads one stretch of longer sequences (hgrn.parallel)"
        if use == "steps" and self.short_conv is not None:
            return "the mixer has a ShortConvolution, of which there are no compiled steps"
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
        (memory,) = state
        projected = builder.zeros(len(x), 3 * self.dim)
        read = builder.zeros(*x.shape)
        normed = builder.zeros(*x.shape)
        builder.linear(self.in_proj, x, projected)
        builder.program.hgrn2_step(
            projected,
            lower_bound,
            memory,
            read,
            scale=self.scale,
            query_act=self.query_act,
            candidate_act=self.candidate_act,
        )
        builder.norm(self.norm, read, normed)
        builder.linear(self.out_proj, normed, total, add=total)

    def _check_state(self, state: tuple[Tensor, ...], parts: int, sequences: int) -> None:
        check_state_tuple(state)
        if len(state) != parts:
            raise ValueError(
                f"state must be a tuple of {parts} tensor(s), as this layer returns it, "
                f"got {len(state)}"
            )
        wanted = (sequences, self.heads, self.head_dim, self.head_dim)
        if state[0].shape != wanted:
            raise ValueError(
                f"state[0] must have shape {wanted} (sequences, heads, keys, values), got "
                f"{tuple(state[0].shape)}; a state belongs to the sequences and the layer that it "
                "came from; pass None to start anew"
            )
