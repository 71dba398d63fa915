"""Linear maps on a CPU: many rows by the faster of PyTorch's libraries, few rows by our own kernel, and with 8-bit weights.

For few rows, as in decoding, reading the weights is the time. For many, PyTorch's own linear map of float32 calls MKL; oneDNN, which
it brings too but asks only when it compiles, adds the bias in the same pass and is faster on the processor that we have seen.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hgrn.ops.dispatch import is_listened_to, is_transformed, operator
from hgrn.ops.engines import choose, engine_for, has_kernel

_FEW = 8  # rows of x from which a matrix product is faster
_LARGE = 1 << 18  # elements of a weight from which its reading is what takes the time
_WORTHWHILE = (
    1 << 26
)  # multiplications from which the speed of a product counts more than that of its call
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, faster for float32 on a CPU; elsewhere, and where something is traced, that itself.

    For few rows of x and without gradients at the speed of reading the weights: a matrix product of one row reads a large weight at
    a fraction of the bandwidth of memory. Gradients of any order.

    Args:
        x: `[..., I]`. weight: `[O, I]`. bias: `[O]` or None.

    Returns:
        `[..., O]`.
    """
    if not _is_plain(x, weight, bias):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    out = weight.shape[0]
    if len(rows) <= _FEW:
        if (
            weight.numel() >= _LARGE
            and not torch.is_grad_enabled()
            and has_kernel("auto", "linear", "cpu")
        ):
            return engine_for("auto", x).linear(rows, weight, bias).reshape(*x.shape[:-1], out)
    elif rows.numel() * out >= _WORTHWHILE and _HAS_ONEDNN:
        return _Product.apply(rows, weight, bias).reshape(*x.shape[:-1], out)
    return F.linear(x, weight, bias)


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this is float32 on a CPU, called eagerly, with shapes that fit (otherwise the error is PyTorch's)."""
    return (
        not is_listened_to(
            (x, weight, bias)
        )  # before the sizes: of a comparison of them a tracer would make a guard
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and x.device.type == weight.device.type == "cpu"
        and x.ndim > 0
        and weight.ndim == 2
        and weight.shape[1] == x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias` of `[R, I]` and `[O, I]` by oneDNN where it is there; no gradients."""
    if not _HAS_ONEDNN:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x = None
        if needs[0]:  # with gradients enabled, or under a transform, second derivatives are wanted
            grad_x = (
                grad @ weight
                if torch.is_grad_enabled() or is_transformed()
                else product(grad, weight.T)
            )
        return grad_x, grad.T @ x if needs[1] else None, grad.sum(0) if needs[2] else None


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[O, I]` -> 8-bit integers `[O, I]` and a scale for each row `[O]`, float32: `weight ~ integers * scale[:, None]`.

    The largest value of a row becomes 127, so an entry is off by at most half a scale. A row of zeros has scale 1.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    engine: str | None = None,
) -> Tensor:
    """`x @ (weight * scale[:, None]).T + bias`, for few rows of x without ever making the weights wide in memory.

    Args:
        x: `[..., I]`, float32. weight: int8 `[O, I]`. scale: float32 `[O]`. bias: float32 `[O]` or None.
        engine: as in `hgru_scan`.

    Returns:
        `[..., O]`, float32. Where a derivative of x or bias is wanted, the weights are made wide.

    Raises:
        ValueError: shapes or dtypes do not fit. TypeError: an argument is no tensor.
    """
    for name, tensor in (("x", x), ("weight", weight), ("scale", scale)):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(tensor).__name__}; quantize_rows makes weight and scale"
            )
    if weight.ndim != 2:
        raise ValueError(
            f"weight must be int8 [O, I], got {tuple(weight.shape)}; quantize_rows makes it and its scale"
        )
    out, width = weight.shape
    if (
        x.ndim == 0
        or x.dtype != torch.float32
        or weight.dtype != torch.int8
        or x.shape[-1] != width
        or scale.shape != (out,)
    ):
        raise ValueError(
            f"int8_linear takes float32 x [..., {width}], int8 weight [{out}, {width}] and scale [{out}], got {x.dtype} "
            f"{tuple(x.shape)}, {weight.dtype} and {tuple(scale.shape)}"
        )
    chosen = choose(engine, x.device.type)
    rows = x.reshape(-1, width)
    derived = is_transformed() or (
        torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    )
    if derived or not has_kernel(chosen, "int8_linear", x.device.type) or rows.shape[0] > _FEW:
        return F.linear(x, weight.to(x.dtype) * scale[:, None], bias)
    return _int8_linear(rows, weight, scale, bias, chosen).reshape(*x.shape[:-1], out)


@operator("hgrn::int8_linear")
def _int8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, engine: str
) -> Tensor:
    return engine_for(engine, x).int8_linear(x, weight, scale, bias)


@_int8_linear.register_fake
def _(x, weight, scale, bias, engine):
    return x.new_empty(x.shape[0], weight.shape[0])
