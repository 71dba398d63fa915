"""The registered operators of inference in terms of PyTorch's own, for exporters that know nothing of ours.

`program.run_decompositions(DECOMPOSITIONS)` puts them into a `torch.export.ExportedProgram`. The recurrence becomes one
`torch._higher_order_ops.scan` (ONNX: one Scan) over a length that may stay free; for a length of exactly 1, one plain step.
"""

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op

from hgrn.ops import layers, operators, reference
from hgrn.ops.arguments import Scan, at_least_float32


def _hgru_scan(
    candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse, engine
) -> tuple[Tensor, Tensor]:
    """As `reference.hgru_scan`, in whose loop each position would become a part of the graph."""
    if cu_seqlens is not None:
        raise NotImplementedError(
            "hgru_scan with cu_seqlens has no decomposition: a scan cannot begin anew inside; export without cu_seqlens, and "
            "give padded sequences with a mask"
        )
    if (
        isinstance(candidate.shape[1], int) and candidate.shape[1] == 1
    ):  # not a free length, of which this would make a guard
        return reference.hgru_scan(
            Scan(candidate, forget, lower_bound, theta, initial_state, None, mask, reverse)
        )
    accumulate = at_least_float32(candidate.dtype)
    keep, write = reference.gates(forget.to(accumulate), lower_bound)
    x = reference.doubled(write, theta) * torch.nn.functional.silu(candidate.to(accumulate))
    moving = [keep, x]
    if mask is not None:
        moving = [keep, torch.where(mask[..., None], x, 0), mask[..., None]]
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], *x.shape[2:])

    def step(state: Tensor, keep: Tensor, x: Tensor, *rest: Tensor) -> list[Tensor]:
        angle = None if theta is None else rest[-1]
        carried = reference.doubled(keep, angle) * reference.rotate(state, angle)
        if mask is not None:
            carried = torch.where(rest[0], carried, state)
        state = carried + x
        return [state, state.clone()]  # a scan refuses outputs that are the same tensor

    moving = [part.movedim(1, 0) for part in moving]
    if reverse:
        moving = [part.flip(0) for part in moving]
    final, h = scan_op(step, [initial_state], moving, () if theta is None else (theta,))
    h = h.flip(0) if reverse else h
    return h.movedim(0, 1).to(candidate.dtype).contiguous(), final


def _gated_norm(
    x, gate, weight, bias, eps, activation, gate_first, engine
) -> tuple[Tensor, Tensor, Tensor]:
    y = layers._reference_norm(x, gate, weight, bias, eps, activation, gate_first)
    wide = at_least_float32(x.dtype)
    normed = (
        x.to(wide) * layers.ACTIVATIONS[activation](gate.to(wide)) if gate_first else x.to(wide)
    )
    variance, mean = torch.var_mean(normed, -1, correction=0)
    return (
        y,
        mean,
        torch.rsqrt(variance + eps),
    )  # the last two, for the backward, fall out of a graph of inference


def _gated_unit(x, activation, engine) -> Tensor:
    return layers._reference_unit(x, activation)


DECOMPOSITIONS = {
    operators.hgru_scan.overload: _hgru_scan,
    layers._gated_norm.overload: _gated_norm,
    layers._gated_unit.overload: _gated_unit,
}
