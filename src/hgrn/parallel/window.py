"""The window of a short convolution: the inputs in front of a stretch, which the ranks before have.

Shape letters: B batch, T positions of this rank's stretch, C channels, W taps, Q ranks before this one in the order of travel.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hgrn.parallel.scan import behind

if TYPE_CHECKING:
    from hgrn.parallel.context import Context


class ContextWindow(torch.autograd.Function):
    """What each rank leaves behind, `[B, W - 1, C]`, and how far it moves what was before, `[B]` -> what this rank finds."""

    @staticmethod
    def forward(ctx, own, passed, context):
        message = torch.cat([passed[:, None].to(own.dtype), own.flatten(1)], dim=1)
        passed, windows = context.gather(message).split([1, message.shape[1] - 1], dim=-1)
        passed = passed.squeeze(-1).long()
        ctx.save_for_backward(passed)
        ctx.context = context
        windows = windows.unflatten(-1, own.shape[1:])
        return moved(*_before(context, windows, passed, reverse=False)).sum(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (passed,) = ctx.saved_tensors
        windows, by = _before(ctx.context, ctx.context.gather(grad), passed, reverse=True)
        return moved(windows, -by).sum(0), None, None


def _before(
    context: "Context", windows: Tensor, passed: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """The windows of the ranks before this one, and by how much each has moved on the way."""
    return context.before(windows, reverse), behind(context.before(passed, reverse))


def moved(window: Tensor, by: Tensor) -> Tensor:
    """Windows `[..., W - 1, C]` that have moved by so many places `[...]`, towards the oldest where positive; zeros come in."""
    size = window.shape[-2]
    places = torch.arange(size, device=window.device) + by.unsqueeze(-1)
    inside = (places >= 0) & (places < size)
    index = places.clamp(0, size - 1).unsqueeze(-1).expand_as(window)
    return torch.where(inside.unsqueeze(-1), window.gather(-2, index), 0)


def last_inputs(
    x: Tensor, size: int, mask: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The last `size` inputs of x `[B, T, C]` (of its last sequence), oldest first, zeros in front; and how many they are."""
    batch, length = x.shape[:2]
    positions = torch.arange(length, device=x.device)
    keep = positions.expand(batch, length) >= (0 if cu_seqlens is None else cu_seqlens[-2])
    kept = (keep if mask is None else keep & mask).cumsum(1)
    if length == 0:  # padded, so that the backward passes here as on every rank
        return nn.functional.pad(x, (0, 0, size, 0)), kept.new_zeros(batch)
    count = kept[:, -1]
    number = count[:, None] - torch.arange(
        size - 1, -1, -1, device=x.device
    )  # of each among the inputs, from 1
    index = torch.searchsorted(kept, number.clamp(min=1)).clamp(max=length - 1)
    inputs = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
    return torch.where(number[..., None] > 0, inputs, 0), count.clamp(max=size)
