"""The CPU engine: what stands between the registered operators and the kernels.

Shape letters as in `hgrn.ops.library`. Every output is written once by the kernels; running states are float32 (float64
for float64 tensors).
"""

import numba  # noqa: F401  (an absent numba must show here, where the choice of engine looks)
import numpy as np
import torch
from torch import Tensor

from . import cpu_scan, threads
from .cpu_language import Kernel
from .reference import state_dtype

_HUGE = 4 << 20  # bytes from which NumPy asks for huge pages
_BLOCK = 1024  # channels of one task at most: their states and parameters stay near the core
_LINE = 16  # blocks of channels are multiples of this many, a cache line of float32


class _Scan:
    """The sizes of one call, as the kernels take them, and how its tasks are cut."""

    def __init__(self, x: Tensor, channels: int, cu_seqlens: Tensor | None, mask: Tensor | None, reverse: bool):
        outer, self.steps, self.inner, width = x.shape
        self.channels, self.parts, self.reverse = channels, width // max(channels, 1), reverse
        self.bounds = None if cu_seqlens is None else cu_seqlens.to(torch.int64).contiguous()
        self.sequences = outer if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.mask = None if mask is None else mask.contiguous()
        self.dtype, self.accumulate, self.work = x.dtype, state_dtype(x.dtype), x.numel()
        rows = self.sequences * self.inner
        wanted = max(-(-torch.get_num_threads() // max(rows, 1)), -(-channels // _BLOCK))  # no thread is idle
        self.block = max(1, -(-channels // (wanted * _LINE))) * _LINE
        self.blocks = -(-channels // self.block)
        self.tasks = rows * self.blocks

    def states(self, given: Tensor | None) -> Tensor:
        """Running states `[N, I, C]` that start as `given`, or at zero."""
        if given is None:
            return torch.zeros(self.sequences, self.inner, self.parts * self.channels, dtype=self.accumulate)
        return given.clone(memory_format=torch.contiguous_format)

    def channel_values(self, lower_bound: Tensor | None, theta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """`1 - lower_bound`, and cosine and sine of theta (angles in float64); `[D]`, ones where nothing was given."""
        ones = torch.ones(self.channels, dtype=self.accumulate)
        if theta is None:
            return ones if lower_bound is None else 1 - lower_bound, ones, ones
        wide = theta.double()
        cos, sin = wide.cos().to(self.accumulate), wide.sin().to(self.accumulate)
        return ones if lower_bound is None else 1 - lower_bound, cos, sin

    def run(self, kernel: Kernel, **arguments: Tensor | int) -> None:
        """Runs the kernel over all tasks. Tensors that share a layout with others are given by `_strided`."""
        addresses = {name: _address(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}
        block = kernel.block(
            self.tasks, steps=self.steps, inner=self.inner, channels=self.channels, blocks=self.blocks, block=self.block,
            bounds=_address(self.bounds), reverse=self.reverse, mask=_address(self.mask), **addresses,
        )  # fmt: skip
        threads.run(kernel.address(_name(self.dtype), self.parts), block, self.work)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _empty(like: Tensor) -> Tensor:
    """A contiguous tensor with the shape and dtype of `like`; large ones lie on huge pages where the system grants them.

    NumPy asks the kernel for them and PyTorch does not; on 4 KB pages, first writes cost several times as much.
    """
    if like.nbytes < _HUGE:
        return torch.empty(like.shape, dtype=like.dtype)
    return torch.from_numpy(np.empty(like.nbytes, dtype=np.uint8)).view(like.dtype).view(like.shape)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _strided(name: str, x: Tensor) -> dict[str, int]:
    """Address and strides in bytes of `[O, T, I, C]` with unit last stride."""
    outer, time, inner = (stride * x.element_size() for stride in x.stride()[:3])
    return {name: x.data_ptr(), f"{name}_outer": outer, f"{name}_time": time, f"{name}_inner": inner}


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def hgru_scan(candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.reference.hgru_scan`."""
    scan = _Scan(candidate, forget.shape[-1], cu_seqlens, mask, reverse)
    state, (room, cos, sin) = scan.states(initial_state), scan.channel_values(lower_bound, theta)
    h = _empty(candidate)
    scan.run(
        cpu_scan.hgru_scan, **_strided("candidate", candidate), **_strided("forget", forget), room=room, cos=cos, sin=sin,
        state=state, h=h, decay=0,
    )  # fmt: skip
    return h, state


def hgru_carry(candidate, forget, lower_bound, theta, cu_seqlens, mask, reverse) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.reference.hgru_carry`."""
    scan = _Scan(candidate, forget.shape[-1], cu_seqlens, mask, reverse)
    state, (room, cos, sin) = scan.states(None), scan.channel_values(lower_bound, theta)
    decay = torch.ones(scan.sequences, scan.inner, scan.channels, dtype=scan.accumulate)
    scan.run(
        cpu_scan.hgru_scan, **_strided("candidate", candidate), **_strided("forget", forget), room=room, cos=cos, sin=sin,
        state=state, h=torch.empty_like(state, dtype=scan.dtype), decay=decay,
    )  # fmt: skip
    return decay, state


def hgru_scan_backward(
    grad_h, grad_final, candidate, forget, lower_bound, theta, initial_state, h, cu_seqlens, mask, reverse
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of candidate, forget, lower_bound, theta and initial_state; h is what the forward returned."""
    scan = _Scan(candidate, forget.shape[-1], cu_seqlens, mask, reverse)
    room, cos, sin = scan.channel_values(lower_bound, theta)
    initial = scan.states(None) if initial_state is None else initial_state.contiguous()
    g = scan.states(grad_final.to(scan.accumulate))
    grad_h, h = _unit_last_stride(grad_h), h.contiguous()
    grad_candidate, grad_forget = _empty(candidate), _empty(forget)
    sums = torch.zeros(2, scan.sequences * scan.inner, scan.channels, dtype=scan.accumulate)
    scan.run(
        cpu_scan.hgru_scan_backward, **_strided("candidate", candidate), **_strided("forget", forget), room=room, cos=cos,
        sin=sin, initial=initial, h=h, **_strided("grad_h", grad_h), g=g, grad_candidate=grad_candidate,
        grad_forget=grad_forget, grad_lower=sums[0], grad_theta=sums[1],
    )  # fmt: skip
    grad_lower, grad_theta = sums.sum(1).unbind(0)
    return grad_candidate, grad_forget, grad_lower.clone(), grad_theta.clone(), g


def gated_scan(x, log_f, theta, initial_state, cu_seqlens, mask, reverse) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.reference.gated_scan`."""
    scan = _Scan(x, log_f.shape[-1], cu_seqlens, mask, reverse)
    state, (_, cos, sin) = scan.states(initial_state), scan.channel_values(None, theta)
    h = _empty(x)
    scan.run(
        cpu_scan.gated_scan, **_strided("x", x), **_strided("log_f", log_f), cos=cos, sin=sin, state=state, h=h,
    )  # fmt: skip
    return h, state
