"""What a program calls to split sequences over the ranks of a group.

Shape letters: R ranks, B batch, T positions of this rank's stretch, C channels of a state, N
sequences that are packed into the stretch, M sequences in all.

Packed sequences are cut where the ranks meet, wherever that is; `local_cu_seqlens` says how each
rank sees them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hgrn.modules import Block, Mixer
from hgrn.modules.directions import scan_directions
from hgrn.modules.outer import scan_heads
from hgrn.modules.short_conv import own_halo
from hgrn.ops import hgru_scan
from hgrn.ops.packing import check_cu_seqlens
from hgrn.parallel.exchange import Context, Group
from hgrn.parallel.heads import heads_of_stretch
from hgrn.parallel.scan import scan_stretch
from hgrn.parallel.window import window_of_stretch


def parallelize(model: nn.Module, group: Group) -> None:
    """Makes every layer of `model` read its input as one stretch of a sequence split over `group`.

    Afterwards every call and every backward pass is one of all ranks (except in `whole_sequences`).
    Each rank gives its own stretch (`local_stretch`), in the order of the ranks, with a mask of
    that stretch and, for packed sequences, `local_cu_seqlens`. Outputs and gradients of the inputs
    are those of the stretch.

    The gradients of the parameters are this rank's part: their sum over the ranks is the gradient
    of the sum of the ranks' losses. So each rank's loss is its sum divided by the count of all
    ranks, with labels that were shifted before they were split (`next_labels`).

    A `state` that is given enters where its sequence begins: on the first rank, and in the rows of
    sequences that begin in a stretch. A row that continues the rank before takes that rank's state
    instead. The returned state is the one after this rank's last position, so the state of the
    sequence is the last rank's (`last_state`). torch.compile breaks its graph at every scan, so
    `fullgraph=True` fails.

    Args:
        model: any module. Its token mixers must say that they can be split (`Mixer.why_not`). All
            other modules must treat each position on its own.
        group: a process group, or a device mesh of one dimension. A group of one rank changes
            nothing.

    Raises:
        ValueError: the model has no token mixer, or one that cannot be split.
        TypeError: group is neither.
    """
    context = Context.of(group)
    _check(model)
    for layer, name in _hooks(model):
        vars(layer).pop(name, None)
        if context.world > 1:
            function = _STRETCHES[getattr(layer, name)]
            setattr(layer, name, partial(function, context=context))


# What looks at other positions in a layer, and what takes its place on a stretch.
_STRETCHES: dict[Callable, Callable] = {
    scan_directions: scan_stretch,
    scan_heads: heads_of_stretch,
    own_halo: window_of_stretch,
}


def _hooks(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The modules inside that look at other positions, and the attributes by which they do."""
    found = []
    for part in model.modules():
        for name in ("scan", "halo"):
            # The class has the function that is replaced; the module perhaps its replacement.
            if getattr(type(part), name, None) in _STRETCHES:
                found.append((part, name))
    return found


def _check(model: nn.Module) -> None:
    """Raises ValueError unless all token mixers inside can read a stretch."""
    mixers = 0
    for name, part in model.named_modules():
        if isinstance(part, Block) and not isinstance(part.mixer, Mixer):
            kind = type(part.mixer).__name__
            raise ValueError(
                f"{name}.mixer is a {kind}, which is no hgrn.modules.Mixer and does not say how to "
                "read a sequence that is split over ranks; use data parallelism for this model"
            )
        if isinstance(part, Mixer):
            mixers += 1
            if reason := part.why_not("split"):
                where = f"{name}: " if name else ""
                raise ValueError(f"{where}{reason}; use data parallelism for this model")
    if not mixers:
        raise ValueError(f"model must have an HGRU inside, got {type(model).__name__} without one")


@contextmanager
def whole_sequences(model: nn.Module) -> Iterator[None]:
    """Inside, a model that was parallelized reads whole sequences without the other ranks.

    It is for validating or generating on one rank.
    """
    hooks = _hooks(model)
    exchanges = [vars(layer).pop(name, None) for layer, name in hooks]
    try:
        yield
    finally:
        for (layer, name), exchange in zip(hooks, exchanges):
            if exchange is not None:
                setattr(layer, name, exchange)


def local_stretch(length: int, group: Group) -> slice:
    """This rank's part of a time axis of `length`, as even as can be.

    The first `length % R` ranks have one position more. Other cuts work as well, as long as every
    rank knows its own; `local_cu_seqlens` uses this one.

    Raises:
        ValueError: length is negative.
    """
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    context = Context.of(group)
    short, longer = divmod(length, context.world)
    start = context.rank * short + min(context.rank, longer)
    return slice(start, start + short + (context.rank < longer))


def local_cu_seqlens(cu_seqlens: Tensor, group: Group) -> Tensor:
    """Boundaries on the whole time axis `[M + 1]` -> those of this rank's stretch `[N + 1]`.

    The stretch is the one of `local_stretch`.

    Row 0 of every rank but the first continues the last row of the rank before. A boundary exactly
    on a cut belongs to the later rank, whose row 0 is then empty. So every boundary is on one rank,
    and an empty row 0 means that the sequence before has ended.

    The values are read, which is best done on a CPU before they go to the device.

    Raises:
        ValueError: they are no boundaries.
    """
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            "cu_seqlens must be the boundaries [M + 1] of at least one sequence, "
            f"got shape {tuple(cu_seqlens.shape)}"
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
    """The state after a sequence that is not packed, on every rank: the one the last rank returned.

    It has no gradient. Give it to the next call, and the sequence goes on.
    """
    context = Context.of(group)
    if context.world > 1:
        state = tuple(tuple(part.clone() for part in layer) for layer in state)
        for layer in state:
            for part in layer:
                context.broadcast_last(part)
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
    """`hgru_scan` of one sequence that is split over the ranks of `group`, for layers of your own.

    Every rank calls it with its stretch `[B, T, C]`. initial_state, cu_seqlens and the final state
    are as in `parallelize`. With `reverse` the last rank is the first to be read. Second
    derivatives raise an error.

    Args:
        group: a process group, or a device mesh of one dimension.
        The rest is as in `hgru_scan`.

    Returns:
        h like candidate, and the state after this rank's stretch, `[B, C]`, `[N, C]` if packed.

    Raises:
        ValueError, TypeError: as `hgru_scan`, or group is neither.
    """
    context = Context.of(group)
    if context.world == 1:
        return hgru_scan(
            candidate,
            forget,
            lower_bound,
            theta,
            initial_state,
            reverse=reverse,
            cu_seqlens=cu_seqlens,
            mask=mask,
            engine=engine,
        )
    return scan_stretch(
        candidate,
        forget,
        lower_bound,
        [(reverse, theta)],
        initial_state,
        context=context,
        cu_seqlens=cu_seqlens,
        mask=mask,
        engine=engine,
    )
