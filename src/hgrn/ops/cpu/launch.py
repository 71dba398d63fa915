"""The CPU engine: it allocates outputs and runs the kernels (see `hgrn.ops.engines.Engine`).

Shape letters as in `hgrn.ops.arguments`. Kernels write every output once. Running states are
float32, or float64 for float64 tensors.
"""

import math

import numpy as np
import torch
from torch import Tensor

from hgrn.ops.arguments import Scan, at_least_float32
from hgrn.ops.cpu import layer
from hgrn.ops.cpu import linear as maps
from hgrn.ops.cpu.gla import gla_backward, gla_forward
from hgrn.ops.cpu.gla_plans import gla_launch, inputs_launch
from hgrn.ops.cpu.hgrn2 import hgrn2_inputs as inputs_kernel
from hgrn.ops.cpu.hgrn2 import hgrn2_inputs_backward as inputs_backward_kernel
from hgrn.ops.cpu.language import Kernel
from hgrn.ops.cpu.plans import (
    ROWS,
    ScanPlan,
    linear_launch,
    rows_launch,
    unit_last_stride,
)
from hgrn.ops.cpu.scan import scan_backward, scan_forward
from hgrn.ops.gla_arguments import GlaScan

_HUGE = 4 << 20  # bytes from which NumPy asks for huge pages


def _empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor. A large one lies on huge pages, where the system grants them.

    NumPy asks the system for them and PyTorch does not. On pages of 4 KB the first write to each
    page makes an output several times as expensive.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _HUGE:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).view(shape)


# --------------------------------------------------------------------------------------------------
# Scans


def hgru_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.hgru_scan`."""
    return _forward(ScanPlan(scan, fused=True))


def gated_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.gated_scan`."""
    return _forward(ScanPlan(scan, fused=False))


def _forward(plan: ScanPlan) -> tuple[Tensor, Tensor]:
    state = plan.states(plan.scan.initial_state)
    h = _empty(plan.scan.x.shape, plan.dtype)
    plan.launch(scan_forward, {"h": h}, state=state, decay=0).run()
    return h, state


def hgru_carry(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.hgru_carry`."""
    plan = ScanPlan(scan, fused=True)
    state = plan.states(None)
    decay = torch.ones(
        scan.sequences, plan.inner, plan.channels, dtype=plan.accumulate, device="cpu"
    )
    # Nobody wants the states in between, so every step writes to the same row of h.
    h = torch.empty_like(state, dtype=plan.dtype)
    plan.launch(scan_forward, {"h": h}, state=state, decay=decay).run()
    return decay, state


