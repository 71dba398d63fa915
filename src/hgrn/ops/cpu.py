"""The CPU engine: what stands between the registered operators and the Numba kernels.

Shape letters as in `hgrn.ops.library`. Every output is written once by the kernels; running states are float32 (float64
for float64 tensors).
"""

import numba  # noqa: F401  (an absent numba must show here, where the choice of engine looks)
import numpy as np
import torch
from torch import Tensor

from . import cpu_kernels, pool
from .cpu_kernels import TOKENS
from .reference import state_dtype

_HUGE = 4 << 20  # bytes from which NumPy asks for huge pages
_BLOCK = 1024  # channels of one task at most: their states and parameters stay in the first-level cache


def _token(dtype: torch.dtype):
    return TOKENS[str(dtype).removeprefix("torch.")]


class _Call:
    """The sizes of one call, as the kernels take them, and how its tasks are cut."""

    def __init__(self, x: Tensor, channels: int, cu_seqlens: Tensor | None, reverse: bool):
        outer, self.steps, self.inner, width = x.shape
        self.channels, self.parts, self.reverse = channels, width // max(channels, 1), reverse
        self.bounds = None if cu_seqlens is None else cu_seqlens.to(torch.int64).contiguous()
        self.sequences = outer if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.accumulate = state_dtype(x.dtype)
        self.token, self.one = _token(x.dtype), _token(self.accumulate).dtype.type(1)
        self.work = x.numel()
        rows = self.sequences * self.inner
        threads = torch.get_num_threads()
        wanted = -(-threads // rows) if 0 < rows < threads else 1  # blocks of channels, so that no thread is idle
        self.block = max(16, min(_BLOCK, -(-channels // wanted)))
        self.blocks = -(-channels // self.block)
        self.tasks = rows * self.blocks

    def states(self, given: Tensor | None) -> Tensor:
        """Running states `[N, I, C]` that start as `given`, or at zero."""
        if given is None:
            return torch.zeros(self.sequences, self.inner, self.parts * self.channels, dtype=self.accumulate)
        return given.clone(memory_format=torch.contiguous_format)

    def channel(self, given: Tensor | None) -> Tensor:
        """A per-channel parameter `[D]`; zeros where none was given."""
        return torch.zeros(self.channels, dtype=self.accumulate) if given is None else given.contiguous()

    def angles(self, theta: Tensor | None) -> tuple[Tensor, Tensor]:
        if theta is None:
            nothing = torch.empty(0, dtype=self.accumulate)
            return nothing, nothing
        return torch.cos(theta.double()).to(self.accumulate), torch.sin(theta.double()).to(self.accumulate)

    def run(self, kernel, *arguments) -> None:
        """Runs the kernel over all tasks."""
        sizes = (self.inner, self.blocks, self.block, self.channels, self.steps, _address(self.bounds), self.reverse)
        head = (self.token, self.one, self.parts == 2)
        tail = (*sizes, *arguments)
        pool.run(lambda first, last: kernel(*head, first, last, *tail), self.tasks, self.work)


def _empty(like: Tensor) -> Tensor:
    """A contiguous tensor with the shape and dtype of `like`; large ones lie on huge pages where the system grants them.

    NumPy asks the kernel for them and PyTorch does not; on 4 KB pages, first writes cost several times as much.
    """
    if like.nbytes < _HUGE:
        return torch.empty(like.shape, dtype=like.dtype)
    return torch.from_numpy(np.empty(like.nbytes, dtype=np.uint8)).view(like.dtype).view(like.shape)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _strided(x: Tensor) -> tuple[int, tuple[int, int, int]]:
    return x.data_ptr(), x.stride()[:3]


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def hgru_scan(candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.reference.hgru_scan`."""
    call = _Call(candidate, forget.shape[-1], cu_seqlens, reverse)
    state, lower, (cos, sin) = call.states(initial_state), call.channel(lower_bound), call.angles(theta)
    h, mask = _empty(candidate), None if mask is None else mask.contiguous()
    call.run(
        cpu_kernels.hgru_scan, *_strided(candidate), *_strided(forget), _address(lower), _address(cos), _address(sin),
        _address(mask), _address(state), _address(h), 0,
    )  # fmt: skip
    return h, state


def hgru_carry(candidate, forget, lower_bound, theta, cu_seqlens, mask, reverse) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.reference.hgru_carry`."""
    call = _Call(candidate, forget.shape[-1], cu_seqlens, reverse)
    state, lower, (cos, sin) = call.states(None), call.channel(lower_bound), call.angles(theta)
    decay = torch.ones(call.sequences, call.inner, call.channels, dtype=call.accumulate)
    mask = None if mask is None else mask.contiguous()
    call.run(
        cpu_kernels.hgru_scan, *_strided(candidate), *_strided(forget), _address(lower), _address(cos), _address(sin),
        _address(mask), _address(state), 0, _address(decay),
    )  # fmt: skip
    return decay, state


def hgru_scan_backward(
    grad_h, grad_final, candidate, forget, lower_bound, theta, initial_state, h, cu_seqlens, mask, reverse
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of candidate, forget, lower_bound, theta and initial_state; h is what the forward returned."""
    call = _Call(candidate, forget.shape[-1], cu_seqlens, reverse)
    lower, (cos, sin) = call.channel(lower_bound), call.angles(theta)
    initial = call.states(None) if initial_state is None else initial_state.contiguous()
    g = call.states(grad_final.to(call.accumulate))
    grad_h, h, mask = _unit_last_stride(grad_h), h.contiguous(), None if mask is None else mask.contiguous()
    grad_candidate = _empty(candidate)
    grad_forget = _empty(forget)
    sums = torch.zeros(2, call.sequences * call.inner, call.channels, dtype=call.accumulate)
    call.run(
        cpu_kernels.hgru_scan_backward, *_strided(candidate), *_strided(forget), _address(lower), _address(cos),
        _address(sin), _address(mask), _address(initial), _address(h), *_strided(grad_h), _address(g),
        _address(grad_candidate), _address(grad_forget), _address(sums[0]), _address(sums[1]),
    )  # fmt: skip
    grad_lower, grad_theta = sums.sum(1).unbind(0)
    return grad_candidate, grad_forget, grad_lower.clone(), grad_theta.clone(), g


def gated_scan(x, log_f, theta, initial_state, cu_seqlens, mask, reverse) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.reference.gated_scan`."""
    call = _Call(x, log_f.shape[-1], cu_seqlens, reverse)
    state, (cos, sin) = call.states(initial_state), call.angles(theta)
    h, mask = _empty(x), None if mask is None else mask.contiguous()
    call.run(
        cpu_kernels.gated_scan, *_strided(x), *_strided(log_f), _address(cos), _address(sin), _address(mask),
        _address(state), _address(h),
    )  # fmt: skip
    return h, state
