"""The elementwise rest of a layer: the norm with an output gate, and the gated linear unit.

PyTorch makes a pass over memory of each activation, product and norm, and more in the backward; the
CPU engine makes one pass of all. Each operation is defined by a composition in plain PyTorch. The
composition runs where no engine has a kernel, and for tensors so small that an operator costs more
than the work. Second derivatives go through it too.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hgrn.ops.arguments import at_least_float32, check_floating
from hgrn.ops.dispatch import operator
from hgrn.ops.engines import choose, engine_for, has_kernel
from hgrn.ops.operators import contiguous_like

ACTIVATIONS = {"identity": lambda x: x, "silu": F.silu, "sigmoid": torch.sigmoid}
_SMALL = 1 << 13  # elements of x below which an operator costs more than the work


def engine_of_layer(engine: str | None, name: str, x: Tensor) -> str | None:
    """The engine whose kernel computes `name` for x, or None where plain PyTorch does.

    On a GPU only a named engine is asked: there PyTorch's own operations are fast enough.
    """
    if engine is None:
        # In this order: a compiler would make a guard of a comparison of sizes.
        small = not torch.compiler.is_compiling() and x.numel() < _SMALL
        if x.device.type != "cpu" or small:
            return None
    engine = choose(engine, x.device.type)
    return engine if has_kernel(engine, name, x.device.type) else None


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
    """`LayerNorm(x) * act(gate)`, or with gate_first `LayerNorm(x * act(gate))`: the read-out.

    Args:
        x, gate: `[..., C]`, of one dtype.
        weight, bias: `[C]`, of the norm over the last axis.
        eps: added to the variance.
        activation: "silu", "sigmoid" or "identity".
        engine: as in `hgru_scan`.

    Returns:
        `[..., C]` in x's dtype, computed in float32 (float64 for float64) and rounded once.

    Raises:
        ValueError: shapes, dtypes or devices differ, or the activation is unknown.
        TypeError: an argument is no tensor of floats.
    """
    _check_activation(activation)
    for name, tensor in (("x", x), ("gate", gate), ("weight", weight), ("bias", bias)):
        check_floating(tensor, name)
    if gate.shape != x.shape or gate.dtype != x.dtype or gate.device != x.device:
        raise ValueError(
            "x and gate must have the same shape, dtype and device, "
            f"got {tuple(x.shape)} {x.dtype} on {x.device} and "
            f"{tuple(gate.shape)} {gate.dtype} on {gate.device}"
        )
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"weight and bias must have shape ({x.shape[-1]},), one value for each channel of x, "
            f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    chosen = engine_of_layer(engine, "gated_norm", x)
    if chosen is None:
        return _compose_norm(x, gate, weight, bias, eps, activation, gate_first)
    wide = at_least_float32(x.dtype)
    parameters = (weight.to(wide), bias.to(wide), eps)
    return gated_norm_operator(x, gate, *parameters, activation, gate_first, chosen)[0]


def gated_unit(x: Tensor, *, activation: str = "silu", engine: str | None = None) -> Tensor:
    """`act(gate) * up` of `x = [gate | up]`, the product inside a gated linear unit.

    Args:
        x: `[..., 2C]`.
        activation: "silu", "sigmoid" or "identity".
        engine: as in `hgru_scan`.

    Returns:
        `[..., C]`.

    Raises:
        ValueError: the number of channels is odd, or the activation is unknown.
        TypeError: x is no tensor of floats.
    """
    _check_activation(activation)
    check_floating(x, "x")
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ValueError(
            f"x must have an even number of channels, [gate | up], got shape {tuple(x.shape)}"
        )
    chosen = engine_of_layer(engine, "gated_unit", x)
    return (
        _compose_unit(x, activation)
        if chosen is None
        else gated_unit_operator(x, activation, chosen)
    )


def _compose_norm(x, gate, weight, bias, eps, activation, gate_first) -> Tensor:
    wide = at_least_float32(x.dtype)
    gate = ACTIVATIONS[activation](gate.to(wide))
    parameters = (weight.to(wide), bias.to(wide), eps)
    if gate_first:
        return F.layer_norm(x.to(wide) * gate, x.shape[-1:], *parameters).to(x.dtype)
    return (F.layer_norm(x.to(wide), x.shape[-1:], *parameters) * gate).to(x.dtype)


def _compose_unit(x: Tensor, activation: str, engine: str = "auto") -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


@operator("hgrn::gated_norm")
def gated_norm_operator(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    activation: str,
    gate_first: bool,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and each row's mean and inverse deviation, which the backward reads."""
    return engine_for(engine, x).gated_norm(x, gate, weight, bias, eps, activation, gate_first)


@gated_norm_operator.register_fake
def _(x, gate, weight, bias, eps, activation, gate_first, engine):
    rows = x.new_empty(x.shape[:-1], dtype=at_least_float32(x.dtype))
    return contiguous_like(x), rows, torch.empty_like(rows)


@gated_norm_operator.register_composition
def _(x, gate, weight, bias, eps, activation, gate_first, engine):
    y = _compose_norm(x, gate, weight, bias, eps, activation, gate_first)
    # The other two results have no derivative, and an exported graph drops them.
    wide = at_least_float32(x.dtype)
    normed = x.detach().to(wide)
    if gate_first:
        normed = normed * ACTIVATIONS[activation](gate.detach().to(wide))
    variance, mean = torch.var_mean(normed, -1, correction=0)
    return y, mean, torch.rsqrt(variance + eps)


@operator("hgrn::gated_norm_backward")
def gated_norm_backward_operator(
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
    tensors = (x, gate, weight, bias, mean, inverse)
    return engine_for(engine, x).gated_norm_backward(grad, *tensors, activation, gate_first)


@gated_norm_backward_operator.register_fake
def _(grad, x, gate, weight, bias, mean, inverse, activation, gate_first, engine):
    return (
        contiguous_like(x),
        contiguous_like(gate),
        torch.empty_like(weight),
        torch.empty_like(bias),
    )


@gated_norm_operator.register_gradient(keep=(1, 2), constant=(1, 2))
def _(arguments, kept, grads):
    *tensors, _, activation, gate_first, engine = arguments
    return gated_norm_backward_operator(grads[0], *tensors, *kept, activation, gate_first, engine)


@operator("hgrn::gated_unit")
def gated_unit_operator(x: Tensor, activation: str, engine: str) -> Tensor:
    return engine_for(engine, x).gated_unit(x, activation)


@gated_unit_operator.register_fake
def _(x, activation, engine):
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


gated_unit_operator.register_composition(_compose_unit)


@operator("hgrn::gated_unit_backward")
def gated_unit_backward_operator(grad: Tensor, x: Tensor, activation: str, engine: str) -> Tensor:
    """The gradient of x."""
    return engine_for(engine, x).gated_unit_backward(grad, x, activation)


@gated_unit_backward_operator.register_fake
def _(grad, x, activation, engine):
    return contiguous_like(x)


@gated_unit_operator.register_gradient()
def _(arguments, kept, grads):
    return (gated_unit_backward_operator(*grads, *arguments),)
