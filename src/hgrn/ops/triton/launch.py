"""The GPU engine: what stands between the registered operators and the Triton kernels.

The functions are those of `hgrn.ops.engines.Engine`; shape letters as in `hgrn.ops.arguments`.
Here S is the number of parts of time, and rows are sequences times inner indices.
"""

import math
from typing import Any

import torch
from torch import Tensor

from hgrn.ops.arguments import Scan, at_least_float32
from hgrn.ops.triton import backward, forward
from hgrn.ops.triton.plan import ScanPlan

_NO_CARRY = {"decay": None, "turns": None}


def hgru_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.hgru_scan`."""
    return _forward(scan, _complement(scan))


def gated_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.gated_scan`."""
    return _forward(scan, None)


def hgru_scan_backward(
    scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.hgru_scan_backward`."""
    return _backward(scan, _complement(scan), h, grad_h, grad_final)


def gated_scan_backward(
    scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.gated_scan_backward`."""
    dx, dgate, _, dtheta, dinitial = _backward(scan, None, h, grad_h, grad_final)
    return dx, dgate, dtheta, dinitial


def hgru_carry(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.hgru_carry`."""
    plan = ScanPlan(scan)
    final = plan.empty(plan.parts, plan.rows, plan.width)
    carry = plan.carry_outputs()
    plan.launch(
        forward.scan,
        **_inputs(scan, _complement(scan)),
        initial=torch.zeros_like(final),
        h=scan.x,  # not written
        final=final,
        **carry,
        WRITE=False,
        CARRY=True,
    )
    decay = carry["decay"]
    end = final[0]
    if plan.parts > 1:
        # The chain gives what enters the last part. What leaves it is one more step.
        state = plan.chained(plan.states(None), **carry, end=final, backward=False)[-1]
        turns = carry["turns"]
        end = _after(state, decay[-1], None if turns is None else turns[-1], scan.theta, final[-1])
    rows = (plan.sequences, plan.inner)
    return decay.prod(0).reshape(*rows, plan.channels), end.reshape(*rows, plan.width).clone()


def _forward(scan: Scan, complement: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both scans: from pre-activations if `complement` is given, otherwise from log gates."""
    plan = ScanPlan(scan)
    h = torch.empty(scan.x.shape, dtype=scan.x.dtype, device=plan.device)
    initial = plan.states(scan.initial_state)
    final = plan.empty(plan.parts, plan.rows, plan.width)
    tensors = {**_inputs(scan, complement), "h": h, "final": final}
    entering = initial
    if plan.parts > 1:
        # First pass: what each part makes of a state of zero, and of any other.
        carry = plan.carry_outputs()
        zeros = torch.zeros_like(final)
        plan.launch(forward.scan, **tensors, initial=zeros, **carry, WRITE=False, CARRY=True)
        entering = plan.chained(initial, **carry, end=final, backward=False)
    plan.launch(forward.scan, **tensors, initial=entering, **_NO_CARRY, WRITE=True, CARRY=False)
    last = initial if plan.is_empty else final[-1]
    return h, last.reshape(plan.sequences, plan.inner, plan.width).clone()


def _backward(
    scan: Scan, complement: Tensor | None, h: Tensor, grad_h: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gate, lower_bound, theta and initial_state; see `_forward`."""
    plan = ScanPlan(scan, backward=True)
    dx = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    dgate = torch.empty(scan.gate.shape, dtype=scan.gate.dtype, device=h.device)
    behind = plan.states(grad_final)
    passed = plan.empty(plan.parts, plan.rows, plan.width)
    # Of lower bound and theta, a sum for each program; zeros where the kernel writes none.
    sums = torch.zeros(
        2, plan.parts * plan.rows, plan.channels, dtype=plan.wide, device=plan.device
    )
    tensors = {
        **_inputs(scan, complement),
        "initial": plan.states(scan.initial_state),
        "h": h.contiguous(),
        **_strided("dh", _unit_last_stride(grad_h)),
        "dx": dx,
        "dgate": dgate,
        "passed": passed,
        "dlower": sums[0],
        "dtheta": sums[1],
    }
    kernel = backward.scan_backward
    entering = behind
    if plan.parts > 1:
        # First pass: what each part makes of a gradient of zero, and of any other.
        carry = plan.carry_outputs()
        zeros = torch.zeros_like(passed)
        plan.launch(kernel, **tensors, entering=zeros, **carry, WRITE=False, CARRY=True)
        entering = plan.chained(behind, **carry, end=passed, backward=True)
    plan.launch(kernel, **tensors, entering=entering, **_NO_CARRY, WRITE=True, CARRY=False)
    dlower, dtheta = sums.sum(1).unbind(0)
    first = behind if plan.is_empty else passed[0]
    dinitial = first.reshape(plan.sequences, plan.inner, plan.width).clone()
    return dx, dgate, dlower.clone(), dtheta.clone(), dinitial


def _complement(scan: Scan) -> Tensor:
    """`1 - lower_bound`, `[D]`."""
    if scan.lower_bound is None:
        dtype = at_least_float32(scan.x.dtype)
        return torch.ones(scan.channels, dtype=dtype, device=scan.x.device)
    return 1 - scan.lower_bound


def _inputs(scan: Scan, complement: Tensor | None) -> dict[str, Any]:
    """The arguments of a kernel that describe the inputs of a scan."""
    return {
        **_strided("x", scan.x),
        **_strided("gate", scan.gate),
        "complement": complement,
        "theta": scan.theta,
        "FUSED": complement is not None,
    }


def _strided(name: str, x: Tensor) -> dict[str, Any]:
    """A tensor `[O, T, I, C]` with unit last stride, and its other strides in elements."""
    outer, time, inner = x.stride()[:3]
    return {name: x, f"{name}_outer": outer, f"{name}_time": time, f"{name}_inner": inner}


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _after(
    state: Tensor, decay: Tensor, turns: Tensor | None, theta: Tensor | None, end: Tensor
) -> Tensor:
    """What a part makes of the state `[rows, C]` that enters it."""
    if theta is None or turns is None:
        return decay * state + end
    # Modulo 2 pi in float64, so that many turns lose no digits.
    phase = torch.remainder(turns[:, None].double() * theta.double(), 2 * math.pi)
    cos = phase.cos().to(state.dtype)
    sin = phase.sin().to(state.dtype)
    re, im = state.chunk(2, -1)
    return torch.cat([decay * (cos * re - sin * im), decay * (sin * re + cos * im)], -1) + end
