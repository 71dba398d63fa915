"""The arguments of a scan: how they are checked, and the one record that every engine takes.

Shape letters, here and in all of `hgrn.ops`: O outer, T time, I inner, D channels, C = D (real
state) or 2D (complex state, laid out `[Re | Im]`), N sequences (N = O unless packed).

`[O, T, I, C]` is the canonical layout. Axes before the time axis are folded into O, axes between
time and channels into I. So rows and columns of a grid are both read where they are: neither is
transposed in memory.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hgrn.ops.packing import check_boundaries, check_cu_seqlens

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precisions; float32 and float64 as they are. States and sums have it."""
    if dtype is torch.float32 or dtype is torch.float64:  # faster than to ask PyTorch
        return dtype
    return torch.promote_types(dtype, torch.float32)


class Scan(NamedTuple):
    """One scan in the canonical layout: what an engine is given.

    x: `[O, T, I, C]`: the candidate before SiLU, or for `gated_scan` what is added to the state.
    gate: `[O, T, I, D]` in x's dtype: the forget gate before the sigmoid, or for `gated_scan` the
        logarithm of the gate.
    lower_bound: `[D]`; None is 0. Always None for `gated_scan`.
    theta: angles `[D]`; None if the state is real.
    initial_state: `[N, I, C]`; None is zeros. Always None for `hgru_carry`.
    cu_seqlens: boundaries `[N + 1]` of packed sequences, or None.
    mask: bool `[O, T, I]`, or None.
    reverse: from the last position to the first.

    lower_bound, theta and initial_state are in the state's dtype, `at_least_float32` of x's.
    """

    x: Tensor
    gate: Tensor
    lower_bound: Tensor | None
    theta: Tensor | None
    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    mask: Tensor | None
    reverse: bool

    @property
    def channels(self) -> int:
        """D."""
        return self.gate.shape[-1]

    @property
    def sequences(self) -> int:
        """N."""
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    def check_values(self) -> None:
        """Raises ValueError for boundaries or lower bounds out of range.

        Only on a CPU: to read values of a GPU would be to wait for it.
        """
        if self.cu_seqlens is not None:
            check_cu_seqlens(self.cu_seqlens, self.x.shape[1])
        if self.lower_bound is not None:
            check_bound(self.lower_bound)


def check_bound(lower_bound: Tensor) -> None:
    """Raises ValueError unless all values lie in [0, 1]; reads them on a CPU only."""
    if lower_bound.device.type != "cpu" or not lower_bound.numel():
        return
    low, high = torch.aminmax(lower_bound)
    if low < 0 or high > 1:
        raise ValueError(
            f"lower_bound must lie in [0, 1], got values from {low:.4g} to {high:.4g}; "
            "hgrn.modules.LowerBounds turns free parameters into bounds"
        )


