"""The public functions: they check the caller's tensors, view them as `[O, T, I, C]`, and call the registered operators.

Every error about an argument is raised here, once, and names the argument, its value, the rule and the remedy.
"""

import math

import torch
from torch import Tensor

from hgrn.ops import operators, reference, transforms  # noqa: F401  (transforms registers what the operators are under torch.func)
from hgrn.ops.arguments import at_least_float32
from hgrn.ops.engines import choose
from hgrn.ops.operators import check_floating
from hgrn.ops.packing import check_boundaries


class Layout:
    """The axes of one call: how the caller's tensors become canonical, and results become the caller's again."""

    def __init__(self, x: Tensor, name: str, dim: int, cu_seqlens: Tensor | None):
        check_floating(x, name)
        if x.ndim < 2:
            raise ValueError(
                f"{name} needs at least a time and a channel axis, got shape {tuple(x.shape)}"
            )
        if not isinstance(dim, (int, torch.SymInt)):
            raise TypeError(f"dim must be the number of the time axis, an integer, got {dim!r}")
        if not -x.ndim <= dim < x.ndim:
            raise ValueError(f"dim must be an axis of {name} (shape {tuple(x.shape)}), got {dim}")
        self.name = name
        self.shape = x.shape
        self.dim = dim % x.ndim
        self.device = x.device
        self.dtype = x.dtype
        if self.dim == x.ndim - 1:
            raise ValueError(
                f"dim must be the time axis, got {dim}, the channel axis (last) of {name}; give the axis before it"
            )
        if cu_seqlens is None:
            self.states = (*x.shape[: self.dim], *x.shape[self.dim + 1 : -1])
            self.sequences = math.prod(x.shape[: self.dim])
        else:
            self._check_packing(cu_seqlens)
            self.states = (cu_seqlens.shape[0] - 1,)
            self.sequences = cu_seqlens.shape[0] - 1

    def _check_packing(self, cu_seqlens: Tensor) -> None:
        check_boundaries(cu_seqlens)
        if len(self.shape) != 3 or self.shape[0] != 1 or self.dim != 1:
            raise ValueError(
                f"packed sequences need {self.name} of shape [1, total, channels] and dim=1, "
                f"got shape {tuple(self.shape)} and dim={self.dim}; lay the sequences end to end along axis 1"
            )
        self.check_device(cu_seqlens, "cu_seqlens")

    @property
    def inner(self) -> int:
        return math.prod(self.shape[self.dim + 1 : -1])

    def check_device(self, tensor: Tensor, name: str) -> None:
        if tensor.device != self.device:
            raise ValueError(
                f"{name} is on {tensor.device} but {self.name} on {self.device}; move it there"
            )

    def canonical(self, x: Tensor) -> Tensor:
        """`[..., T, ..., C]` -> `[O, T, I, C]`, a view where the axes allow it."""
        outer = math.prod(self.shape[: self.dim])
        x = x.reshape(outer, self.shape[self.dim], self.inner, x.shape[-1])
        return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()

    def channels(self, x: Tensor | None, name: str, size: int) -> Tensor | None:
        """A per-channel parameter `[size]`, read in the state dtype."""
        if x is None:
            return None
        check_floating(x, name)
        self.check_device(x, name)
        if x.shape != (size,):
            raise ValueError(
                f"{name} must have one value per channel, shape ({size},), got {tuple(x.shape)}"
            )
        return x.to(at_least_float32(self.dtype)).contiguous()

    def initial(self, x: Tensor | None) -> Tensor | None:
        """The initial state as `[N, I, C]` in the state dtype."""
        if x is None:
            return None
        check_floating(x, "initial_state")
        self.check_device(x, "initial_state")
        expected = (*self.states, self.shape[-1])
        if x.shape != expected:
            raise ValueError(
                f"initial_state must have shape {expected} ({self.name}'s without its time axis; one row a sequence if "
                f"packed), got {tuple(x.shape)}"
            )
        return (
            x.reshape(self.sequences, self.inner, x.shape[-1])
            .to(at_least_float32(self.dtype))
            .contiguous()
        )

    def mask(self, x: Tensor | None) -> Tensor | None:
        """The mask as bool `[O, T, I]`."""
        if x is None:
            return None
        if not isinstance(x, Tensor):
            raise TypeError(
                f"mask must be a bool tensor (True where there is input), got {type(x).__name__}; torch.as_tensor(mask) makes one"
            )
        self.check_device(x, "mask")
        if x.dtype != torch.bool:
            raise TypeError(
                f"mask must be a bool tensor (True where there is input), got {x.dtype}; use mask.bool()"
            )
        if x.shape != self.shape[:-1]:
            raise ValueError(
                f"mask must have the shape of {self.name} without its channel axis, {tuple(self.shape[:-1])}, "
                f"got {tuple(x.shape)}; expand it over the missing axes"
            )
        return (
            x.reshape(-1, self.shape[self.dim], self.inner)
            if x.numel()
            else x.reshape(math.prod(self.shape[: self.dim]), self.shape[self.dim], self.inner)
        )

    def state(self, x: Tensor) -> Tensor:
        """A state `[N, I, *]` in the caller's shape."""
        return x.reshape(*self.states, x.shape[-1])


