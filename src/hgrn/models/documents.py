"""Where documents begin in a batch, told in the ways that collators of transformers and TRL have.

Shape letters: B rows of T positions, N documents.
"""

import difflib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# What flash attention's kernels are told; the lengths follow from the boundaries.
FLASH_ATTENTION = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def boundaries(
    x: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None = None,
    position_ids: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
) -> Tensor | None:
    """Boundaries `[N + 1]` of the documents in the rows of x laid end to end; None where each row is one document.

    Of several ways the first one that is given counts: cu_seqlens (the same as cu_seq_lens_q and cu_seq_lens_k), seq_idx,
    position_ids.

    Args:
        x: `[B, T, ...]`.
        mask: bool `[B, T]`, False where there is padding, which begins no document.
        cu_seqlens, cu_seq_lens_q, cu_seq_lens_k: boundaries `[N + 1]`; they need B = 1.
        seq_idx: `[B, T]`, the number of each position's document: one begins where it changes.
        position_ids: `[B, T]` or `[1, T]`: a document begins where they do not go on by 1.
        max_length_q, max_length_k: not needed.

    Raises:
        ValueError, TypeError: a shape or dtype does not fit, or the given boundaries differ.
    """
    rows, length = x.shape[:2]
    told = dict(cu_seqlens=cu_seqlens, cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k)
    told = {name: given for name, given in told.items() if given is not None}
    if told:
        (name, first), *others = told.items()
        if rows != 1:
            raise ValueError(
                f"packed sequences need a batch of one row, [1, total], with {name}; got {rows} rows of {length}"
            )
        for other, given in others:
            if given.shape != first.shape or (
                given.device.type == "cpu" == first.device.type and given.tolist() != first.tolist()
            ):
                raise ValueError(
                    f"{name} and {other} must be the same boundaries of packed documents, got {first} and {given}"
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
    """Where a document begins, `[B, T - 1]` for all positions but the first, if its values go on by `step` from each to the next."""
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
    # Compared with the last position before it that is no padding: numbers may count padding or pass over it.
    columns = torch.arange(length, device=x.device)
    last = torch.where(mask, columns, -1).cummax(dim=1).values[:, :-1]
    places = last.clamp(min=0)
    goes_on = values[:, 1:] == values.gather(1, places) + step
    if step:
        count = torch.nn.functional.pad(breaks.cumsum(dim=1), (1, 0))
        goes_on |= count[:, 1:] == count.gather(1, places)
    return mask[:, 1:] & (last >= 0) & ~goes_on


def end_to_end(x: Tensor | None) -> Tensor | None:
    """Rows `[B, T, ...]` as one, `[1, B * T, ...]`."""
    return None if x is None else x.flatten(0, 1)[None]


def refuse_unknown(arguments: Mapping, known: Iterable[str], owner: object) -> None:
    """Raises TypeError for an argument that `forward` does not know: a misspelt boundary would let a state leak between documents."""
    known = list(known)
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(
                name, [*known, "cu_seqlens", "position_ids", "seq_idx"], n=1
            )
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(
                f"{type(owner).__name__}.forward() got an unexpected keyword argument {name!r}{hint}"
            )
