"""The contract of the ops: public functions, argument checks, registered operators, gradients, choice of engine.

Public functions check the caller's tensors and view them in the canonical layout; a registered operator
(`torch.ops.hgrn.*`) sees only that layout; an engine (`reference`, `cpu`, `triton`) only computes.

Shape letters: O outer, T time, I inner, D channels, C = D (real state) or 2D (complex state, [Re | Im]), N sequences
(N = O unless packed). `[O, T, I, C]` is the canonical layout: every axis in front of `dim` is outer, every axis between
`dim` and the channels is inner, so that neither rows nor columns of a grid are ever transposed.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hgrn.ops import packing, reference
from hgrn.ops.arguments import Scan, at_least_float32
from hgrn.ops.dispatch import is_transformed, operator
from hgrn.ops.engines import engine_for

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_floating(x: Tensor, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(x).__name__}; torch.as_tensor({name}) makes one of numbers"
        )
    if x.dtype not in _FLOATS:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}; convert it, for example with .float()"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Registered operators, in the canonical layout


def _check_values(x: Tensor, lower_bound: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """Checks that need the values of small tensors: on CPU only, where reading them costs no synchronisation."""
    if cu_seqlens is not None:
        packing.check_cu_seqlens(cu_seqlens, x.shape[1])
    if lower_bound is not None and lower_bound.device.type == "cpu" and lower_bound.numel():
        low, high = torch.aminmax(lower_bound)
        if low < 0 or high > 1:
            raise ValueError(
                f"lower_bound must lie in [0, 1], got values from {low:.4g} to {high:.4g}; "
                "hgrn.modules.LowerBounds turns free parameters into bounds"
            )


def _states(x: Tensor, cu_seqlens: Tensor | None, channels: int) -> Tensor:
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty((sequences, x.shape[2], channels), dtype=at_least_float32(x.dtype))


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("hgrn::hgru_scan")
def hgru_scan(
    candidate: Tensor,
    forget: Tensor,
    lower_bound: Tensor | None,
    theta: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    reverse: bool,
    engine: str,
) -> tuple[Tensor, Tensor]:
    _check_values(candidate, lower_bound, cu_seqlens)
    return engine_for(engine, candidate).hgru_scan(
        Scan(candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse)
    )


@hgru_scan.register_fake
def _(candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse, engine):
    return _contiguous_like(candidate), _states(candidate, cu_seqlens, candidate.shape[-1])


def _has_overflowed(h: Tensor) -> bool:
    """Whether h, which a backward reads again, lost what the state in float32 was: float16 ends at 65504.

    On CPU only: to ask a GPU would be to wait for it.
    """
    return (
        h.dtype == torch.float16
        and h.device.type == "cpu"
        and not h.sum(dtype=torch.float32).isfinite().item()
    )


@operator("hgrn::hgru_scan_backward")
def hgru_scan_backward(
    grad_h: Tensor,
    grad_final: Tensor,
    candidate: Tensor,
    forget: Tensor,
    lower_bound: Tensor | None,
    theta: Tensor | None,
    initial_state: Tensor | None,
    h: Tensor,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    reverse: bool,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of candidate, forget, lower_bound `[D]`, theta `[D]`, initial_state; zeros for what was not given."""
    run = engine_for(engine, candidate)
    scan = Scan(candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse)
    if not _has_overflowed(h):
        return run.hgru_scan_backward(scan, h, grad_h, grad_final)
    scan = scan._replace(x=candidate.float(), gate=forget.float())
    h, _ = run.hgru_scan(scan)
    grads = run.hgru_scan_backward(scan, h, grad_h.float(), grad_final)
    return grads[0].to(candidate.dtype), grads[1].to(forget.dtype), *grads[2:]


@hgru_scan_backward.register_fake
def _(
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
    engine,
):
    channel = forget.new_empty(forget.shape[-1:], dtype=at_least_float32(forget.dtype))
    return (
        _contiguous_like(candidate),
        _contiguous_like(forget),
        channel,
        torch.empty_like(channel),
        _states(candidate, cu_seqlens, candidate.shape[-1]),
    )


@operator("hgrn::hgru_carry")
def hgru_carry(
    candidate: Tensor,
    forget: Tensor,
    lower_bound: Tensor | None,
    theta: Tensor | None,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    reverse: bool,
    engine: str,
) -> tuple[Tensor, Tensor]:
    _check_values(candidate, lower_bound, cu_seqlens)
    return engine_for(engine, candidate).hgru_carry(
        Scan(candidate, forget, lower_bound, theta, None, cu_seqlens, mask, reverse)
    )


