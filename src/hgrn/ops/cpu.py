"""The CPU engine: what stands between the registered operators and the kernels.

Shape letters as in `hgrn.ops.library`. Every output is written once by the kernels; running states are float32 (float64
for float64 tensors).
"""

import math

import numba  # noqa: F401  (an absent numba must show here, where the choice of engine looks)
import numpy as np
import torch
from torch import Tensor

from . import cpu_gated, cpu_layer, cpu_linear, cpu_scan, threads
from .cpu_language import Kernel
from .reference import state_dtype

_HUGE = 4 << 20  # bytes from which NumPy asks for huge pages
_BLOCK = 1024  # channels of one task at most: their states and parameters stay near the core
_ROWS = 64  # rows of one task of a norm or unit: few enough for all threads, so many that partial sums cost little
_LINE = 16  # blocks of channels are multiples of this many, a cache line of float32
_ACTIVATIONS = {"identity": cpu_layer.IDENTITY, "silu": cpu_layer.SILU, "sigmoid": cpu_layer.SIGMOID}


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


def _empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor; large ones lie on huge pages where the system grants them.

    NumPy asks the kernel for them and PyTorch does not; on 4 KB pages, first writes cost several times as much.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _HUGE:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).view(shape)


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
    h = _empty(candidate.shape, candidate.dtype)
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
    grad_candidate, grad_forget = _empty(candidate.shape, candidate.dtype), _empty(forget.shape, forget.dtype)
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
    h = _empty(x.shape, x.dtype)
    scan.run(
        cpu_gated.gated_scan, **_strided("x", x), **_strided("log_f", log_f), cos=cos, sin=sin, state=state, h=h,
    )  # fmt: skip
    return h, state


