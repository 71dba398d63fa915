"""The scans as compositions that PyTorch can derive any number of times, in any mode.

PyTorch asks no Python operator for forward-mode derivatives or under the transforms of torch.func,
and our kernels' backwards have no derivative. There every scan is elementwise operations of PyTorch
around one scan with explicit gates in float32 (float64). That scan knows its gradient, its tangent
and its vmap; each of them is again such scans, so transforms may be nested in any order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from hgrn.ops import operators, reference
from hgrn.ops.arguments import Scan, at_least_float32, check_bound


class _GateScan(torch.autograd.Function):
    """`h_t = gate_t exp(i theta) h_{t-1} + x_t`, all in the state's dtype.

    It is `gated_scan` but takes the gate, not its logarithm: where a gate is exactly 0, the
    logarithm has no slope, but the scan has.
    """

    @staticmethod
    def forward(x, gate, theta, initial_state, cu_seqlens, mask, reverse, engine):
        where = (cu_seqlens, mask, reverse, engine)
        return operators.gated_scan.without_derivatives(x, gate.log(), theta, initial_state, *where)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.reverse, ctx.engine = inputs
        ctx.save_for_backward(*tensors, output[0])
        ctx.save_for_forward(*tensors, output[0])

    @staticmethod
    def backward(ctx, grad_h, grad_final):
        scan, h = _record(ctx.saved_tensors, ctx.reverse)
        found = _adjoint(scan, h, grad_h, grad_final, ctx.engine)
        needed = [g if need else None for g, need in zip(found, ctx.needs_input_grad)]
        return *needed, None, None, None, None

    @staticmethod
    def jvp(ctx, d_x, d_gate, d_theta, d_initial, *_):
        # PyTorch turns forward mode off here, for an outer transform too, which would take the
        # tangent for a constant. Without their own tangents, the tensors belong to the outer
        # transform alone.
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [
                None if x is None else forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors
            ]
            scan, h = _record(saved, ctx.reverse)
            return _tangent(scan, h, d_x, d_gate, d_theta, d_initial, ctx.engine)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        function = _GateScan.apply
        return operators.fold(function, operators.gated_scan.overload, info, in_dims, *arguments)


def _record(saved: Sequence, reverse: bool) -> tuple[Scan, Tensor]:
    """The scan that `_GateScan` saved, and its h."""
    x, gate, theta, initial_state, cu_seqlens, mask, h = saved
    return Scan(x, gate, None, theta, initial_state, cu_seqlens, mask, reverse), h


def _gate_scan(scan: Scan, engine: str) -> tuple[Tensor, Tensor]:
    """`_GateScan` of a record whose gate is the gate itself."""
    if torch.compiler.is_compiling():  # it takes no autograd.Function with a tangent of its own
        return reference.recurrence(scan, scan.gate, scan.x)
    x, gate, _, *rest = scan
    return _GateScan.apply(x, gate, *rest, engine)


# -------------------------------------------------------------------------------------------------
# Derivatives of a scan, in terms of scans. `a_t` is gate_t exp(i theta), or 1 where the mask is
# False.


class _Ends(NamedTuple):
    """For each sequence, as the scan goes: its row, its first and last position; four `[N]`.

    filled: whether it has any position. If not, the others are within range and mean nothing.
    """

    row: Tensor
    first: Tensor
    last: Tensor
    filled: Tensor


def _ends(scan: Scan) -> _Ends:
    steps = scan.x.shape[1]
    device = scan.x.device
    if scan.cu_seqlens is None:
        row = torch.arange(scan.sequences, device=device)
        lower = torch.zeros_like(row)
        upper = lower + steps - 1
        filled = torch.ones_like(row, dtype=torch.bool)
    else:
        row = torch.zeros(scan.sequences, dtype=torch.long, device=device)
        lower = scan.cu_seqlens[:-1].long()
        upper = scan.cu_seqlens[1:].long() - 1
        filled = upper >= lower
        lower = lower.clamp_max(steps - 1)
        upper = upper.clamp_min(0)
    first, last = (upper, lower) if scan.reverse else (lower, upper)
    return _Ends(row, first, last, filled)


def _turned_before(scan: Scan, h: Tensor, ends: _Ends) -> Tensor:
    """`exp(i theta) h_{t-1}` at each position, `[O, T, I, C]`; zero where the mask is False."""
    # Add up what is written: the place of an empty sequence may be the first position of another.
    starts = torch.zeros(h.shape[:2], dtype=torch.int32, device=h.device)
    at = (ends.row, ends.first)
    starts = starts.index_put(at, ends.filled.int(), accumulate=True)
    before = torch.where(starts[:, :, None, None] > 0, 0, h.roll(-1 if scan.reverse else 1, 1))
    if scan.initial_state is not None:
        initial = torch.where(ends.filled[:, None, None], scan.initial_state, 0)
        before = before.index_put(at, initial, accumulate=True)
    turned = reference.rotate(before, scan.theta)
    return turned if scan.mask is None else torch.where(scan.mask[..., None], turned, 0)


def _adjoint(
    scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor, engine: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, gate, theta and initial_state: a scan the other way, its gates moved by one.

    With `G_t` all of the gradient that arrives at `h_t`:
        G_t = grad_h_t + conj(a_{t+1}) G_{t+1},  dx_t = G_t,
        dgate_t = Re(conj(G_t) exp(i theta) h_{t-1}).
    """
    theta = scan.theta
    mask = scan.mask
    if h.shape[1] == 0:
        nothing = None if theta is None else torch.zeros_like(theta)
        return grad_h, torch.zeros_like(scan.gate), nothing, grad_final
    ends = _ends(scan)
    live = ends.filled[:, None, None]
    ahead = 1 if scan.reverse else -1  # by which torch.roll brings the next position here

    # The final state is h at the last position, so its gradient joins there. What rolls over the
    # end of a sequence meets a zero state, so its value does not matter.
    last = (ends.row, ends.last)
    arriving = grad_h.index_put(last, torch.where(live, grad_final, 0), accumulate=True)
    back = Scan(
        x=arriving,
        gate=scan.gate.roll(ahead, 1),
        lower_bound=None,
        theta=None if theta is None else -theta,
        initial_state=None,
        cu_seqlens=scan.cu_seqlens,
        mask=None if mask is None else mask.roll(ahead, 1),
        reverse=not scan.reverse,
    )
    to_x, _ = _gate_scan(back, engine)

    turned = _turned_before(scan, h, ends)
    gate = reference.doubled(scan.gate, theta)
    to_initial = reference.rotate(gate * to_x, back.theta)
    if mask is not None:
        to_initial = torch.where(mask[..., None], to_initial, to_x)
    if theta is None:
        to_gate = to_x * turned
        to_theta = None
    else:
        re, im = to_x.chunk(2, -1)
        turned_re, turned_im = turned.chunk(2, -1)
        to_gate = re * turned_re + im * turned_im
        to_theta = scan.gate * (im * turned_re - re * turned_im)
        if mask is not None:
            # Even where the gate of a masked position is not a number.
            to_theta = torch.where(mask[..., None], to_theta, 0)
        to_theta = to_theta.sum((0, 1, 2))
    if scan.initial_state is None:
        return to_x, to_gate, to_theta, None
    # An empty sequence hands its state on, and so its gradient back.
    return to_x, to_gate, to_theta, torch.where(live, to_initial[ends.row, ends.first], grad_final)