@hgru_carry.register_fake
def _(candidate, forget, lower_bound, theta, cu_seqlens, mask, reverse, engine):
    return _states(forget, cu_seqlens, forget.shape[-1]), _states(
        candidate, cu_seqlens, candidate.shape[-1]
    )


@operator("hgrn::gated_scan")
def gated_scan(
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    reverse: bool,
    engine: str,
) -> tuple[Tensor, Tensor]:
    _check_values(x, None, cu_seqlens)
    return engine_for(engine, x).gated_scan(
        Scan(x, log_f, None, theta, initial_state, cu_seqlens, mask, reverse)
    )


@gated_scan.register_fake
def _(x, log_f, theta, initial_state, cu_seqlens, mask, reverse, engine):
    return _contiguous_like(x), _states(x, cu_seqlens, x.shape[-1])


@operator("hgrn::gated_scan_backward")
def gated_scan_backward(
    grad_h: Tensor,
    grad_final: Tensor,
    x: Tensor,
    log_f: Tensor,
    theta: Tensor | None,
    initial_state: Tensor | None,
    h: Tensor,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    reverse: bool,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, log_f, theta `[D]` and initial_state; zeros for what was not given."""
    run = engine_for(engine, h)
    scan = Scan(x, log_f, None, theta, initial_state, cu_seqlens, mask, reverse)
    if not _has_overflowed(h):
        return run.gated_scan_backward(scan, h, grad_h, grad_final)
    scan = scan._replace(x=x.float(), gate=log_f.float())
    h, _ = run.gated_scan(scan)
    grads = run.gated_scan_backward(scan, h, grad_h.float(), grad_final)
    return grads[0].to(x.dtype), grads[1].to(log_f.dtype), *grads[2:]


@gated_scan_backward.register_fake
def _(grad_h, grad_final, x, log_f, theta, initial_state, h, cu_seqlens, mask, reverse, engine):
    channel = log_f.new_empty(log_f.shape[-1:], dtype=at_least_float32(log_f.dtype))
    return (
        _contiguous_like(h),
        _contiguous_like(log_f),
        channel,
        _states(h, cu_seqlens, h.shape[-1]),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def _where_needed(needs: tuple[bool, ...], *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients that were asked for, padded with None for the arguments behind the tensors."""
    return tuple(grad if need else None for need, grad in zip(needs, grads)) + (None,) * (
        len(needs) - len(grads)
    )


def _through_reference(function: Callable, inputs: tuple[Tensor | None, ...], needs, grad_outputs):
    """Gradients that can be differentiated again, by running the reference loop under autograd."""
    wanted = [x for x, need in zip(inputs, needs) if need]
    again = torch.is_grad_enabled() or is_transformed()
    with torch.enable_grad():
        pairs = [
            (out, grad) for out, grad in zip(function(*inputs), grad_outputs) if out.requires_grad
        ]
        outputs, grad_outputs = zip(*pairs)
    grads = iter(
        torch.autograd.grad(
            outputs, wanted, grad_outputs, create_graph=again, materialize_grads=True
        )
    )
    return [next(grads) if need else None for need in needs[: len(inputs)]]


def _scan_setup(ctx, inputs, output):
    *tensors, ctx.reverse, ctx.engine = inputs
    ctx.save_for_backward(*tensors, output[0])


def _scan_backward(ctx, grad_h, grad_final):
    candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, h = ctx.saved_tensors
    differentiable = (candidate, forget, lower_bound, theta, initial_state)
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled() or is_transformed():  # derivatives of this backward are wanted

        def again(*tensors):
            return reference.hgru_scan(Scan(*tensors, cu_seqlens, mask, ctx.reverse))

        return _where_needed(
            needs, *_through_reference(again, differentiable, needs, (grad_h, grad_final))
        )
    return _where_needed(
        needs,
        *hgru_scan_backward(
            grad_h, grad_final, *differentiable, h, cu_seqlens, mask, ctx.reverse, ctx.engine
        ),
    )


hgru_scan.register_autograd(_scan_backward, setup_context=_scan_setup)


def _carry_setup(ctx, inputs, output):
    *tensors, ctx.reverse, ctx.engine = inputs
    ctx.save_for_backward(*tensors)


def _carry_backward(ctx, grad_decay, grad_end):
    """The states inside were not written, so they are made again: of both outputs, each a scan's final state."""
    candidate, forget, lower_bound, theta, cu_seqlens, mask = ctx.saved_tensors
    differentiable = (candidate, forget, lower_bound, theta)
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled() or is_transformed():

        def again(*tensors):
            return reference.hgru_carry(Scan(*tensors, None, cu_seqlens, mask, ctx.reverse))

        return _where_needed(
            needs, *_through_reference(again, differentiable, needs, (grad_decay, grad_end))
        )
    scan = partial(
        _final_state_gradients,
        forget=forget,
        lower_bound=lower_bound,
        cu_seqlens=cu_seqlens,
        mask=mask,
        reverse=ctx.reverse,
        engine=ctx.engine,
    )
    grads = scan(grad_end, candidate, theta=theta, initial_state=None)
    # The product of the gates is what a real scan without input makes of an initial state of ones.
    of_decay = scan(
        grad_decay, torch.zeros_like(forget), theta=None, initial_state=torch.ones_like(grad_decay)
    )
    return _where_needed(needs, grads[0], grads[1] + of_decay[1], grads[2] + of_decay[2], grads[3])


def _final_state_gradients(
    grad_final,
    candidate,
    forget,
    lower_bound,
    theta,
    initial_state,
    cu_seqlens,
    mask,
    reverse,
    engine,
):
    inputs = (candidate, forget, lower_bound, theta, initial_state)
    h, _ = hgru_scan(*inputs, cu_seqlens, mask, reverse, engine)
    return hgru_scan_backward(
        torch.zeros_like(h), grad_final, *inputs, h, cu_seqlens, mask, reverse, engine
    )


hgru_carry.register_autograd(_carry_backward, setup_context=_carry_setup)


def _gated_setup(ctx, inputs, output):
    *tensors, ctx.reverse, ctx.engine = inputs
    ctx.save_for_backward(*tensors, output[0])


def _edges(
    x: Tensor, cu_seqlens: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each sequence its row, its first and last position as the scan goes, and whether it is not empty: four `[N]`."""
    if cu_seqlens is not None:
        first, last, filled = packing.edges(cu_seqlens, reverse)
        return torch.zeros_like(first), first, last, filled
    zeros = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
    ends = zeros + x.shape[1] - 1
    first, last = (ends, zeros) if reverse else (zeros, ends)
    return (
        torch.arange(x.shape[0], device=x.device),
        first,
        last,
        torch.ones_like(zeros, dtype=torch.bool),
    )


def previous_states(
    h: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None, reverse: bool
) -> Tensor:
    """The state before each position, `[O, T, I, C]`, of h in the state dtype; T is not 0."""
    row, first, _, filled = _edges(h, cu_seqlens, reverse)
    # Accumulating writes only: an empty sequence's clamped position may be the first one of another sequence.
    starts = torch.zeros(h.shape[:2], dtype=torch.int32, device=h.device)
    starts = starts.index_put((row, first), filled.int(), accumulate=True)
    previous = torch.where(starts[:, :, None, None] > 0, 0, h.roll(1 if not reverse else -1, 1))
    if initial_state is None:
        return previous
    return previous.index_put(
        (row, first), torch.where(filled[:, None, None], initial_state, 0), accumulate=True
    )


def _gated_backward(ctx, grad_h, grad_final):
    """Where more derivatives are wanted it is written with differentiable operations, else it is one pass of the engine."""
    x, log_f, theta, initial_state, cu_seqlens, mask, h = ctx.saved_tensors
    if not torch.is_grad_enabled() and not is_transformed():
        grads = gated_scan_backward(
            grad_h,
            grad_final,
            x,
            log_f,
            theta,
            initial_state,
            h,
            cu_seqlens,
            mask,
            ctx.reverse,
            ctx.engine,
        )
        return _where_needed(ctx.needs_input_grad, *grads)
    wide = at_least_float32(x.dtype)
    log_gate = log_f.to(wide)
    if h.dtype != wide:  # it was rounded, and may have overflowed
        h, _ = gated_scan(
            x.to(wide), log_gate, theta, initial_state, cu_seqlens, mask, ctx.reverse, ctx.engine
        )
    gate = log_gate.exp()
    grad_x, grad_gate, grad_theta, grad_initial = adjoint(
        gated_scan,
        log_gate,
        gate,
        grad_h,
        grad_final,
        theta,
        initial_state,
        cu_seqlens,
        mask,
        h,
        ctx.reverse,
        ctx.engine,
    )
    return _where_needed(
        ctx.needs_input_grad,
        grad_x.to(x.dtype),
        (gate * grad_gate).to(log_f.dtype),
        grad_theta,
        grad_initial,
    )


def adjoint(
    scan,
    argument,
    gate,
    grad_h,
    grad_final,
    theta,
    initial_state,
    cu_seqlens,
    mask,
    h,
    reverse,
    engine,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The adjoint of a gated scan is the same scan the other way, its gates moved by one position.

    With `G_t` the gradient of `h_t` and `a_t = gate_t exp(i theta)` (1 where the mask is False):
        G_t = grad_h_t + conj(a_{t+1}) G_{t+1},   dx_t = G_t,   dgate_t = Re(conj(G_t) exp(i theta) h_{t-1}).

    Args:
        scan: a gated scan that can be derived; `argument` is what it takes for the gates `gate` (themselves, or their logarithms).
        h: in the state dtype, like all that is computed here.

    Returns:
        Gradients of x, gate, theta and initial_state; the last two only where they were given.
    """
    if h.shape[1] == 0:
        return (
            grad_h,
            torch.zeros_like(gate),
            None if theta is None else torch.zeros_like(theta),
            grad_final,
        )
    row, first, last, filled = _edges(h, cu_seqlens, reverse)
    live = filled[:, None, None]
    before = 1 if reverse else -1  # where the position that a scan visits next lies, for torch.roll

    # The final state is h at the last position, so its gradient joins there; an empty sequence hands it through.
    upstream = grad_h.to(h.dtype).index_put(
        (row, last), torch.where(live, grad_final, 0).to(h.dtype), accumulate=True
    )
    # What rolls over a sequence's edge meets a zero state there, so its value does not matter.
    to_x, _ = scan(
        upstream,
        argument.roll(before, 1),
        None if theta is None else -theta,
        None,
        cu_seqlens,
        None if mask is None else mask.roll(before, 1),
        not reverse,
        engine,
    )

    turned = reference.rotate(previous_states(h, initial_state, cu_seqlens, reverse), theta)
    if theta is None:
        to_gate = to_x * turned
        to_angle = None
        back = gate * to_x
    else:
        to_re, to_im = to_x.chunk(2, -1)
        turned_re, turned_im = turned.chunk(2, -1)
        to_gate = to_re * turned_re + to_im * turned_im
        to_angle = gate * (to_im * turned_re - to_re * turned_im)
        back = reference.rotate(torch.cat([gate, gate], -1) * to_x, -theta)
    if mask is not None:
        to_gate = torch.where(mask[..., None], to_gate, 0)
        to_angle = None if to_angle is None else torch.where(mask[..., None], to_angle, 0)
        back = torch.where(mask[..., None], back, to_x)
    return (
        to_x,
        to_gate,
        None if to_angle is None else to_angle.sum((0, 1, 2)),
        None if initial_state is None else torch.where(live, back[row, first], grad_final),
    )


gated_scan.register_autograd(_gated_backward, setup_context=_gated_setup)


# ---------------------------------------------------------------------------------------------------------------------
# vmap: the mapped axis joins the outer one


def fold(function, overload, info, in_dims, *arguments):
    """Runs the operator, called by `function`, with the mapped axis folded into the outer axis of every tensor that has one.

    Where that cannot be (packed sequences, or a lower bound, angle or boundary of each sample's own) the samples run
    one after the other.
    """
    names = [argument.name for argument in overload._schema.arguments]
    shared = ("lower_bound", "theta")
    own = any(dim is not None for name, dim in zip(names, in_dims) if name in shared)
    packed = arguments[names.index("cu_seqlens")] is not None
    # Each sample's lower bound and angles have a gradient of their own.
    summed = overload in (hgru_scan_backward.overload, gated_scan_backward.overload)
    if own or packed or summed:
        samples = [
            function(*(a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims)))
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(outputs) for outputs in zip(*samples)), (0,) * len(samples[0])

    def folded(name, argument, dim):
        if not isinstance(argument, Tensor) or name in shared:
            return argument
        moved = (
            argument.expand(info.batch_size, *argument.shape)
            if dim is None
            else argument.movedim(dim, 0)
        )
        return moved.flatten(0, 1)

    outputs = function(*(folded(*triple) for triple in zip(names, arguments, in_dims)))
    return tuple(out.unflatten(0, (info.batch_size, -1)) for out in outputs), (0,) * len(outputs)


for _op in (hgru_scan, hgru_scan_backward, hgru_carry, gated_scan, gated_scan_backward):
    _op.register_vmap(partial(fold, _op.overload, _op.overload))
