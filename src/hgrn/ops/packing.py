"""Where sequences begin and end: the one definition of masks, lengths and packed boundaries.

There are two ways to put sequences of different lengths into one tensor:
- padded: `[B, T, ...]` with a boolean mask `[B, T]`, False where there is no input (at either end,
  or inside);
- packed: `[1, total, ...]` with boundaries `cu_seqlens [N + 1]`; sequence n is at the positions
  `cu_seqlens[n] : cu_seqlens[n + 1]`.
"""

from itertools import pairwise

import torch
from torch import Tensor


def check_boundaries(cu_seqlens: Tensor) -> None:
    """Raises TypeError or ValueError unless it is a 1-d tensor of integers."""
    rule = "cu_seqlens must be a 1-d int32 or int64 tensor of N + 1 boundaries"
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(
            f"{rule}, got {type(cu_seqlens).__name__}; torch.as_tensor(cu_seqlens) makes one"
        )
    if (
        cu_seqlens.dtype not in (torch.int32, torch.int64)
        or cu_seqlens.ndim != 1
        or cu_seqlens.shape[0] < 1
    ):
        raise ValueError(f"{rule}, got {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}")


def check_cu_seqlens(cu_seqlens: Tensor, total: int) -> None:
    """Raises TypeError or ValueError unless the boundaries rise from 0 to `total`; they may repeat.

    The values are read on a CPU only: to read them on a GPU would be to wait for it.
    """
    check_boundaries(cu_seqlens)
    if cu_seqlens.device.type != "cpu":
        return
    values = cu_seqlens.tolist()
    if values[0] == 0 and values[-1] == total and all(a <= b for a, b in pairwise(values)):
        return
    shown = values if len(values) <= 12 else [*values[:6], "...", *values[-6:]]
    raise ValueError(
        "cu_seqlens must start at 0, never fall, and end at the number of packed positions "
        f"({total}), got {shown}; it is the cumulative sum of the sequence lengths with a 0 in "
        "front (hgrn.ops.packing.lengths_to_cu_seqlens)"
    )


def lengths_to_cu_seqlens(lengths: Tensor) -> Tensor:
    """Sequence lengths `[N]` -> boundaries `[N + 1]`, int32."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """Sequence lengths `[N]` -> mask `[N, size]`, True at the first `lengths[n]` of row n."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(-1)


def sequence_ids(cu_seqlens: Tensor, total: int) -> Tensor:
    """Boundaries `[N + 1]` -> for each of `total` positions the number of its sequence, int64."""
    positions = torch.arange(total, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    # To the right of equal boundaries: the sequence between them is empty.
    return torch.searchsorted(cu_seqlens[1:].contiguous(), positions, right=True)


def next_labels(labels: Tensor, cu_seqlens: Tensor | None = None, ignored: int = -100) -> Tensor:
    """Labels `[B, T]` moved up by one: position t gets label t + 1.

    A position gets `ignored` where the next one belongs to another sequence, or does not exist.
    """
    following = torch.nn.functional.pad(labels, (0, 1), value=ignored)[:, 1:]
    if cu_seqlens is None:
        return following
    sequence = sequence_ids(cu_seqlens, labels.shape[1])
    return following.masked_fill(sequence != torch.roll(sequence, -1), ignored)
