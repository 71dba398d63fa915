"""The scans under forward-mode derivatives and the transforms of torch.func, where PyTorch asks no registered operator for anything.

There every scan is elementwise operations of PyTorch around one scan with explicit gates in float32 (float64), an
`autograd.Function` that knows its gradient, its tangent and its mapping: each of them is again such scans, so that transforms
may be nested in any order. Shape letters as in `hgrn.ops.operators`.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hgrn.ops import operators, reference
from hgrn.ops.arguments import Scan, at_least_float32


class _Scan(torch.autograd.Function):
    """`h_t = gate_t exp(i theta) h_{t-1} + x_t`, all in the state dtype; `operators.gated_scan` but for the gate's logarithm.

    A gate may be exactly 0, where its logarithm has no slope, but the scan has.
    """

    @staticmethod
    def forward(x, gate, *rest):
        return operators.gated_scan.without_derivatives(x, gate.log(), *rest)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.reverse, ctx.engine = inputs
        ctx.save_for_backward(*tensors, output[0])
        ctx.save_for_forward(*tensors, output[0])

    @staticmethod
    def backward(ctx, grad_h, grad_final):
        _, gate, *rest = ctx.saved_tensors
        grads = operators.adjoint(
            _scan, gate, gate, grad_h, grad_final, *rest, ctx.reverse, ctx.engine
        )
        return operators._where_needed(ctx.needs_input_grad, *grads)

    @staticmethod
    def jvp(ctx, d_x, d_gate, d_theta, d_initial, *_):
        # PyTorch turns forward mode off here, for an outer transform too, which would take the tangent for a constant. Without
        # their own tangents, the tensors belong to the outer transform alone.
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [
                None if x is None else forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors
            ]
            return _tangent((d_x, d_gate, d_theta, d_initial), *saved, ctx.reverse, ctx.engine)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return operators.fold(_scan, operators.gated_scan.overload, info, in_dims, *arguments)


def _scan(
    x, gate, theta, initial_state, cu_seqlens, mask, reverse, engine
) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():  # a compiler takes no function with a tangent of its own
        return reference.recurrence(
            Scan(x, gate, None, theta, initial_state, cu_seqlens, mask, reverse), gate, x
        )
    return _Scan.apply(x, gate, theta, initial_state, cu_seqlens, mask, reverse, engine)


def _tangent(
    tangents, x, gate, theta, initial_state, cu_seqlens, mask, h, reverse, engine
) -> tuple[Tensor, Tensor]:
    """The tangent of the recurrence is a scan with its gates, of the tangents of all that enters at a position:

    `h'_t = a_t h'_{t-1} + x'_t + (gate'_t + i theta' gate_t) exp(i theta) h_{t-1}`, with `a_t = gate_t exp(i theta)` (1 where the
    mask is False, and then without the last term).
    """
    d_x, d_gate, d_theta, d_initial = tangents
    entering = torch.zeros_like(h) if d_x is None else d_x
    if h.shape[1] > 0:
        turned = reference.rotate(
            operators.previous_states(h, initial_state, cu_seqlens, reverse), theta
        )
        if mask is not None:
            turned = torch.where(mask[..., None], turned, 0)
        if d_gate is not None:
            entering = entering + reference.doubled(d_gate, theta) * turned
        if d_theta is not None:
            re, im = turned.chunk(2, -1)
            angle = gate * d_theta
            entering = entering + torch.cat([-angle * im, angle * re], -1)
    return _scan(entering, gate, theta, d_initial, cu_seqlens, mask, reverse, engine)


@operators.gated_scan.register_composition
def _gated_scan(
    x, log_f, theta, initial_state, cu_seqlens, mask, reverse, engine
) -> tuple[Tensor, Tensor]:
    wide = at_least_float32(x.dtype)
    h, final = _scan(
        x.to(wide), log_f.to(wide).exp(), theta, initial_state, cu_seqlens, mask, reverse, engine
    )
    return h.to(x.dtype), final


def _check_bound(lower_bound: Tensor | None) -> None:
    """As the operator checks it; what a transform has wrapped is looked at from inside."""
    if (
        lower_bound is None
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
    ):
        return
    while torch._C._functorch.is_functorch_wrapped_tensor(lower_bound):
        lower_bound = torch._C._functorch.get_unwrapped(lower_bound)
    operators._check_values(lower_bound, lower_bound.detach(), None)


@operators.hgru_scan.register_composition
def _hgru_scan(
    candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse, engine
) -> tuple[Tensor, Tensor]:
    _check_bound(lower_bound)
    wide = at_least_float32(candidate.dtype)
    keep, write = reference.gates(forget.to(wide), lower_bound)
    candidate, dtype = candidate.to(wide), candidate.dtype
    x = (
        reference.doubled(write, theta) * candidate * candidate.sigmoid()
    )  # PyTorch has no tangent of the gradient of silu
    if mask is not None:
        x = torch.where(mask[..., None], x, 0)
    h, final = _scan(x, keep, theta, initial_state, cu_seqlens, mask, reverse, engine)
    return h.to(dtype), final


@operators.hgru_carry.register_composition
def _hgru_carry(
    candidate, forget, lower_bound, theta, cu_seqlens, mask, reverse, engine
) -> tuple[Tensor, Tensor]:
    keep, _ = reference.gates(forget.to(at_least_float32(forget.dtype)), lower_bound)
    sequences = keep.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    ones = keep.new_ones(sequences, *keep.shape[2:])
    # The product of the gates is what a real scan without input makes of an initial state of ones.
    _, decay = _scan(torch.zeros_like(keep), keep, None, ones, cu_seqlens, mask, reverse, engine)
    _, end_state = _hgru_scan(
        candidate, forget, lower_bound, theta, None, cu_seqlens, mask, reverse, engine
    )
    return decay, end_state
