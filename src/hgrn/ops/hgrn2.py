"""From the projections of HGRN2 to what its scan reads, in one pass over memory.

`hgrn2_inputs` is elementwise: activations of query and candidate, the bounded forget gate, and its
complement. PyTorch would make some ten passes of it, and as many in the backward. As with the ops
of `hgrn.ops.layers`, a composition in plain PyTorch defines it, and runs where no engine has a
kernel.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hgrn.ops import reference
from hgrn.ops.arguments import at_least_float32
from hgrn.ops.dispatch import operator
from hgrn.ops.engines import engine_for
from hgrn.ops.layers import ACTIVATIONS, engine_of_layer
from hgrn.ops.operators import contiguous_like


def bounded_gates(forget: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logarithm of `f = gamma + (1 - gamma) sigmoid(forget)`, and `1 - f`.

    Both keep their digits where f is near 0 or 1.

    Shape:
        forget `[..., D]`, lower_bound gamma `[D]` or None (0) -> `[..., D]` each, float32 (float64
        for float64).
    """
    forget = forget.to(at_least_float32(forget.dtype))
    if lower_bound is None:
        return F.logsigmoid(forget), torch.sigmoid(-forget)
    keep, write = reference.gates(forget, lower_bound)
    # A gate of 0 has no logarithm; the smallest number does as well.
    return keep.clamp(min=torch.finfo(keep.dtype).tiny).log(), write


def hgrn2_inputs(
    projected: Tensor,
    lower_bound: Tensor | None,
    *,
    scale: float,
    query_act: str,
    candidate_act: str,
    engine: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and log_f of `gla_scan`, with heads side by side.

    `q = scale act(query)`, `k = 1 - f`, `v = act(candidate)`, `log_f = log f` with
    `f = gamma + (1 - gamma) sigmoid(forget)` (HGRN2 paper, section 3).

    Args:
        projected: `[..., 3 D]`: query, forget and candidate before their activations.
        lower_bound: gamma, `[D]` in [0, 1]; None is 0.
        scale: factor of the query.
        query_act, candidate_act: "silu", "sigmoid" or "identity".
        engine: as in `hgru_scan`.

    Returns:
        `[..., D]` each, the first three in projected's dtype, log_f in float32 (float64 for
        float64).
    """
    if lower_bound is not None:
        lower_bound = lower_bound.to(at_least_float32(projected.dtype))
    chosen = engine_of_layer(engine, "hgrn2_inputs", projected)
    if chosen is None:
        return _compose(projected, lower_bound, scale, query_act, candidate_act)
    return hgrn2_inputs_operator(projected, lower_bound, scale, query_act, candidate_act, chosen)


def _compose(
    projected: Tensor,
    lower_bound: Tensor | None,
    scale: float,
    query_act: str,
    candidate_act: str,
    engine: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, forget, candidate = projected.chunk(3, dim=-1)
    log_f, write = bounded_gates(forget, lower_bound)
    q = ACTIVATIONS[query_act](query) * scale
    return q, write.to(projected.dtype), ACTIVATIONS[candidate_act](candidate), log_f


@operator("hgrn::hgrn2_inputs")
def hgrn2_inputs_operator(
    projected: Tensor,
    lower_bound: Tensor | None,
    scale: float,
    query_act: str,
    candidate_act: str,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = engine_for(engine, projected)
    return run.hgrn2_inputs(projected, lower_bound, scale, query_act, candidate_act)


@hgrn2_inputs_operator.register_fake
def _(projected, lower_bound, scale, query_act, candidate_act, engine):
    shape = (*projected.shape[:-1], projected.shape[-1] // 3)
    q, k, v = (projected.new_empty(shape) for _ in range(3))
    return q, k, v, projected.new_empty(shape, dtype=at_least_float32(projected.dtype))


hgrn2_inputs_operator.register_composition(_compose)


@operator("hgrn::hgrn2_inputs_backward")
def hgrn2_inputs_backward_operator(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    grad_log_f: Tensor,
    projected: Tensor,
    lower_bound: Tensor | None,
    scale: float,
    query_act: str,
    candidate_act: str,
    engine: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of projected and lower_bound `[D]`."""
    grads = (grad_q, grad_k, grad_v, grad_log_f)
    return engine_for(engine, projected).hgrn2_inputs_backward(
        grads, projected, lower_bound, scale, query_act, candidate_act
    )


@hgrn2_inputs_backward_operator.register_fake
def _(grad_q, grad_k, grad_v, grad_log_f, projected, *rest):
    return contiguous_like(projected), grad_log_f.new_empty(grad_log_f.shape[-1:])


@hgrn2_inputs_operator.register_gradient()
def _(arguments, kept, grads):
    return hgrn2_inputs_backward_operator(*grads, *arguments)
