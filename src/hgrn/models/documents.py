"""Where documents begin in a batch, in all the ways in which collators say it.

Shape letters: B rows of T positions, N documents.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hgrn.errors import near

# Arguments for the kernels of flash attention. The lengths follow from the boundaries.
FLASH_ATTENTION = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# All arguments that say where documents begin.
PACKING = ("cu_seqlens", "position_ids", "seq_idx", *FLASH_ATTENTION)


def boundaries(
    x: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None = None,
    position_ids: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
) -> Tensor | None:
    """Boundaries `[N + 1]` of the documents in x, its rows laid end to end, or None.

    None means that each row is one document. If several arguments say it, the first of these
    counts: cu_seqlens (or cu_seq_lens_q, cu_seq_lens_k), seq_idx, position_ids.

    Args:
        x: `[B, T, ...]`.
        mask: bool `[B, T]`, False where there is padding. No document begins there.
        cu_seqlens, cu_seq_lens_q, cu_seq_lens_k: boundaries `[N + 1]`; they need B = 1.
        seq_idx: `[B, T]`, the number of each position's document: one begins where it changes.
        position_ids: `[B, T]` or `[1, T]`; a document begins where they do not go on by 1.
        max_length_q, max_length_k: not needed.

    Raises:
        ValueError, TypeError: a shape or dtype does not fit, or the given boundaries differ.
    """
    rows, length = x.shape[:2]
    named = dict(cu_seqlens=cu_seqlens, cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k)
    given = {name: value for name, value in named.items() if value is not None}
    if given:
        (name, first), *others = given.items()
        if rows != 1:
            raise ValueError(
                f"packed sequences need a batch of one row, [1, total], with {name}; got {rows} "
                f"rows of {length}"
            )
        for other, value in others:
            # Values on a GPU are not compared, which would wait for it.
            on_cpu = value.device.type == first.device.type == "cpu"
            if value.shape != first.shape or (on_cpu and value.tolist() != first.tolist()):
                raise ValueError(
                    f"{name} and {other} must be the same boundaries of packed documents, got "
                    f"{first} and {value}"
                )
        return first
    if length == 1:
        return None
    if seq_idx is not None:
        begins = _begins("seq_idx", seq_idx, x, mask, step=0)
    elif position_ids is not None:
        begins = _begins("position_ids", position_ids, x, mask, step=1)
    else:
        return None
    if not begins.any():
        return None
    first = torch.ones(rows, 1, dtype=torch.bool, device=x.device)
    starts = torch.cat([first, begins], dim=1).flatten().nonzero().flatten()
    return torch.nn.functional.pad(starts, (0, 1), value=rows * length)


def _begins(name: str, values: Tensor, x: Tensor, mask: Tensor | None, step: int) -> Tensor:
    """Where values do not go on by `step`, so that a document begins: `[B, T - 1]`."""
    rows, length = x.shape[:2]
    if values.is_floating_point() or values.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {values.dtype}")
    if values.shape not in {(rows, length), (1, length)}:
        raise ValueError(
            f"{name} must have shape [{rows}, {length}] or [1, {length}], got {tuple(values.shape)}"
        )
    values = values.to(x.device).expand(rows, length)
    breaks = values[:, 1:] != values[:, :-1] + step
    if mask is None:
        return breaks
    # With padding, compare each position with the last real one before it. The numbers may have
    # gone on over the padding in between or stood still: both are the same document.
    columns = torch.arange(length, device=x.device)
    last = torch.where(mask, columns, -1).cummax(dim=1).values[:, :-1]
    places = last.clamp(min=0)
    goes_on = values[:, 1:] == values.gather(1, places) + step
    if step:
        count = torch.nn.functional.pad(breaks.cumsum(dim=1), (1, 0))
        goes_on |= count[:, 1:] == count.gather(1, places)
    return mask[:, 1:] & (last >= 0) & ~goes_on


def end_to_end(x: Tensor) -> Tensor:
    """Rows `[B, T, ...]` as one, `[1, B * T, ...]`."""
    return x.flatten(0, 1)[None]


def refuse_unknown(arguments: Mapping[str, object], known: Iterable[str], owner: object) -> None:
    """Raise TypeError for an unknown argument: a misspelt boundary would let a state leak."""
    known = list(known)
    for name in arguments:
        if name not in known:
            hint = near(name, {*known, *PACKING})
            raise TypeError(
                f"{type(owner).__name__}.forward() got an unexpected keyword argument "
                f"{name!r}{hint}"
            )
