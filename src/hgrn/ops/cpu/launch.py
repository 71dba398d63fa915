"""The CPU engine: what stands between the registered operators and the kernels.

Shape letters as in `hgrn.ops.operators`. Every output is written once by the kernels; running states are float32 (float64
for float64 tensors).
"""

import math
from functools import cache

import numba  # noqa: F401  (an absent numba must show here, where the choice of engine looks)
import numpy as np
import torch
from torch import Tensor

from hgrn.ops import addresses
from hgrn.ops.cpu import layer, scan, threads
from hgrn.ops.cpu import linear as maps
from hgrn.ops.cpu.language import Kernel
from hgrn.ops.reference import state_dtype

_HUGE = 4 << 20  # bytes from which NumPy asks for huge pages
_BLOCK = 1024  # channels of one task at most: their states and parameters stay near the core
_ROWS = 64  # rows of one task of a norm or unit: few enough for all threads, so many that partial sums cost little
_LINE = 16  # blocks of channels are multiples of this many, a cache line of float32
_ACTIVATIONS = {
    "identity": layer.IDENTITY,
    "silu": layer.SILU,
    "sigmoid": layer.SIGMOID,
}


class Launch(addresses.HoldsAddresses):
    """A kernel and what it is to work on, for once or for many times.

    The block holds addresses; `tensors` are what lies there, so that they live as long as this.
    """

    def __init__(self, kernel: int, block: np.ndarray, work: int, tensors: tuple):
        self.kernel = kernel
        self.block = block
        self.work = work
        self.tensors = tensors

    def run(self) -> None:
        self.block[1] = 0
        threads.run(self.kernel, self.block, self.work)