def check_floating(x: Tensor, name: str) -> None:
    """Raises TypeError unless x is a tensor of floats."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(x).__name__}; "
            f"torch.as_tensor({name}) makes one of numbers"
        )
    if x.dtype not in _FLOATS:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}; "
            "convert it, for example with .float()"
        )


class Layout:
    """The axes of one call: it makes a caller's tensors canonical, and a state the caller's again.

    Args:
        x: `[..., T, ..., C]`, the tensor that has all axes.
        name: what the caller calls it, for errors.
        dim: the time axis.
        cu_seqlens: boundaries, if sequences are packed.

    Raises:
        ValueError, TypeError: x has no such axis, or sequences are packed in another shape.
    """

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
        self.x = x
        self.shape = x.shape
        self.dtype = x.dtype
        self.device = x.device
        self.name = name
        self.dim = dim % x.ndim
        self.cu_seqlens = cu_seqlens
        if self.dim == x.ndim - 1:
            raise ValueError(
                f"dim must be the time axis, got {dim}, the channel axis (last) of {name}; "
                "give the axis before it"
            )
        self.outer = math.prod(x.shape[: self.dim])
        self.steps = x.shape[self.dim]
        self.inner = math.prod(x.shape[self.dim + 1 : -1])
        # The axes of a state before its channels, as the caller sees them; and how many rows it
        # has.
        self.states = (*x.shape[: self.dim], *x.shape[self.dim + 1 : -1])
        self.sequences = self.outer
        if cu_seqlens is not None:
            self._check_packing(cu_seqlens)
            self.states = (cu_seqlens.shape[0] - 1,)
            self.sequences = cu_seqlens.shape[0] - 1

    def _check_packing(self, cu_seqlens: Tensor) -> None:
        check_boundaries(cu_seqlens)
        shape = tuple(self.shape)
        if len(shape) != 3 or shape[0] != 1 or self.dim != 1:
            raise ValueError(
                f"packed sequences need {self.name} of shape [1, total, channels] and dim=1, "
                f"got shape {shape} and dim={self.dim}; lay the sequences end to end along axis 1"
            )
        self._check_device(cu_seqlens, "cu_seqlens")

    def _check_device(self, tensor: Tensor, name: str) -> None:
        if tensor.device != self.device:
            raise ValueError(
                f"{name} is on {tensor.device} but {self.name} on {self.device}; move it there"
            )

    def scan(
        self,
        gate: Tensor,
        gate_name: str,
        lower_bound: Tensor | None,
        theta: Tensor | None,
        initial_state: Tensor | None,
        mask: Tensor | None,
        reverse: bool,
    ) -> Scan:
        """Checks the other arguments and makes all of them canonical.

        Raises:
            ValueError, TypeError: an argument has another shape, dtype or device.
        """
        size = self._check_gate(gate, gate_name, theta)
        return Scan(
            self._canonical(self.x),
            self._canonical(gate),
            self._per_channel(lower_bound, "lower_bound", size),
            self._per_channel(theta, "theta", size),
            self._initial_state(initial_state),
            self.cu_seqlens,
            self._mask(mask),
            reverse,
        )

    def caller_state(self, state: Tensor) -> Tensor:
        """A state `[N, I, *]` in the caller's shape."""
        return state.reshape(*self.states, state.shape[-1])

    def _check_gate(self, gate: Tensor, name: str, theta: Tensor | None) -> int:
        """Checks the gate against x; returns D."""
        check_floating(gate, name)
        self._check_device(gate, name)
        if gate.dtype != self.dtype:
            raise TypeError(f"{name} must have {self.name}'s dtype {self.dtype}, got {gate.dtype}")
        width = self.shape[-1]
        parts = 1 if theta is None else 2
        wanted = (*self.shape[:-1], width // parts)
        if width % parts == 0 and gate.shape == wanted:
            return width // parts
        if theta is not None:
            hint = f"{self.name} holds [Re | Im] because theta is given"
        elif gate.shape[-1] * 2 == width:
            hint = "a complex state needs theta"
        else:
            hint = "one gate per channel"
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(gate.shape)}; {hint}")

    def _canonical(self, x: Tensor) -> Tensor:
        """`[..., T, ..., C]` -> `[O, T, I, C]`, a view where the axes allow it."""
        x = x.reshape(self.outer, self.steps, self.inner, x.shape[-1])
        return unit_last_stride(x)

    def _per_channel(self, x: Tensor | None, name: str, size: int) -> Tensor | None:
        """A parameter `[D]`, in the state's dtype."""
        if x is None:
            return None
        check_floating(x, name)
        self._check_device(x, name)
        if x.shape != (size,):
            raise ValueError(
                f"{name} must have one value per channel, shape ({size},), got {tuple(x.shape)}"
            )
        return x.to(at_least_float32(self.dtype)).contiguous()

    def _initial_state(self, state: Tensor | None) -> Tensor | None:
        """`[N, I, C]` in the state's dtype."""
        if state is None:
            return None
        check_floating(state, "initial_state")
        self._check_device(state, "initial_state")
        expected = (*self.states, self.shape[-1])
        if state.shape != expected:
            raise ValueError(
                f"initial_state must have shape {expected} ({self.name}'s without its time axis; "
                f"one row a sequence if packed), got {tuple(state.shape)}"
            )
        state = state.reshape(self.sequences, self.inner, state.shape[-1])
        return state.to(at_least_float32(self.dtype)).contiguous()

    def _mask(self, mask: Tensor | None) -> Tensor | None:
        """`[O, T, I]`."""
        if mask is None:
            return None
        rule = "mask must be a bool tensor (True where there is input)"
        if not isinstance(mask, Tensor):
            raise TypeError(f"{rule}, got {type(mask).__name__}; torch.as_tensor(mask) makes one")
        self._check_device(mask, "mask")
        if mask.dtype != torch.bool:
            raise TypeError(f"{rule}, got {mask.dtype}; use mask.bool()")
        expected = self.shape[:-1]
        if mask.shape != expected:
            raise ValueError(
                f"mask must have the shape of {self.name} without its channel axis, "
                f"{tuple(expected)}, got {tuple(mask.shape)}; expand it over the missing axes"
            )
        return mask.reshape(self.outer, self.steps, self.inner)


def unit_last_stride(x: Tensor) -> Tensor:
    """x with neighbouring channels next to each other in memory, copied only where they are not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
