"""Context parallelism: one sequence over the ranks of a group, each of which reads a stretch of it.

A stretch does to any state that enters it `h -> decay * exp(i n theta) * h + end` (`hgru_carry`; n counts the positions that
are not masked). So each rank works out its own `decay`, `n` and `end`, one all-gather hands them round, every rank puts together
the state that enters its stretch, and one scan from there is exact. The gradient that comes back into a stretch's end obeys the
same law the other way round: one more all-gather. What is sent does not depend on the length of the sequence.

Shape letters: R ranks, B batch, T positions of this rank's stretch, C channels of a state, N sequences that are packed into the
stretch, M sequences in all.

A scan travels from the first rank to the last, a reverse scan from the last to the first. Packed sequences are cut where the
ranks meet, wherever that is: `local_cu_seqlens` says how each rank sees them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hgrn.modules import HGRU, HGRU2d, ShortConvolution
from hgrn.ops import hgru_scan
from hgrn.ops.packing import check_cu_seqlens, next_labels
from hgrn.parallel.context import GROUPS, Context, Group


def parallelize(model: nn.Module, group: Group) -> None:
    """Make every HGRU and ShortConvolution inside `model` read its input as one stretch of a sequence split over `group`.

    Afterwards every call and every backward pass is one of all ranks (but in `whole_sequences`): each gives its own stretch
    (`local_stretch`), in the order of the ranks, with a mask of that stretch and, for packed sequences, `local_cu_seqlens`.
    Outputs and gradients of the inputs are those of the stretch. The gradients of the parameters are this rank's part: their sum
    over the ranks is the gradient of the sum of the ranks' losses. So each rank's loss is its sum over the count of all ranks,
    with labels that were shifted before they were split (`next_labels`).

    A `state` that is given enters where its sequence begins: on the first rank, and in the rows of sequences that begin in a
    stretch; a row that continues one of the rank before takes that one's state instead. The state that is returned is the one
    after this rank's last position, so the last rank's is the sequence's (`last_state`). torch.compile breaks its graph at every
    scan and takes no `fullgraph=True`.

    Args:
        model: any module; modules inside that are neither HGRU nor ShortConvolution must treat each position on its own.
        group: a process group, or a device mesh of one dimension. A group of one rank changes nothing.

    Raises:
        ValueError: the model has no HGRU, or one that scans a grid.
        TypeError: group is neither.
    """
    context = Context.of(group)
    layers = [part for part in model.modules() if isinstance(part, HGRU | ShortConvolution)]
    if any(isinstance(part, HGRU2d) for part in layers):
        raise ValueError(
            "an HGRU2d scans a grid, which is not split over ranks; use data parallelism for this model"
        )
    if not any(isinstance(part, HGRU) for part in layers):
        raise ValueError(f"model must have an HGRU inside, got {type(model).__name__} without one")
    for layer in layers:
        vars(layer).pop(_hook(layer), None)
        if context.world > 1:
            exchange = context.scan if isinstance(layer, HGRU) else context.window
            setattr(layer, _hook(layer), exchange)


def _hook(layer: HGRU | ShortConvolution) -> str:
    """The attribute of a layer that holds its exchange with other ranks; without it the class's own is used."""
    return "scan" if isinstance(layer, HGRU) else "halo"


@contextmanager
def whole_sequences(model: nn.Module) -> Iterator[None]:
    """Inside, a model that was parallelized reads whole sequences on its own again: to validate or generate on one rank."""
    layers = [part for part in model.modules() if isinstance(part, HGRU | ShortConvolution)]
    exchanges = [vars(layer).pop(_hook(layer), None) for layer in layers]
    try:
        yield
    finally:
        for layer, exchange in zip(layers, exchanges):
            if exchange is not None:
                setattr(layer, _hook(layer), exchange)


def local_stretch(length: int, group: Group) -> slice:
    """This rank's part of a time axis of `length`: as even as can be, the first `length % R` ranks one longer.

    Other cuts work as well, as long as every rank knows its own; `local_cu_seqlens` uses this one.
    """
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    context = Context.of(group)
    short, longer = divmod(length, context.world)
    start = context.rank * short + min(context.rank, longer)
    return slice(start, start + short + (context.rank < longer))


def local_cu_seqlens(cu_seqlens: Tensor, group: Group) -> Tensor:
    """Boundaries of packed sequences on the whole time axis `[M + 1]` -> those of this rank's `local_stretch`, `[N + 1]`.

    Row 0 of every rank but the first continues the last row of the rank before. A border that lies on the cut belongs to the
    rank behind it, whose row 0 is then empty: so whether a sequence continues can be read off, and every border is on one rank.
    The values are read: best on CPU, before they go to the device. Raises ValueError if they are no boundaries.
    """
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        found = tuple(cu_seqlens.shape)
        raise ValueError(
            f"cu_seqlens must be the boundaries [M + 1] of at least one sequence, got shape {found}"
        )
    context = Context.of(group)
    total = int(cu_seqlens[-1])
    check_cu_seqlens(cu_seqlens, total)
    stretch = local_stretch(total, group)
    inner = cu_seqlens[1:-1]
    here = (inner >= stretch.start) & (inner < stretch.stop)
    if context.rank == context.world - 1:
        here |= inner == total  # in front of empty sequences at the very end
    ends = cu_seqlens.new_tensor([0, stretch.stop - stretch.start])
    return torch.cat([ends[:1], inner[here] - stretch.start, ends[1:]])


@torch.no_grad()
def last_state(
    state: tuple[tuple[Tensor, ...], ...], group: Group
) -> tuple[tuple[Tensor, ...], ...]:
    """The state behind a sequence that is not packed, on every rank: what the last rank's model returned, without its gradient.

    Give it to the next call, and the sequence goes on.
    """
    context = Context.of(group)
    if context.world > 1:
        state = tuple(tuple(part.clone() for part in layer) for layer in state)
        for layer in state:
            for part in layer:
                dist.broadcast(part, group=GROUPS[context.name], group_src=context.world - 1)
    return state


def context_scan(
    candidate: Tensor,
    forget: Tensor,
    lower_bound: Tensor | None = None,
    theta: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    group: Group,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`hgru_scan` of one sequence that is split over the ranks of `group`; every rank calls it with its stretch `[B, T, C]`.

    initial_state, cu_seqlens and the final state are as in `parallelize`. With `reverse` the last rank is the first to be read.
    Second derivatives raise an error.
    """
    context = Context.of(group)
    options = dict(cu_seqlens=cu_seqlens, mask=mask, engine=engine)
    if context.world == 1:
        return hgru_scan(
            candidate, forget, lower_bound, theta, initial_state, reverse=reverse, **options
        )
    return context.scan(
        candidate, forget, lower_bound, [(reverse, theta)], initial_state, **options
    )