def check_gate(gate: Tensor, name: str, layout: Layout, theta: Tensor | None) -> int:
    """Checks the gate against the input it belongs to; returns the number of channels D."""
    check_floating(gate, name)
    layout.check_device(gate, name)
    if gate.dtype != layout.dtype:
        raise TypeError(f"{name} must have {layout.name}'s dtype {layout.dtype}, got {gate.dtype}")
    width = layout.shape[-1]
    parts = 1 if theta is None else 2
    if width % parts or gate.shape != (*layout.shape[:-1], width // parts):
        wanted = (*layout.shape[:-1], width // parts)
        hint = (
            "a complex state needs theta"
            if theta is None and gate.shape[-1] * 2 == width
            else (
                f"{layout.name} holds [Re | Im] because theta is given"
                if theta is not None
                else "one gate per channel"
            )
        )
        raise ValueError(f"{name} must have shape {tuple(wanted)}, got {tuple(gate.shape)}; {hint}")
    return width // parts


def hgru_scan(
    candidate: Tensor,
    forget: Tensor,
    lower_bound: Tensor | None = None,
    theta: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    dim: int = 1,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The hierarchically gated recurrence, from pre-activation projections to hidden states in one pass.

    Per channel: `lambda_t = gamma + (1 - gamma) sigmoid(forget_t)` and
    `h_t = lambda_t exp(i theta) h_{t-1} + (1 - lambda_t) SiLU(candidate_t)` (HGRN paper, section 3).

    Args:
        candidate: `[..., T, ..., C]` with T at `dim`; C = D for a real state, C = 2D laid out `[Re | Im]` with theta.
            All other leading axes are independent sequences.
        forget: the same with D channels; same dtype as candidate.
        lower_bound: gamma, `[D]` in [0, 1]; None is 0.
        theta: angles in radians, `[D]`; makes the state complex.
        initial_state: candidate's shape without the time axis (`[N, C]` if packed); None is zeros. With `reverse` it
            enters behind the last position.
        dim: the time axis.
        reverse: scan from the last position to the first.
        cu_seqlens: boundaries `[N + 1]` of N sequences packed into candidate `[1, total, C]`, int32 or int64.
        mask: bool, candidate's shape without the channel axis; where False, `h_t = h_{t-1}` exactly.
        engine: "numba" (CPU), "triton" (CUDA) or "reference"; None takes the fastest that works here.

    Returns:
        h like candidate, and the final state like initial_state, in float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: an argument breaks the rules above; the message names it.
    """
    layout = Layout(candidate, "candidate", dim, cu_seqlens)
    size = check_gate(forget, "forget", layout, theta)
    tensors = (
        layout.canonical(candidate),
        layout.canonical(forget),
        layout.channels(lower_bound, "lower_bound", size),
        layout.channels(theta, "theta", size),
        layout.initial(initial_state),
        cu_seqlens,
        layout.mask(mask),
    )
    engine = choose(engine, candidate.device.type)
    h, final = operators.hgru_scan(*tensors, reverse, engine)
    return h.reshape(candidate.shape), layout.state(final)


def hgru_carry(
    candidate: Tensor,
    forget: Tensor,
    lower_bound: Tensor | None = None,
    theta: Tensor | None = None,
    *,
    dim: int = 1,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """What a stretch of sequence does to any state that enters it; `hgru_scan`'s arguments, no states written.

    Returns:
        decay, the product of the real gates (a state's shape with D channels), and end_state, the state that `hgru_scan`
        would end in from zero. A state s that enters leaves as `decay * exp(i n theta) * s + end_state` after n positions
        that are not masked, so stretches of one sequence can be worked on apart and joined exactly.

    Raises:
        ValueError, TypeError: as `hgru_scan`.
    """
    layout = Layout(candidate, "candidate", dim, cu_seqlens)
    size = check_gate(forget, "forget", layout, theta)
    tensors = (
        layout.canonical(candidate),
        layout.canonical(forget),
        layout.channels(lower_bound, "lower_bound", size),
        layout.channels(theta, "theta", size),
        cu_seqlens,
        layout.mask(mask),
    )
    engine = choose(engine, candidate.device.type)
    decay, end_state = operators.hgru_carry(*tensors, reverse, engine)
    return layout.state(decay), layout.state(end_state)


def gated_scan(
    x: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None = None,
    *,
    theta: Tensor | None = None,
    dim: int = 1,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The gated linear recurrence from explicit log gates: `h_t = exp(log_f_t + i theta) h_{t-1} + x_t`.

    For ablations and other models; arguments as `hgru_scan`, with x in candidate's place and log_f `<= 0` (not checked)
    in forget's. Gradients of any order.

    Returns:
        h like x, and the final state in float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: as `hgru_scan`.
    """
    layout = Layout(x, "x", dim, cu_seqlens)
    size = check_gate(log_f, "log_f", layout, theta)
    if mask is not None:
        layout.mask(mask)  # checked before it is used
        x = torch.where(mask.unsqueeze(-1), x, 0)
    tensors = (
        layout.canonical(x),
        layout.canonical(log_f),
        layout.channels(theta, "theta", size),
        layout.initial(initial_state),
        cu_seqlens,
        layout.mask(mask),
    )
    engine = choose(engine, x.device.type)
    h, final = operators.gated_scan(*tensors, reverse, engine)
    return h.reshape(x.shape), layout.state(final)
