"""`gla_scan` as matrix products: for devices without a kernel, and for derivatives of any order.

The sequence is cut into chunks. A state goes from chunk to chunk. Inside a chunk a position reads
the positions before it directly. Written out, what position i reads of position j <= i is

    y_ij = sum_k q_ik exp(log_f_{j+1,k} + ... + log_f_{i,k}) k_jk  v_j.

To make products of matrices of it, the exponential has to be split into a factor of i and a factor
of j. The usual split, exp(b_i) exp(-b_j) with running sums b, overflows where gates are small, and
loses the digits of a gate near 1 that follows a small one. We split at a place between j and i
instead: exp(sum from there to i) exp(sum from j to there). Both sums are of numbers that are not
positive, each is added up by itself, and nothing is ever subtracted. Every pair of positions gets
such a place when a chunk is halved again and again.

Shape letters as in `hgrn.ops.gla_arguments`; C positions of a chunk, M chunks.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hgrn.ops.arguments import at_least_float32
from hgrn.ops.gla_arguments import GlaScan

_CHUNK = 64


def gla_scan(scan: GlaScan) -> tuple[Tensor, Tensor]:
    """y like v, and the final state `[N, H, K, V]`; arguments as `hgrn.ops.gla_scan`."""
    if scan.cu_seqlens is not None:
        return _packed(scan, scan.cu_seqlens)
    wide = at_least_float32(scan.q.dtype)
    steps = scan.q.shape[1]
    moving = (scan.q.to(wide), scan.k.to(wide), scan.v.to(wide), scan.log_f)
    # Positions that are added keep the state and give nothing. At least one chunk.
    padding = (0, 0, 0, max(-(-steps // _CHUNK), 1) * _CHUNK - steps)
    q, k, v, log_f = (
        F.pad(x.movedim(1, 2), padding).unflatten(2, (-1, _CHUNK)) for x in moving
    )  # [B, H, M, C, *]
    y = _inside(q, k, v, log_f)

    # What enters a chunk is read with all gates up to a position; what a chunk writes has passed
    # all gates from a position on.
    reading = q * log_f.cumsum(-2).exp()
    writing = (k * _behind(log_f).exp()).mT @ v
    keep = log_f.sum(-2).exp()[..., None]
    state = scan.initial_state
    if state is None:
        state = writing.new_zeros(scan.state_shape)
    entering = []
    for chunk in range(q.shape[2]):
        entering.append(state)
        state = keep[:, :, chunk] * state + writing[:, :, chunk]
    y = y + reading @ torch.stack(entering, 2)
    y = y.flatten(2, 3)[:, :, :steps].movedim(2, 1)
    return y.to(scan.v.dtype), state


def _behind(log_f: Tensor) -> Tensor:
    """The sum of all that follow a position, along the last axis but one."""
    from_here = log_f.flip(-2).cumsum(-2).flip(-2)
    return F.pad(from_here[..., 1:, :], (0, 0, 0, 1))


def _inside(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> Tensor:
    """What the positions of a chunk read of each other, `[..., C, *]` -> `[..., C, V]`."""
    y = (q * k).sum(-1, keepdim=True) * v  # of themselves
    half = 1
    while half < q.shape[-2]:
        # In every block of 2 * half positions the later half reads the earlier one.
        q_late = q.unflatten(-2, (-1, 2, half))[..., 1, :, :]
        gates = log_f.unflatten(-2, (-1, 2, half))
        early = (x.unflatten(-2, (-1, 2, half))[..., 0, :, :] for x in (k, v))
        k_early, v_early = early
        reading = q_late * gates[..., 1, :, :].cumsum(-2).exp()
        written = k_early * _behind(gates[..., 0, :, :]).exp()
        late = (reading @ written.mT) @ v_early
        y = y + torch.stack([torch.zeros_like(late), late], -3).flatten(-4, -2)
        half *= 2
    return y


def _packed(scan: GlaScan, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Packed sequences, each in a row of its own, with padding behind the shorter ones."""
    starts = cu_seqlens[:-1].long()
    lengths = cu_seqlens.diff().long()
    longest = int(lengths.max()) if scan.sequences else 0
    places = torch.arange(longest, device=cu_seqlens.device)
    kept = places < lengths[:, None]
    total = scan.q.shape[1]
    rows = (starts[:, None] + places).clamp(max=max(total - 1, 0))

    def padded(x: Tensor) -> Tensor:
        return torch.where(kept[..., None, None], x[0][rows], 0)

    q, k, v, log_f = (padded(x) for x in (scan.q, scan.k, scan.v, scan.log_f))
    y, final = gla_scan(GlaScan(q, k, v, log_f, scan.initial_state, None))
    return y[kept][None], final
