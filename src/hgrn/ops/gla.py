"""The public `gla_scan`, the recurrence of HGRN2, and the operator behind it.

A matrix for a state in each head, and one gate for each of its rows. It is gated linear attention
(arXiv 2312.06635) with gates of its own for keys.
"""

from functools import partial

from torch import Tensor

from hgrn.ops import chunked, fla
from hgrn.ops.arguments import at_least_float32
from hgrn.ops.dispatch import operator
from hgrn.ops.engines import choose, engine_for, has_kernel
from hgrn.ops.gla_arguments import GlaScan, checked
from hgrn.ops.operators import contiguous_like, fold


def gla_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None = None,
    *,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """In each head, `S_t = Diag(exp(log_f_t)) S_{t-1} + k_t v_t^T` and `y_t = q_t S_t`.

    It is the recurrence of HGRN2 (arXiv 2404.07904, section 3), with k_t = 1 - exp(log_f_t) there.
    On a CPU with numba it walks along time with the state in the cache; on a GPU it is
    flash-linear-attention's where that is installed (`hgrn.ops.fla`); elsewhere it is products of
    matrices (`hgrn.ops.chunked`). It has gradients of any order, but flash-linear-attention's has
    only the first.

    Args:
        q, k: `[B, T, H, K]`, of one dtype.
        v: `[B, T, H, V]` in that dtype.
        log_f: `[B, T, H, K]`, logarithms of the gates, `<= 0` (not checked). Give it in float32
            where the rest has half a precision: a gate of 0.9995 is 1 in bfloat16.
        initial_state: `[N, H, K, V]`; None is zeros. With `reverse` it enters behind the last
            position.
        reverse: scan from the last position to the first.
        cu_seqlens: boundaries `[N + 1]` of N sequences that are packed into `[1, total, H, *]`,
            int32 or int64.
        mask: bool `[B, T]`; where False, `S_t = S_{t-1}` exactly, and y_t is read from that.
        engine: as in `hgru_scan`; an engine without this scan computes it as products of matrices.

    Returns:
        y `[B, T, H, V]`, and the final state `[N, H, K, V]` in float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument breaks the rules above; the message names it.
    """
    scan = checked(q, k, v, log_f, initial_state, cu_seqlens, mask)
    if reverse:
        scan = _turned(scan)
    device = q.device.type
    if _has_scan(engine, device):
        y, final = gla_scan_operator(*scan, choose(engine, device))
    else:
        scan.check_values()
        y, final = _without_kernel(scan, engine, device)
    if not reverse:
        return y, final
    return y.flip(1), final if scan.cu_seqlens is None else final.flip(0)


def _without_kernel(scan: GlaScan, engine: str | None, device: str) -> tuple[Tensor, Tensor]:
    """By flash-linear-attention on a GPU where it can, unless an engine is named; else products."""
    if engine is None and device == "cuda":
        reason = fla.why_not(scan)
        if reason is None:
            return fla.gla_scan(scan)
        fla.tell(reason)
    return chunked.gla_scan(scan)


def _has_scan(engine: str | None, device: str) -> bool:
    """Whether the engine computes this scan. The reference's loop does only if it is named."""
    if engine is None:
        return device == "meta" or has_kernel("auto", "gla_scan", device)
    return has_kernel(choose(engine, device), "gla_scan", device)


def _turned(scan: GlaScan) -> GlaScan:
    """The same scan with time turned round."""
    q, k, v, log_f = (x.flip(1) for x in scan[:4])
    initial = scan.initial_state
    if scan.cu_seqlens is None:
        return GlaScan(q, k, v, log_f, initial, None)
    bounds = scan.q.shape[1] - scan.cu_seqlens.flip(0)
    return GlaScan(q, k, v, log_f, None if initial is None else initial.flip(0), bounds)


@operator("hgrn::gla_scan")
def gla_scan_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    engine: str,
) -> tuple[Tensor, Tensor]:
    scan = GlaScan(q, k, v, log_f, initial_state, cu_seqlens)
    scan.check_values()
    return engine_for(engine, q).gla_scan(scan)


@gla_scan_operator.register_fake
def _(q, k, v, log_f, initial_state, cu_seqlens, engine):
    shape = GlaScan(q, k, v, log_f, initial_state, cu_seqlens).state_shape
    return contiguous_like(v), v.new_empty(shape, dtype=at_least_float32(v.dtype))


@gla_scan_operator.register_composition
def _(q, k, v, log_f, initial_state, cu_seqlens, engine):
    return chunked.gla_scan(GlaScan(q, k, v, log_f, initial_state, cu_seqlens))


@operator("hgrn::gla_scan_backward")
def gla_scan_backward_operator(
    grad_y: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_f and initial_state; zeros for what was not given."""
    scan = GlaScan(q, k, v, log_f, initial_state, cu_seqlens)
    return engine_for(engine, q).gla_scan_backward(scan, grad_y, grad_final)


@gla_scan_backward_operator.register_fake
def _(grad_y, grad_final, q, k, v, log_f, initial_state, cu_seqlens, engine):
    return (*(contiguous_like(x) for x in (q, k, v, log_f)), contiguous_like(grad_final))


@gla_scan_operator.register_gradient()
def _(arguments, kept, grads):
    return gla_scan_backward_operator(*grads, *arguments)


for _operator in (gla_scan_operator, gla_scan_backward_operator):
    _operator.register_vmap(partial(fold, _operator.overload, _operator.overload))