class ScanPlan:
    """The sizes of one call, as the kernels take them, and how its tasks are cut."""

    def __init__(
        self,
        x: Tensor,
        channels: int,
        cu_seqlens: Tensor | None,
        mask: Tensor | None,
        reverse: bool,
    ):
        outer, self.steps, self.inner, width = x.shape
        self.channels, self.parts, self.reverse = channels, width // max(channels, 1), reverse
        self.bounds = None if cu_seqlens is None else cu_seqlens.to(torch.int64).contiguous()
        self.sequences = outer if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.mask = None if mask is None else mask.contiguous()
        self.dtype, self.accumulate, self.work = x.dtype, state_dtype(x.dtype), x.numel()
        rows = self.sequences * self.inner
        wanted = max(
            -(-threads.count() // max(rows, 1)), -(-channels // _BLOCK)
        )  # no thread is idle
        self.block = max(1, -(-channels // (wanted * _LINE))) * _LINE
        self.blocks = -(-channels // self.block)
        self.tasks = rows * self.blocks

    def states(self, given: Tensor | None) -> Tensor:
        """Running states `[N, I, C]` that start as `given`, or at zero."""
        if given is None:
            return torch.zeros(
                self.sequences,
                self.inner,
                self.parts * self.channels,
                dtype=self.accumulate,
                device="cpu",
            )
        return given.clone(memory_format=torch.contiguous_format)

    def complement(self, lower_bound: Tensor | None) -> Tensor:
        """`1 - lower_bound`, `[D]`."""
        return (
            torch.ones(self.channels, dtype=self.accumulate, device="cpu")
            if lower_bound is None
            else 1 - lower_bound
        )

    def turn(self, theta: Tensor | None) -> dict[str, Tensor | int]:
        """Cosine and sine of theta, `[D]`, from angles in float64; of a real state nobody reads them."""
        if theta is None:
            return {"cos": 0, "sin": 0}
        wide = theta.double()
        return {"cos": wide.cos().to(self.accumulate), "sin": wide.sin().to(self.accumulate)}

    def launch(
        self,
        kernel: Kernel,
        fused: int,
        strided: dict[str, Tensor],
        dense: dict[str, Tensor],
        **wide: Tensor | int,
    ) -> Launch:
        """The kernel over all tasks.

        Args:
            strided: tensors `[O, T, I, C]` in the dtype of x, read only, whose first three strides are the caller's.
            dense: contiguous tensors in that dtype.
            wide: contiguous tensors in the state's dtype, and numbers.
        """
        dtype = self.dtype
        strided = {name: _unit_last_stride(x) for name, x in strided.items()}
        fields = {name: addresses.address(x, dtype) for name, x in dense.items()}
        for name, x in strided.items():
            outer, time, inner, _ = x.stride()
            fields[name] = addresses.address_of_rows(x, dtype)
            fields[name + "_outer"], fields[name + "_time"], fields[name + "_inner"] = (
                outer,
                time,
                inner,
            )
        for name, x in wide.items():
            fields[name] = addresses.address(x, self.accumulate) if isinstance(x, Tensor) else x
        block = kernel.block(
            self.tasks,
            steps=self.steps,
            inner=self.inner,
            channels=self.channels,
            blocks=self.blocks,
            block=self.block,
            bounds=addresses.optional(self.bounds, torch.int64),
            reverse=self.reverse,
            mask=addresses.optional(self.mask, torch.bool),
            **fields,
        )
        tensors = (self.bounds, self.mask, *strided.values(), *dense.values(), *wide.values())
        return Launch(kernel.address(name_of(dtype), parts=self.parts, fused=fused), block, self.work, tensors)


@cache
def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor; large ones lie on huge pages where the system grants them.

    NumPy asks the kernel for them and PyTorch does not; on 4 KB pages, first writes cost several times as much.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _HUGE:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).view(shape)


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def hgru_scan(
    candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse
) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.reference.hgru_scan`."""
    plan = ScanPlan(candidate, forget.shape[-1], cu_seqlens, mask, reverse)
    state = plan.states(initial_state)
    h = _empty(candidate.shape, candidate.dtype)
    plan.launch(
        scan.scan,
        1,
        {"candidate": candidate, "forget": forget},
        {"h": h},
        complement=plan.complement(lower_bound),
        **plan.turn(theta),
        state=state,
        decay=0,
    ).run()
    return h, state


def hgru_carry(
    candidate, forget, lower_bound, theta, cu_seqlens, mask, reverse
) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.reference.hgru_carry`."""
    plan = ScanPlan(candidate, forget.shape[-1], cu_seqlens, mask, reverse)
    state = plan.states(None)
    decay = torch.ones(
        plan.sequences, plan.inner, plan.channels, dtype=plan.accumulate, device="cpu"
    )
    plan.launch(
        scan.scan,
        1,
        {"candidate": candidate, "forget": forget},
        {"h": torch.empty_like(state, dtype=plan.dtype)},
        complement=plan.complement(lower_bound),
        **plan.turn(theta),
        state=state,
        decay=decay,
    ).run()
    return decay, state


def hgru_scan_backward(
    grad_h,
    grad_final,
    candidate,
    forget,
    lower_bound,
    theta,
    initial_state,
    h,
    cu_seqlens,
    mask,
    reverse,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of candidate, forget, lower_bound, theta and initial_state; h is what the forward returned."""
    plan = ScanPlan(candidate, forget.shape[-1], cu_seqlens, mask, reverse)
    initial = plan.states(None) if initial_state is None else initial_state.contiguous()
    g = plan.states(grad_final.to(plan.accumulate))
    h = h.contiguous()
    grad_candidate = _empty(candidate.shape, candidate.dtype)
    grad_forget = _empty(forget.shape, forget.dtype)
    sums = torch.zeros(
        2, plan.sequences * plan.inner, plan.channels, dtype=plan.accumulate, device="cpu"
    )
    plan.launch(
        scan.scan_backward,
        1,
        {"candidate": candidate, "forget": forget, "grad_h": grad_h},
        {"h": h, "grad_candidate": grad_candidate, "grad_forget": grad_forget},
        complement=plan.complement(lower_bound),
        **plan.turn(theta),
        initial=initial,
        grad_state=g,
        grad_lower=sums[0],
        grad_theta=sums[1],
    ).run()
    grad_lower, grad_theta = sums.sum(1).unbind(0)
    return grad_candidate, grad_forget, grad_lower.clone(), grad_theta.clone(), g


def gated_scan(x, log_f, theta, initial_state, cu_seqlens, mask, reverse) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.reference.gated_scan`."""
    plan = ScanPlan(x, log_f.shape[-1], cu_seqlens, mask, reverse)
    state = plan.states(initial_state)
    h = _empty(x.shape, x.dtype)
    plan.launch(
        scan.scan,
        0,
        {"candidate": x, "forget": log_f},
        {"h": h},
        complement=0,
        **plan.turn(theta),
        state=state,
        decay=0,
    ).run()
    return h, state


def gated_scan_backward(
    grad_h, grad_final, log_f, theta, initial_state, h, cu_seqlens, mask, reverse
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, log_f, theta and initial_state; h is what the forward returned."""
    plan = ScanPlan(h, log_f.shape[-1], cu_seqlens, mask, reverse)
    initial = plan.states(None) if initial_state is None else initial_state.contiguous()
    g = plan.states(grad_final.to(plan.accumulate))
    h = h.contiguous()
    grad_x = _empty(h.shape, h.dtype)
    grad_log_f = _empty(log_f.shape, log_f.dtype)
    sums = torch.zeros(
        plan.sequences * plan.inner, plan.channels, dtype=plan.accumulate, device="cpu"
    )
    plan.launch(
        scan.scan_backward,
        0,
        {"candidate": h, "forget": log_f, "grad_h": grad_h},
        {"h": h, "grad_candidate": grad_x, "grad_forget": grad_log_f},
        complement=0,
        **plan.turn(theta),
        initial=initial,
        grad_state=g,
        grad_lower=0,
        grad_theta=sums,
    ).run()
    return grad_x, grad_log_f, sums.sum(0), g


def _rows(x: Tensor) -> Tensor:
    """`[..., C]` as rows `[R, C]` with unit last stride, copied only where the leading axes do not fold."""
    return _unit_last_stride(x.reshape(-1, x.shape[-1]))


def rows_launch(
    kernel: Kernel,
    activation: str,
    like: Tensor,
    rows: dict[str, Tensor],
    dense: dict[str, Tensor],
    **wide: Tensor | int,
) -> Launch:
    """A kernel over the rows of `like` `[..., C]`.

    Args:
        rows: tensors in the dtype of `like`, whose rows may have a stride of their own.
        dense: contiguous tensors in that dtype.
        wide: contiguous tensors in the state's dtype, and numbers.
    """
    width, dtype, accumulate = like.shape[-1], like.dtype, state_dtype(like.dtype)
    count = like.numel() // max(width, 1)
    fields = {name: addresses.address(x, dtype) for name, x in dense.items()}
    for name, x in rows.items():
        fields |= {
            name: addresses.address_of_rows(x, dtype),
            f"{name}_row": x.stride(0),
        }
    for name, x in wide.items():
        fields[name] = addresses.address(x, accumulate) if isinstance(x, Tensor) else x
    block = kernel.block(-(-count // _ROWS), rows=count, block=_ROWS, width=width, **fields)
    tensors = (*rows.values(), *dense.values(), *wide.values())
    return Launch(
        kernel.address(name_of(dtype), activation=_ACTIVATIONS[activation]), block, like.numel(), tensors
    )


def gated_norm(x, gate, weight, bias, eps, activation, gate_first) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and each row's mean and inverse deviation; see `hgrn.ops.layers.gated_norm`."""
    rows = _rows(x)
    y = _empty(x.shape, x.dtype)
    wide = dict(dtype=state_dtype(x.dtype), device="cpu")
    mean = torch.empty(x.shape[:-1], **wide)
    inverse = torch.empty(x.shape[:-1], **wide)
    scratch = torch.empty(-(-rows.shape[0] // _ROWS), x.shape[-1], **wide)
    rows_launch(
        layer.gated_norm,
        activation,
        rows,
        {"x": rows, "gate": _rows(gate)},
        {"y": y},
        gate_first=gate_first,
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        eps=torch.tensor(eps, **wide),
        mean=mean,
        inverse=inverse,
        gated=scratch,
    ).run()
    return y, mean, inverse


def gated_norm_backward(
    grad, x, gate, weight, bias, mean, inverse, activation, gate_first
) -> tuple[Tensor, ...]:
    """Gradients of x, gate, weight and bias."""
    rows = _rows(x)
    wide = dict(dtype=state_dtype(x.dtype), device="cpu")
    tasks = -(-rows.shape[0] // _ROWS)
    grad_x = _empty(x.shape, x.dtype)
    grad_gate = _empty(gate.shape, gate.dtype)
    sums = torch.zeros(2, tasks, x.shape[-1], **wide)
    scratch = torch.empty(4, tasks, x.shape[-1], **wide)
    rows_launch(
        layer.gated_norm_backward,
        activation,
        rows,
        {"x": rows, "gate": _rows(gate), "grad": _rows(grad)},
        {"grad_x": grad_x, "grad_gate": grad_gate},
        gate_first=gate_first,
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        mean=mean.contiguous(),
        inverse=inverse.contiguous(),
        grad_weight=sums[0],
        grad_bias=sums[1],
        slope=scratch[0],
        normed=scratch[1],
        act=scratch[2],
        act_slope=scratch[3],
    ).run()
    grad_weight, grad_bias = sums.sum(1).unbind(0)
    return grad_x, grad_gate, grad_weight.clone(), grad_bias.clone()


def gated_unit(x, activation) -> Tensor:
    """See `hgrn.ops.layers.gated_unit`."""
    y = _empty(x.shape[:-1] + (x.shape[-1] // 2,), x.dtype)
    rows_launch(layer.gated_unit, activation, y, {"x": _rows(x)}, {"y": y}).run()
    return y


def gated_unit_backward(grad, x, activation) -> Tensor:
    """The gradient of x."""
    grad_x = _empty(x.shape, x.dtype)
    rows = {"x": _rows(x), "grad": _rows(grad)}
    rows_launch(layer.gated_unit_backward, activation, grad, rows, {"grad_x": grad_x}).run()
    return grad_x


def linear_launch(
    kernel: Kernel,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    add: Tensor | None = None,
    scale: Tensor | None = None,
) -> Launch:
    """A linear map of the rows of x `[R, I]`, which have unit last stride, into y `[R, O]`; all other tensors are contiguous.

    All are of one dtype; where there is a scale, the weight is int8.
    """
    (out, width), dtype = weight.shape, x.dtype
    block = kernel.block(
        -(-out // _ROWS),
        rows=out,
        block=_ROWS,
        width=width,
        batch=x.shape[0],
        x=addresses.address_of_rows(x, dtype),
        x_row=x.stride(0),
        y=addresses.address(y, dtype),
        bias=addresses.optional(bias, dtype),
        weight=addresses.address(weight, dtype if scale is None else torch.int8),
        add=addresses.optional(add, dtype),
        scale=addresses.optional(scale, dtype),
    )
    return Launch(
        kernel.address(name_of(dtype)), block, weight.numel(), (x, weight, bias, y, add, scale)
    )


def _linear(
    kernel: Kernel, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None
) -> Tensor:
    y = x.new_empty(x.shape[0], weight.shape[0])
    bias, scale = (None if given is None else given.contiguous() for given in (bias, scale))
    linear_launch(kernel, _unit_last_stride(x), weight.contiguous(), bias, y, scale=scale).run()
    return y


def linear(x, weight, bias) -> Tensor:
    """`[R, I] -> [R, O]`; see `hgrn.ops.linear`."""
    return _linear(maps.linear, x, weight, bias)


def int8_linear(x, weight, scale, bias) -> Tensor:
    """`[R, I] -> [R, O]`; see `hgrn.ops.int8_linear`."""
    return _linear(maps.int8_linear, x, weight, bias, scale)
