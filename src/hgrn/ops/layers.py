"""The elementwise rest of a layer as operators: layer norm with an output gate, and the gated linear unit.

PyTorch would make a pass over memory of each activation, product and norm, and more in the backward; the CPU engine makes one of
all. Where it does not run, and for tensors so small that handing them to an operator costs more than the work, they are the
compositions below, which are also their definition. Second derivatives go through the definition.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from hgrn.ops.arguments import at_least_float32
from hgrn.ops.dispatch import is_transformed, operator
from hgrn.ops.engines import choose, engine_for, has_kernel
from hgrn.ops.operators import _through_reference, _where_needed, check_floating

ACTIVATIONS = {"identity": lambda x: x, "silu": F.silu, "sigmoid": torch.sigmoid}
_SMALL = 1 << 13  # elements


def _reference_norm(x, gate, weight, bias, eps, activation, gate_first) -> Tensor:
    wide = at_least_float32(x.dtype)
    gate = ACTIVATIONS[activation](gate.to(wide))
    parameters = (weight.to(wide), bias.to(wide), eps)
    if gate_first:
        return F.layer_norm(x.to(wide) * gate, x.shape[-1:], *parameters).to(x.dtype)
    return (F.layer_norm(x.to(wide), x.shape[-1:], *parameters) * gate).to(x.dtype)


def _reference_unit(x, activation) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


def _asks_for_operator(engine: str | None, x: Tensor) -> str | None:
    """The engine to hand to the operator, or None for the composition."""
    if engine is None and (
        x.device.type != "cpu" or (not torch.compiler.is_compiling() and x.numel() < _SMALL)
    ):
        return None
    chosen = choose(engine, x.device.type)
    return (
        chosen if has_kernel(chosen, "gated_norm", x.device.type) and not is_transformed() else None
    )


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def gated_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    activation: str = "silu",
    gate_first: bool = False,
    engine: str | None = None,
) -> Tensor:
    """`LayerNorm(x) * act(gate)`, or with gate_first `LayerNorm(x * act(gate))`: the read-out of an HGRU.

    Args:
        x, gate: `[..., C]`, of one dtype.
        weight, bias: `[C]`, of the norm over the last axis.
        eps: added to the variance.
        activation: "silu", "sigmoid" or "identity".
        engine: as in `hgru_scan`.

    Returns:
        `[..., C]` in x's dtype, computed in float32 (float64 for float64) and rounded once.

    Raises:
        ValueError: shapes, dtypes or devices differ, or the activation is unknown. TypeError: an argument is no tensor of floats.
    """
    _check_activation(activation)
    for name, tensor in (("x", x), ("gate", gate), ("weight", weight), ("bias", bias)):
        check_floating(tensor, name)
    if gate.shape != x.shape or gate.dtype != x.dtype or gate.device != x.device:
        raise ValueError(
            f"x and gate must have the same shape, dtype and device, got {tuple(x.shape)} {x.dtype} on {x.device} and "
            f"{tuple(gate.shape)} {gate.dtype} on {gate.device}"
        )
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"weight and bias must have shape ({x.shape[-1]},), one value for each channel of x, got {tuple(weight.shape)} and "
            f"{tuple(bias.shape)}"
        )
    chosen = _asks_for_operator(engine, x)
    if chosen is None:
        return _reference_norm(x, gate, weight, bias, eps, activation, gate_first)
    wide = at_least_float32(x.dtype)
    return _gated_norm(
        x, gate, weight.to(wide), bias.to(wide), eps, activation, gate_first, chosen
    )[0]


def gated_unit(x: Tensor, *, activation: str = "silu", engine: str | None = None) -> Tensor:
    """`act(gate) * up` of `x = [gate | up]`, the product inside a gated linear unit.

    Args:
        x: `[..., 2C]`.
        activation: "silu", "sigmoid" or "identity".
        engine: as in `hgru_scan`.

    Returns:
        `[..., C]`.

    Raises:
        ValueError: the number of channels is odd, or the activation is unknown. TypeError: x is no tensor of floats.
    """
    _check_activation(activation)
    check_floating(x, "x")
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ValueError(
            f"x must have an even number of channels, [gate | up], got shape {tuple(x.shape)}"
        )
    chosen = _asks_for_operator(engine, x)
    if chosen is None:
        return _reference_unit(x, activation)
    return _gated_unit(x, activation, chosen)


# ---------------------------------------------------------------------------------------------------------------------
# Registered operators


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("hgrn::gated_norm")
def _gated_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    activation: str,
    gate_first: bool,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and for the backward each row's mean and inverse deviation."""
    return engine_for(engine, x).gated_norm(x, gate, weight, bias, eps, activation, gate_first)