def gated_scan_backward(
    grad_h, grad_final, log_f, theta, initial_state, h, cu_seqlens, mask, reverse
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, log_f, theta and initial_state; h is what the forward returned."""
    scan = _Scan(h, log_f.shape[-1], cu_seqlens, mask, reverse)
    _, cos, sin = scan.channel_values(None, theta)
    initial = scan.states(None) if initial_state is None else initial_state.contiguous()
    g = scan.states(grad_final.to(scan.accumulate))
    grad_h, h = _unit_last_stride(grad_h), h.contiguous()
    grad_x, grad_log_f = _empty(h.shape, h.dtype), _empty(log_f.shape, log_f.dtype)
    sums = torch.zeros(scan.sequences * scan.inner, scan.channels, dtype=scan.accumulate)
    scan.run(
        cpu_gated.gated_scan_backward, **_strided("log_f", log_f), cos=cos, sin=sin, initial=initial, h=h,
        **_strided("grad_h", grad_h), g=g, grad_x=grad_x, grad_log_f=grad_log_f, grad_theta=sums,
    )  # fmt: skip
    return grad_x, grad_log_f, sums.sum(0), g


def _rows(x: Tensor) -> Tensor:
    """`[..., C]` as rows `[R, C]` with unit last stride, copied only where the leading axes do not fold."""
    return _unit_last_stride(x.reshape(-1, x.shape[-1]))


def _run_rows(kernel: Kernel, activation: str, like: Tensor, rows: dict[str, Tensor], **arguments: Tensor | int) -> None:
    """Runs a kernel over the rows of `like` `[..., C]`; `rows` names tensors whose rows may have a stride of their own."""
    width = like.shape[-1]
    count = like.numel() // max(width, 1)
    strided = {}
    for name, x in rows.items():
        strided |= {name: x.data_ptr(), f"{name}_row": x.stride(0) * x.element_size()}
    addresses = {name: _address(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    block = kernel.block(-(-count // _ROWS), rows=count, block=_ROWS, width=width, **strided, **addresses)
    threads.run(kernel.address(_name(like.dtype), _ACTIVATIONS[activation]), block, like.numel())


def gated_norm(x, gate, weight, bias, eps, activation, gate_first) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and each row's mean and inverse deviation; see `hgrn.ops.layer.gated_norm`."""
    rows, wide, y = _rows(x), state_dtype(x.dtype), _empty(x.shape, x.dtype)
    mean, inverse = torch.empty(x.shape[:-1], dtype=wide), torch.empty(x.shape[:-1], dtype=wide)
    scratch = torch.empty(-(-rows.shape[0] // _ROWS), x.shape[-1], dtype=wide)
    _run_rows(
        cpu_layer.gated_norm, activation, rows, {"x": rows, "z": _rows(gate)}, gate_first=gate_first, scale=weight.contiguous(),
        shift=bias.contiguous(), eps=torch.tensor(eps, dtype=wide), y=y, mean=mean, inverse=inverse, scratch=scratch,
    )  # fmt: skip
    return y, mean, inverse


def gated_norm_backward(grad, x, gate, weight, bias, mean, inverse, activation, gate_first) -> tuple[Tensor, ...]:
    """Gradients of x, gate, weight and bias."""
    rows, wide = _rows(x), state_dtype(x.dtype)
    tasks = -(-rows.shape[0] // _ROWS)
    grad_x, grad_gate = _empty(x.shape, x.dtype), _empty(gate.shape, gate.dtype)
    sums = torch.zeros(2, tasks, x.shape[-1], dtype=wide)
    scratch = torch.empty(tasks, 4, x.shape[-1], dtype=wide)
    _run_rows(
        cpu_layer.gated_norm_backward, activation, rows, {"x": rows, "z": _rows(gate), "dy": _rows(grad)},
        gate_first=gate_first, scale=weight.contiguous(), shift=bias.contiguous(), mean=mean.contiguous(),
        inverse=inverse.contiguous(), dx=grad_x, dz=grad_gate, dscale=sums[0], dshift=sums[1], scratch=scratch,
    )  # fmt: skip
    grad_weight, grad_bias = sums.sum(1).unbind(0)
    return grad_x, grad_gate, grad_weight.clone(), grad_bias.clone()


def gated_unit(x, activation) -> Tensor:
    """See `hgrn.ops.layer.gated_unit`."""
    y = _empty(x.shape[:-1] + (x.shape[-1] // 2,), x.dtype)
    _run_rows(cpu_layer.gated_unit, activation, y, {"x": _rows(x)}, y=y)
    return y


def gated_unit_backward(grad, x, activation) -> Tensor:
    """The gradient of x."""
    grad_x = _empty(x.shape, x.dtype)
    _run_rows(cpu_layer.gated_unit_backward, activation, grad, {"x": _rows(x), "dy": _rows(grad)}, dx=grad_x)
    return grad_x


def _run_linear(kernel: Kernel, x: Tensor, weight: Tensor, **rest: Tensor | None) -> Tensor:
    out, width = weight.shape
    tensors = {"x": x, "weight": weight} | rest
    tensors = {name: None if tensor is None else tensor.contiguous() for name, tensor in tensors.items()}
    y = x.new_empty(x.shape[0], out)
    block = kernel.block(
        -(-out // _ROWS), rows=out, block=_ROWS, width=width, batch=x.shape[0], y=y.data_ptr(),
        **{name: _address(tensor) for name, tensor in tensors.items()},
    )  # fmt: skip
    threads.run(kernel.address(_name(x.dtype), 0), block, weight.numel())
    return y


def linear(x, weight, bias) -> Tensor:
    """`[R, I] -> [R, O]`; see `hgrn.ops.linear.linear`."""
    return _run_linear(cpu_linear.linear, x, weight, bias=bias)


def int8_linear(x, weight, scale, bias) -> Tensor:
    """`[R, I] -> [R, O]`; see `hgrn.ops.linear.int8_linear`."""
    return _run_linear(cpu_linear.int8_linear, x, weight, scale=scale, bias=bias)
