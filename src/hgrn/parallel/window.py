"""The window of a short convolution: the inputs in front of a stretch, which the ranks before have.

Shape letters: B batch, T positions of this rank's stretch, C channels, W taps, N sequences that are
packed into the stretch, Q ranks before this one.
"""

import torch
from torch import Tensor, nn

from hgrn.parallel.exchange import Context, passes, sum_of_nearer


@torch.compiler.disable()  # as `scan_stretch`
def window_of_stretch(
    x: Tensor,
    state: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    context: Context,
) -> Tensor:
    """The inputs in front of a stretch x `[B, T, C]`, `[N, W - 1, C]`, oldest first.

    They are those of `state` `[N, W - 1, C]` where no rank before has them.
    """
    size = state.shape[1]
    if size == 0:
        return state
    # Only the first row continues the rank before; the later ones begin in x.
    before = state if cu_seqlens is None else state[:1]
    later = state[:0] if cu_seqlens is None else state[1:]
    if not context.is_first(reverse=False):
        before = torch.zeros_like(before)
    own, kept = last_inputs(x, size, mask, cu_seqlens)
    own = own + moved(later[-1:] if len(later) else before, kept)
    passed = kept if passes(cu_seqlens) else torch.full_like(kept, size)
    # Zeros are added on the first rank too: its part of the backward's exchange depends on them.
    return torch.cat([before + _Window.apply(own, passed, context), later])


class _Window(torch.autograd.Function):
    """The inputs in front of this rank, `[B, W - 1, C]`.

    From what each rank leaves behind, `[B, W - 1, C]`, and by how many places it moves what was
    before, `[B]`.
    """

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
    context: Context, windows: Tensor, passed: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """The windows of the ranks before this one, and by how much each has moved on the way."""
    return context.before(windows, reverse), sum_of_nearer(context.before(passed, reverse))


def moved(window: Tensor, by: Tensor) -> Tensor:
    """Windows `[..., W - 1, C]` moved by so many places `[...]`, towards the oldest where positive.

    Zeros come in.
    """
    size = window.shape[-2]
    places = torch.arange(size, device=window.device) + by.unsqueeze(-1)
    inside = (places >= 0) & (places < size)
    index = places.clamp(0, size - 1).unsqueeze(-1).expand_as(window)
    return torch.where(inside.unsqueeze(-1), window.gather(-2, index), 0)


def last_inputs(
    x: Tensor, size: int, mask: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The last `size` inputs of x `[B, T, C]` (of its last sequence), and how many there are `[B]`.

    The oldest is first; zeros stand in front where there are fewer.
    """
    batch, length = x.shape[:2]
    if length == 0:
        # Padded, so that the backward passes here as on every rank.
        zeros = torch.zeros(batch, dtype=torch.long, device=x.device)
        return nn.functional.pad(x, (0, 0, size, 0)), zeros
    begin = 0 if cu_seqlens is None else cu_seqlens[-2]
    keep = torch.arange(length, device=x.device).expand(batch, length) >= begin
    kept = (keep if mask is None else keep & mask).cumsum(1)
    count = kept[:, -1]
    # Number n of the inputs, counted from 1, is where `kept` first reaches n.
    number = count[:, None] - torch.arange(size - 1, -1, -1, device=x.device)
    index = torch.searchsorted(kept, number.clamp(min=1)).clamp(max=length - 1)
    inputs = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
    return torch.where(number[..., None] > 0, inputs, 0), count.clamp(max=size)
