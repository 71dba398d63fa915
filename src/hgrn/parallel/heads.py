"""The scan of a stretch for HGRN2, whose state is a matrix in each head.

A stretch does to any state that enters it `S -> Diag(decay) S + end`, with decay the product of its
gates. So each rank finds its `end` by a scan from zero, and one all-gather hands all of them round.
Each rank then puts together the state that enters its stretch, and a second scan from there is
exact. All parts are differentiable, so only the gather needs a backward of its own. No message
depends on the length of the sequence.

Shape letters: R ranks, Q ranks before this one, B batch, T positions of this rank's stretch, H
heads, K keys, V values, N sequences that are packed into the stretch.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from hgrn.ops import gla_scan
from hgrn.ops.arguments import at_least_float32
from hgrn.parallel.exchange import GROUPS, Context, passes


@torch.compiler.disable()  # as `scan_stretch`
def heads_of_stretch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None = None,
    *,
    context: Context,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`gla_scan` on a stretch; arguments and results as `hgrn.modules.outer.OuterScan`.

    initial_state enters where its sequence begins, as in `parallelize`.
    """
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, *q.shape[2:], v.shape[-1])
    start = initial_state
    if start is None:
        start = q.new_zeros(shape, dtype=at_least_float32(q.dtype))
    # Of packed sequences the first row continues the rank before, and the last one goes on.
    entering = slice(None) if cu_seqlens is None else slice(0, 1)
    leaving = slice(None) if cu_seqlens is None else slice(sequences - 1, sequences)
    if not context.is_first(reverse=False):
        kept = torch.ones(sequences, 1, 1, 1, dtype=torch.bool, device=q.device)
        kept[entering] = False
        start = torch.where(kept, start, 0)

    _, end = gla_scan(q, k, v, log_f, start, mask=mask, cu_seqlens=cu_seqlens)
    gates = log_f if mask is None else torch.where(mask[..., None, None], log_f, 0)
    decay = gates.sum(1).exp()
    if not passes(cu_seqlens):
        decay = torch.zeros_like(decay)
    message = torch.cat([decay.to(end.dtype)[..., None], end[leaving]], dim=-1)
    gathered = context.before(_Gather.apply(message, context), reverse=False)
    arriving = _arriving(gathered.double()).to(start.dtype)
    # On the first rank these are zeros. It adds them too: then every rank has a part in the
    # exchange of the backward.
    start = torch.cat([start[entering] + arriving, start[len(arriving) :]])
    return gla_scan(q, k, v, log_f, start, mask=mask, cu_seqlens=cu_seqlens)


def _arriving(before: Tensor) -> Tensor:
    """The state that enters, from decays and ends `[Q, B, H, K, 1 + V]` of the ranks before."""
    decays = before[..., :1]
    ends = before[..., 1:]
    through = torch.cat([decays[1:], torch.ones_like(decays[:1])]).flip(0).cumprod(0).flip(0)
    return (through * ends).sum(0)


class _Gather(torch.autograd.Function):
    """`[...]` of every rank -> `[R, ...]` on every rank, and gradients the other way."""

    @staticmethod
    def forward(ctx, x, context):
        ctx.context = context
        return context.gather(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        context = ctx.context
        grad = grad.contiguous()
        dist.all_reduce(grad, group=GROUPS[context.name])
        return grad[context.rank], None
