"""Linear maps of few rows, for decoding, where reading the weights is the time: as they are, and in 8 bits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .library import _choose, _engine
from .operator import is_listened_to, operator

_FEW = 8  # rows of x from which a matrix product is faster
_LARGE = 1 << 18  # elements of a weight from which its reading is what takes the time


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`; for few rows of x, without gradients and on a CPU, at the speed of reading the weights.

    (A matrix product of one row reads a large weight at a fraction of the bandwidth of memory.)

    Args:
        x: `[..., I]`. weight: `[O, I]`. bias: `[O]` or None.

    Returns:
        `[..., O]`.
    """
    if _suits_kernel(x, weight, bias) and _choose(None, "cpu") != "reference":
        return _engine("auto", x).linear(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], weight.shape[0])
    return F.linear(x, weight, bias)


def _suits_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        not torch.is_grad_enabled()
        and not is_listened_to((x, weight, bias))  # before the sizes: of a comparison of them a tracer would make a guard
        and x.dtype == torch.float32
        and x.numel() <= _FEW * x.shape[-1]
        and weight.numel() >= _LARGE
        and x.device.type == weight.device.type == "cpu"
        and weight.dtype == x.dtype
        and (bias is None or bias.dtype == x.dtype)
        and weight.shape[1] == x.shape[-1]  # otherwise the error is PyTorch's
        and not torch.is_autocast_enabled("cpu")
    )


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[O, I]` -> 8-bit integers `[O, I]` and a scale for each row `[O]`, float32: `weight ~ integers * scale[:, None]`.

    The largest value of a row becomes 127, so an entry is off by at most half a scale. A row of zeros has scale 1.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, engine: str | None = None) -> Tensor:
    """`x @ (weight * scale[:, None]).T + bias`, for few rows of x without ever making the weights wide in memory.

    Args:
        x: `[..., I]`, float32. weight: int8 `[O, I]`. scale: float32 `[O]`. bias: float32 `[O]` or None.
        engine: as in `hgru_scan`.

    Returns:
        `[..., O]`, float32. No gradients: it is for inference.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    out, width = weight.shape
    if x.dtype != torch.float32 or weight.dtype != torch.int8 or x.shape[-1] != width or scale.shape != (out,):
        raise ValueError(
            f"int8_linear takes float32 x [..., {width}], int8 weight [{out}, {width}] and scale [{out}], got {x.dtype} "
            f"{tuple(x.shape)}, {weight.dtype} and {tuple(scale.shape)}"
        )
    chosen = _choose(engine, x.device.type)
    rows = x.reshape(-1, width)
    if chosen == "reference" or x.device.type != "cpu" or rows.shape[0] > _FEW:
        return F.linear(x, weight.to(x.dtype) * scale[:, None], bias)
    return _int8_linear(rows, weight, scale, bias, chosen).reshape(*x.shape[:-1], out)


@operator("hgrn::int8_linear")
def _int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, engine: str) -> Tensor:
    return _engine(engine, x).int8_linear(x, weight, scale, bias)


@_int8_linear.register_fake
def _(x, weight, scale, bias, engine):
    return x.new_empty(x.shape[0], weight.shape[0])