def _tangent(
    scan: Scan,
    h: Tensor,
    d_x: Tensor | None,
    d_gate: Tensor | None,
    d_theta: Tensor | None,
    d_initial: Tensor | None,
    engine: str,
) -> tuple[Tensor, Tensor]:
    """The tangent: a scan with the same gates, of the tangents of all that enters at a position.

    `h'_t = a_t h'_{t-1} + x'_t + (gate'_t + i theta' gate_t) exp(i theta) h_{t-1}`; where the mask
    is False, without the last term.
    """
    entering = torch.zeros_like(h) if d_x is None else d_x
    if h.shape[1] > 0:
        turned = _turned_before(scan, h, _ends(scan))
        if d_gate is not None:
            entering = entering + reference.doubled(d_gate, scan.theta) * turned
        if d_theta is not None:
            re, im = turned.chunk(2, -1)
            angle = scan.gate * d_theta
            entering = entering + torch.cat([-angle * im, angle * re], -1)
    return _gate_scan(scan._replace(x=entering, initial_state=d_initial), engine)


# -------------------------------------------------------------------------------------------------
# The operators


@operators.gated_scan.register_composition
def _gated_scan(
    x, log_f, theta, initial_state, cu_seqlens, mask, reverse, engine
) -> tuple[Tensor, Tensor]:
    wide = at_least_float32(x.dtype)
    gate = log_f.to(wide).exp()
    scan = Scan(x.to(wide), gate, None, theta, initial_state, cu_seqlens, mask, reverse)
    h, final = _gate_scan(scan, engine)
    return h.to(x.dtype), final


def _check_bound(lower_bound: Tensor | None) -> None:
    """`check_bound`, as the operator does it, of the plain tensor inside of a transform's."""
    if (
        lower_bound is None
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
    ):
        return
    plain: Tensor = lower_bound
    while is_functorch_wrapped_tensor(plain):
        plain = get_unwrapped(plain)
    check_bound(plain.detach())


@operators.hgru_scan.register_composition
def _hgru_scan(
    candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse, engine
) -> tuple[Tensor, Tensor]:
    _check_bound(lower_bound)
    wide = at_least_float32(candidate.dtype)
    keep, write = reference.gates(forget.to(wide), lower_bound)
    x = candidate.to(wide)
    # Not silu: PyTorch has no tangent of its gradient.
    x = reference.doubled(write, theta) * x * x.sigmoid()
    if mask is not None:
        x = torch.where(mask[..., None], x, 0)
    scan = Scan(x, keep, None, theta, initial_state, cu_seqlens, mask, reverse)
    h, final = _gate_scan(scan, engine)
    return h.to(candidate.dtype), final


@operators.hgru_carry.register_composition
def _hgru_carry(
    candidate, forget, lower_bound, theta, cu_seqlens, mask, reverse, engine
) -> tuple[Tensor, Tensor]:
    keep, _ = reference.gates(forget.to(at_least_float32(forget.dtype)), lower_bound)
    # A real state of ones without any input becomes the product of the gates.
    alone = Scan(torch.zeros_like(keep), keep, None, None, None, cu_seqlens, mask, reverse)
    ones = keep.new_ones(alone.sequences, *keep.shape[2:])
    _, decay = _gate_scan(alone._replace(initial_state=ones), engine)
    where = (cu_seqlens, mask, reverse, engine)
    _, end_state = _hgru_scan(candidate, forget, lower_bound, theta, None, *where)
    return decay, end_state