@_gated_norm.register_fake
def _(x, gate, weight, bias, eps, activation, gate_first, engine):
    rows = x.new_empty(x.shape[:-1], dtype=at_least_float32(x.dtype))
    return _contiguous_like(x), rows, torch.empty_like(rows)


@operator("hgrn::gated_norm_backward")
def _gated_norm_backward(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inverse: Tensor,
    activation: str,
    gate_first: bool,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gate, weight and bias."""
    return engine_for(engine, x).gated_norm_backward(
        grad, x, gate, weight, bias, mean, inverse, activation, gate_first
    )


@_gated_norm_backward.register_fake
def _(grad, x, gate, weight, bias, mean, inverse, activation, gate_first, engine):
    return (
        _contiguous_like(x),
        _contiguous_like(gate),
        torch.empty_like(weight),
        torch.empty_like(bias),
    )


@operator("hgrn::gated_unit")
def _gated_unit(x: Tensor, activation: str, engine: str) -> Tensor:
    return engine_for(engine, x).gated_unit(x, activation)


@_gated_unit.register_fake
def _(x, activation, engine):
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@operator("hgrn::gated_unit_backward")
def _gated_unit_backward(grad: Tensor, x: Tensor, activation: str, engine: str) -> Tensor:
    """The gradient of x."""
    return engine_for(engine, x).gated_unit_backward(grad, x, activation)


@_gated_unit_backward.register_fake
def _(grad, x, activation, engine):
    return _contiguous_like(x)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def _norm_setup(ctx, inputs, output):
    x, gate, weight, bias, ctx.eps, ctx.activation, ctx.gate_first, ctx.engine = inputs
    y, mean, inverse = output
    ctx.mark_non_differentiable(mean, inverse)
    ctx.save_for_backward(x, gate, weight, bias, mean, inverse)


def _norm_backward(ctx, grad, grad_mean, grad_inverse):
    x, gate, weight, bias, mean, inverse = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled() or is_transformed():
        again = partial(
            _reference_norm, eps=ctx.eps, activation=ctx.activation, gate_first=ctx.gate_first
        )
        grads = _through_reference(
            lambda *tensors: (again(*tensors),), (x, gate, weight, bias), needs, (grad,)
        )
        return _where_needed(needs, *grads)
    return _where_needed(
        needs,
        *_gated_norm_backward(
            grad, x, gate, weight, bias, mean, inverse, ctx.activation, ctx.gate_first, ctx.engine
        ),
    )


_gated_norm.register_autograd(_norm_backward, setup_context=_norm_setup)


def _unit_setup(ctx, inputs, output):
    x, ctx.activation, ctx.engine = inputs
    ctx.save_for_backward(x)


def _unit_backward(ctx, grad):
    (x,) = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled() or is_transformed():
        again = partial(_reference_unit, activation=ctx.activation)
        return _where_needed(
            needs, *_through_reference(lambda x: (again(x),), (x,), needs, (grad,))
        )
    return _where_needed(needs, _gated_unit_backward(grad, x, ctx.activation, ctx.engine))


_gated_unit.register_autograd(_unit_backward, setup_context=_unit_setup)
