"""The scans as PyTorch knows them: `torch.ops.hgrn.*`, their schemas, shapes, gradients and vmap.

An operator takes the canonical layout (`hgrn.ops.arguments`), and its schema spells out a `Scan`,
because PyTorch's schemas have no records. Its engine is a name: "auto" is settled when it runs.
`hgrn.ops.transforms` adds what PyTorch derives under torch.func and in second derivatives.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hgrn.ops.arguments import Scan, at_least_float32
from hgrn.ops.dispatch import operator
from hgrn.ops.engines import engine_for


def contiguous_like(x: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of x's shape and dtype: what kernels return."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _state_like(x: Tensor, channels: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """A state `[N, I, *]` with as many channels as that tensor."""
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, x.shape[2], channels.shape[-1])
    return x.new_empty(shape, dtype=at_least_float32(x.dtype))


def _channel_like(gate: Tensor) -> Tensor:
    """The gradient of a parameter `[D]`."""
    return gate.new_empty(gate.shape[-1:], dtype=at_least_float32(gate.dtype))


def _has_overflowed(h: Tensor) -> bool:
    """Whether h, which a backward reads again, lost the values of the float32 state.

    float16 ends at 65504. Asked on a CPU only: to ask a GPU would be to wait for it.
    """
    return (
        h.dtype == torch.float16
        and h.device.type == "cpu"
        and not h.sum(dtype=torch.float32).isfinite().item()
    )


# -------------------------------------------------------------------------------------------------
# hgru_scan


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
    scan = Scan(candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse)
    scan.check_values()
    return engine_for(engine, candidate).hgru_scan(scan)


@hgru_scan.register_fake
def _(candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse, engine):
    return contiguous_like(candidate), _state_like(candidate, candidate, cu_seqlens)


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
    """Gradients of candidate, forget, lower_bound `[D]`, theta `[D]` and initial_state.

    They are zeros for what was not given.
    """
    run = engine_for(engine, candidate)
    scan = Scan(candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse)
    if not _has_overflowed(h):
        return run.hgru_scan_backward(scan, h, grad_h, grad_final)
    scan = scan._replace(x=candidate.float(), gate=forget.float())
    h, _ = run.hgru_scan(scan)
    grads = run.hgru_scan_backward(scan, h, grad_h.float(), grad_final)
    return grads[0].to(candidate.dtype), grads[1].to(forget.dtype), *grads[2:]


@hgru_scan_backward.register_fake
def _(grad_h, grad_final, candidate, forget, lower_bound, theta, initial_state, h, *rest):
    channel = _channel_like(forget)
    return (
        contiguous_like(candidate),
        contiguous_like(forget),
        channel,
        torch.empty_like(channel),
        contiguous_like(grad_final),
    )


@hgru_scan.register_gradient(keep=(0,))
def _(arguments, kept, grads):
    *tensors, cu_seqlens, mask, reverse, engine = arguments
    return hgru_scan_backward(*grads, *tensors, *kept, cu_seqlens, mask, reverse, engine)


# -------------------------------------------------------------------------------------------------
# hgru_carry


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
    scan = Scan(candidate, forget, lower_bound, theta, None, cu_seqlens, mask, reverse)
    scan.check_values()
    return engine_for(engine, candidate).hgru_carry(scan)


@hgru_carry.register_fake
def _(candidate, forget, lower_bound, theta, cu_seqlens, mask, reverse, engine):
    decay = _state_like(candidate, forget, cu_seqlens)
    return decay, _state_like(candidate, candidate, cu_seqlens)


@hgru_carry.register_gradient()
def _(arguments, kept, grads):
    """Both outputs are the final state of a scan, whose states must be computed again."""
    candidate, forget, lower_bound, theta, *where = arguments
    grad_decay, grad_end = grads

    def through_scan(grad_final, candidate, theta, initial_state):
        inputs = (candidate, forget, lower_bound, theta, initial_state)
        h, _ = hgru_scan(*inputs, *where)
        return hgru_scan_backward(torch.zeros_like(h), grad_final, *inputs, h, *where)

    of_end = through_scan(grad_end, candidate, theta, None)
    # A real state of ones without any input becomes the product of the gates.
    nothing = torch.zeros_like(forget)
    of_decay = through_scan(grad_decay, nothing, None, torch.ones_like(grad_decay))
    return of_end[0], of_end[1] + of_decay[1], of_end[2] + of_decay[2], of_end[3]


# -------------------------------------------------------------------------------------------------
# gated_scan


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
    scan = Scan(x, log_f, None, theta, initial_state, cu_seqlens, mask, reverse)
    scan.check_values()
    return engine_for(engine, x).gated_scan(scan)


@gated_scan.register_fake
def _(x, log_f, theta, initial_state, cu_seqlens, mask, reverse, engine):
    return contiguous_like(x), _state_like(x, x, cu_seqlens)


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
    run = engine_for(engine, x)
    scan = Scan(x, log_f, None, theta, initial_state, cu_seqlens, mask, reverse)
    if not _has_overflowed(h):
        return run.gated_scan_backward(scan, h, grad_h, grad_final)
    scan = scan._replace(x=x.float(), gate=log_f.float())
    h, _ = run.gated_scan(scan)
    grads = run.gated_scan_backward(scan, h, grad_h.float(), grad_final)
    return grads[0].to(x.dtype), grads[1].to(log_f.dtype), *grads[2:]


@gated_scan_backward.register_fake
def _(grad_h, grad_final, x, log_f, *rest):
    return (
        contiguous_like(x),
        contiguous_like(log_f),
        _channel_like(log_f),
        contiguous_like(grad_final),
    )


@gated_scan.register_gradient(keep=(0,))
def _(arguments, kept, grads):
    *tensors, cu_seqlens, mask, reverse, engine = arguments
    return gated_scan_backward(*grads, *tensors, *kept, cu_seqlens, mask, reverse, engine)


# -------------------------------------------------------------------------------------------------
# vmap


def fold(
    function: Callable,
    overload: Any,
    info: Any,
    in_dims: tuple[int | None, ...],
    *arguments: Any,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """vmap of an operator that is called by `function`: the mapped axis joins the outer one.

    That cannot be for packed sequences, nor where each sample has its own lower bound or angles,
    nor for the gradients of these. Then the samples run one after the other.
    """
    names = [argument.name for argument in overload._schema.arguments]
    shared = ("lower_bound", "theta")
    own = any(dim is not None for name, dim in zip(names, in_dims) if name in shared)
    packed = arguments[names.index("cu_seqlens")] is not None
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
        if dim is None:
            argument = argument.expand(info.batch_size, *argument.shape)
        else:
            argument = argument.movedim(dim, 0)
        return argument.flatten(0, 1)

    outputs = function(*(folded(*triple) for triple in zip(names, arguments, in_dims)))
    return tuple(out.unflatten(0, (info.batch_size, -1)) for out in outputs), (0,) * len(outputs)


for _operator in (hgru_scan, hgru_scan_backward, hgru_carry, gated_scan, gated_scan_backward):
    _operator.register_vmap(partial(fold, _operator.overload, _operator.overload))