def hgru_scan_backward(
    scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.hgru_scan_backward`."""
    plan = ScanPlan(scan, fused=True)
    grad_x, grad_gate, (grad_theta, grad_lower), grad_initial = _backward(
        plan, h, grad_h, grad_final
    )
    return grad_x, grad_gate, grad_lower, grad_theta, grad_initial


def gated_scan_backward(
    scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.gated_scan_backward`."""
    plan = ScanPlan(scan, fused=False)
    grad_x, grad_gate, (grad_theta,), grad_initial = _backward(plan, h, grad_h, grad_final)
    return grad_x, grad_gate, grad_theta, grad_initial


def _backward(
    plan: ScanPlan, h: Tensor, grad_h: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Gradients of x and the gate, of theta and (if fused) lower_bound, and of initial_state."""
    scan = plan.scan
    initial = scan.initial_state
    grad_state = plan.states(grad_final.to(plan.accumulate))
    grad_x = _empty(scan.x.shape, plan.dtype)
    grad_gate = _empty(scan.gate.shape, plan.dtype)
    # The kernel sums over time; over sequences and inner indices we sum here, so that no two tasks
    # write to the same memory.
    sums = [
        torch.zeros(plan.rows, plan.channels, dtype=plan.accumulate, device="cpu")
        for _ in range(1 + plan.fused)
    ]
    plan.launch(
        scan_backward,
        {"h": h.contiguous(), "grad_x": grad_x, "grad_gate": grad_gate},
        {"grad_h": grad_h},
        initial=plan.states(None) if initial is None else initial.contiguous(),
        grad_state=grad_state,
        grad_theta=sums[0],
        grad_lower=sums[1] if plan.fused else 0,
    ).run()
    return grad_x, grad_gate, [sum_over_time.sum(0) for sum_over_time in sums], grad_state


def gla_scan(scan: GlaScan) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.gla_scan`."""
    state = _running(scan, scan.initial_state)
    y = _empty(scan.v.shape, scan.v.dtype)
    gla_launch(gla_forward, scan, {"y": y}, state=state).run()
    return y, state


def gla_scan_backward(
    scan: GlaScan, grad_y: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.gla_scan_backward`."""
    # The kernel has states `[N, H, V, K]`.
    initial = scan.initial_state
    grad_state = _running(scan, grad_final).mT.contiguous()
    grads = {
        "grad_query": _empty(scan.q.shape, scan.q.dtype),
        "grad_key": _empty(scan.k.shape, scan.k.dtype),
        "grad_value": _empty(scan.v.shape, scan.v.dtype),
    }
    grad_log_f = _empty(scan.log_f.shape, scan.log_f.dtype)
    gla_launch(
        gla_backward,
        scan,
        grads,
        {"grad_y": grad_y},
        initial=0 if initial is None else initial.mT.contiguous(),
        grad_state=grad_state,
        grad_log_f=grad_log_f,
    ).run()
    grad_initial = grad_state.mT.contiguous()
    return grads["grad_query"], grads["grad_key"], grads["grad_value"], grad_log_f, grad_initial


def hgrn2_inputs(
    projected: Tensor, lower_bound: Tensor | None, scale: float, query_act: str, candidate_act: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.hgrn2`."""
    rows = _rows(projected)
    shape = torch.Size((*projected.shape[:-1], projected.shape[-1] // 3))
    states = _of_gates(rows, lower_bound, scale)
    q, k, v = (_empty(shape, rows.dtype) for _ in range(3))
    log_f = _empty(shape, states["scale"].dtype)
    dense = {"q": q, "k": k, "v": v}
    inputs_launch(
        inputs_kernel, {"projected": rows}, dense, query_act, candidate_act, log_f=log_f, **states
    ).run()
    return q, k, v, log_f


def hgrn2_inputs_backward(
    grads: tuple[Tensor, Tensor, Tensor, Tensor],
    projected: Tensor,
    lower_bound: Tensor | None,
    scale: float,
    query_act: str,
    candidate_act: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of projected and lower_bound `[D]`; see `hgrn.ops.hgrn2`."""
    rows = _rows(projected)
    states = _of_gates(rows, lower_bound, scale)
    names = ("grad_q", "grad_k", "grad_v")
    given = {name: _rows(grad) for name, grad in zip(names, grads)}
    grad_projected = _empty(projected.shape, projected.dtype)
    grad_lower = _row_for_each_task(rows[:, : rows.shape[1] // 3])
    smallest = torch.finfo(states["scale"].dtype).tiny
    inputs_launch(
        inputs_backward_kernel,
        {"projected": rows, **given},
        {"grad_projected": grad_projected},
        query_act,
        candidate_act,
        grad_log_f=grads[3].contiguous(),
        grad_lower=grad_lower,
        smallest=torch.full_like(states["scale"], smallest),
        **states,
    ).run()
    return grad_projected, grad_lower.sum(0)


def _of_gates(rows: Tensor, lower_bound: Tensor | None, scale: float) -> dict[str, Tensor]:
    """What the kernels need of the bound and the scale, in the dtype of states."""
    wide = at_least_float32(rows.dtype)
    ones = torch.ones(rows.shape[1] // 3, dtype=wide, device="cpu")
    complement = ones if lower_bound is None else ones - lower_bound
    return {"complement": complement, "scale": torch.tensor(scale, dtype=wide, device="cpu")}


def _running(scan: GlaScan, given: Tensor | None) -> Tensor:
    """Running states `[N, H, K, V]`: a copy of `given`, or zeros."""
    if given is not None:
        return given.clone(memory_format=torch.contiguous_format)
    return torch.zeros(scan.state_shape, dtype=scan.log_f.dtype, device="cpu")


# --------------------------------------------------------------------------------------------------
# Norms and units


def _rows(x: Tensor) -> Tensor:
    """`[..., C]` as rows `[R, C]`, without a copy where the leading axes fold into one."""
    return unit_last_stride(x.reshape(-1, x.shape[-1]))


def gated_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    activation: str,
    gate_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hgrn.ops.layers.gated_norm`.

    Returns:
        The result `[..., C]`, and the mean and the inverse deviation of each row `[...]`.
    """
    rows = _rows(x)
    accumulate = at_least_float32(x.dtype)
    y = _empty(x.shape, x.dtype)
    mean = torch.empty(x.shape[:-1], dtype=accumulate, device="cpu")
    inverse = torch.empty_like(mean)
    rows_launch(
        layer.gated_norm,
        rows,
        {"x": rows, "gate": _rows(gate)},
        {"y": y},
        activation=activation,
        gate_first=gate_first,
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        eps=torch.tensor(eps, dtype=accumulate, device="cpu"),
        mean=mean,
        inverse=inverse,
        gated=_row_for_each_task(rows),
    ).run()
    return y, mean, inverse


def _row_for_each_task(rows: Tensor, *leading: int) -> Tensor:
    """Memory for the tasks over rows `[R, C]`: `[*leading, tasks, C]` in the dtype of states."""
    tasks = -(-rows.shape[0] // ROWS)
    shape = (*leading, tasks, rows.shape[1])
    return torch.zeros(shape, dtype=at_least_float32(rows.dtype), device="cpu")


def gated_norm_backward(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inverse: Tensor,
    activation: str,
    gate_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gate, weight and bias."""
    rows = _rows(x)
    grad_x = _empty(x.shape, x.dtype)
    grad_gate = _empty(gate.shape, gate.dtype)
    sums = _row_for_each_task(rows, 2)
    between = _row_for_each_task(rows, 4)
    rows_launch(
        layer.gated_norm_backward,
        rows,
        {"x": rows, "gate": _rows(gate), "grad": _rows(grad)},
        {"grad_x": grad_x, "grad_gate": grad_gate},
        activation=activation,
        gate_first=gate_first,
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        mean=mean.contiguous(),
        inverse=inverse.contiguous(),
        grad_weight=sums[0],
        grad_bias=sums[1],
        slope=between[0],
        normed=between[1],
        act=between[2],
        act_slope=between[3],
    ).run()
    grad_weight, grad_bias = sums.sum(1).unbind(0)
    return grad_x, grad_gate, grad_weight.clone(), grad_bias.clone()


def gated_unit(x: Tensor, activation: str) -> Tensor:
    """See `hgrn.ops.layers.gated_unit`."""
    y = _empty(torch.Size((*x.shape[:-1], x.shape[-1] // 2)), x.dtype)
    rows_launch(layer.gated_unit, y, {"x": _rows(x)}, {"y": y}, activation=activation).run()
    return y


def gated_unit_backward(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    """The gradient of x."""
    grad_x = _empty(x.shape, x.dtype)
    rows_launch(
        layer.gated_unit_backward,
        grad,
        {"x": _rows(x), "grad": _rows(grad)},
        {"grad_x": grad_x},
        activation=activation,
    ).run()
    return grad_x


# --------------------------------------------------------------------------------------------------
# Linear maps


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[R, I] -> [R, O]`; see `hgrn.ops.linear`."""
    return _linear(maps.linear, x, weight, bias)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`[R, I] -> [R, O]`; see `hgrn.ops.int8_linear`."""
    return _linear(maps.int8_linear, x, weight, bias, scale.contiguous())


def _linear(
    kernel: Kernel, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None
) -> Tensor:
    y = x.new_empty(x.shape[0], weight.shape[0])
    bias = None if bias is None else bias.contiguous()
    linear_launch(kernel, unit_last_stride(x), weight.contiguous(), bias, y, scale=scale).run()
    return y
