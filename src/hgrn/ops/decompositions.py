"""The operators of inference in terms of PyTorch's own, for exporters that know nothing of ours.

`program.run_decompositions(DECOMPOSITIONS)` puts them into a `torch.export.ExportedProgram`. The
recurrence becomes one `torch._higher_order_ops.scan` (ONNX: one Scan) over a length that may stay
free; for a length of exactly 1 it becomes one plain step.
"""

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op

from hgrn.ops import gla, hgrn2, layers, operators, reference
from hgrn.ops.arguments import Scan, at_least_float32
from hgrn.ops.gla_arguments import GlaScan


def refuse_packed(name: str, cu_seqlens: Tensor | None) -> None:
    """Raises NotImplementedError where sequences are packed."""
    if cu_seqlens is not None:
        raise NotImplementedError(
            f"{name} with cu_seqlens has no decomposition: a scan cannot begin anew inside; "
            "export without cu_seqlens, and give padded sequences with a mask"
        )


def _hgru_scan(
    candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse, engine
) -> tuple[Tensor, Tensor]:
    """`reference.hgru_scan` without its loop, whose every position would be a part of the graph."""
    refuse_packed("hgru_scan", cu_seqlens)
    scan = Scan(candidate, forget, lower_bound, theta, initial_state, None, mask, reverse)
    if _is_one_step(candidate):
        return reference.hgru_scan(scan)
    wide = at_least_float32(candidate.dtype)
    keep, write = reference.gates(forget.to(wide), lower_bound)
    x = reference.doubled(write, theta) * torch.nn.functional.silu(candidate.to(wide))
    if mask is not None:
        x = torch.where(mask[..., None], x, 0)
    return _recurrence(scan, keep, x)


def _gated_scan(
    x, log_f, theta, initial_state, cu_seqlens, mask, reverse, engine
) -> tuple[Tensor, Tensor]:
    """`reference.gated_scan` without its loop."""
    refuse_packed("gated_scan", cu_seqlens)
    scan = Scan(x, log_f, None, theta, initial_state, None, mask, reverse)
    if _is_one_step(x):
        return reference.gated_scan(scan)
    wide = at_least_float32(x.dtype)
    return _recurrence(scan, log_f.to(wide).exp(), x.to(wide))


def _is_one_step(x: Tensor) -> bool:
    # A free length is no int; to compare it with 1 would make a guard.
    return isinstance(x.shape[1], int) and x.shape[1] == 1


def _recurrence(scan: Scan, keep: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.recurrence` as one scan; keep and x take the place of the scan's gate and x."""
    theta = scan.theta
    mask = scan.mask
    moving = [keep, x] if mask is None else [keep, x, mask[..., None]]
    state = scan.initial_state
    if state is None:
        state = x.new_zeros(x.shape[0], *x.shape[2:])

    def step(state: Tensor, keep: Tensor, x: Tensor, *rest: Tensor) -> list[Tensor]:
        angle = None if theta is None else rest[-1]
        carried = reference.doubled(keep, angle) * reference.rotate(state, angle)
        if mask is not None:
            carried = torch.where(rest[0], carried, state)
        state = carried + x
        return [state, state.clone()]  # a scan refuses outputs that are the same tensor

    moving = [part.movedim(1, 0) for part in moving]
    if scan.reverse:
        moving = [part.flip(0) for part in moving]
    final, h = scan_op(step, [state], moving, () if theta is None else (theta,))
    h = h.flip(0) if scan.reverse else h
    return h.movedim(0, 1).to(scan.x.dtype).contiguous(), final


def _gla_scan(q, k, v, log_f, initial_state, cu_seqlens, engine) -> tuple[Tensor, Tensor]:
    """`reference.gla_scan` without its loop."""
    refuse_packed("gla_scan", cu_seqlens)
    if _is_one_step(q):
        return reference.gla_scan(GlaScan(q, k, v, log_f, initial_state, None))
    wide = at_least_float32(q.dtype)
    if initial_state is None:
        initial_state = q.new_zeros(q.shape[0], *q.shape[2:], v.shape[3], dtype=wide)

    def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> list[Tensor]:
        state = keep[..., None] * state + k[..., None] * v[..., None, :]
        return [state, (q[..., None, :] @ state).squeeze(-2)]

    moving = [x.to(wide).movedim(1, 0) for x in (q, k, v, log_f.exp())]
    final, y = scan_op(step, [initial_state], moving, ())
    return y.movedim(0, 1).to(v.dtype).contiguous(), final


DECOMPOSITIONS = {
    operators.gated_scan.overload: _gated_scan,
    gla.gla_scan_operator.overload: _gla_scan,
    operators.hgru_scan.overload: _hgru_scan,
    layers.gated_norm_operator.overload: layers.gated_norm_operator.composition,
    layers.gated_unit_operator.overload: layers.gated_unit_operator.composition,
    hgrn2.hgrn2_inputs_operator.overload: hgrn2.hgrn2_inputs_operator.composition,
}
