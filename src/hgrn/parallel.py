"""Context parallelism: one sequence over the ranks of a group, each of which reads a stretch of it.

A stretch does to any state that enters it `h -> decay * exp(i n theta) * h + end` (`hgru_carry`; n counts the positions that
are not masked). So each rank works out its own `decay`, `n` and `end`, one all-gather hands them round, every rank puts together
the state that enters its stretch, and one scan from there is exact. The gradient that comes back into a stretch's end obeys the
same law the other way round: one more all-gather. What is sent does not depend on the length of the sequence.

Shape letters: R ranks, B batch, T positions of this rank's stretch, D channels, C = D (real state) or 2D (complex), N
sequences that are packed into the stretch, W taps of a convolution, Q ranks before this one in the order of travel.

A scan travels from the first rank to the last, a reverse scan from the last to the first. Packed sequences are cut where the
ranks meet, wherever that is: `local_cu_seqlens` says how each rank sees them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from hgrn.modules import HGRU, HGRU2d, ShortConvolution
from hgrn.ops import hgru_scan, library, reference
from hgrn.ops.functional import _check_gate, _Layout
from hgrn.ops.packing import check_cu_seqlens, sequence_ids

Group = dist.ProcessGroup | DeviceMesh

_GROUPS: dict[str, dist.ProcessGroup] = {}  # by name, which a module can hold and be copied with; a group cannot be copied


# ---------------------------------------------------------------------------------------------------------------------
# For callers


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
        raise ValueError("an HGRU2d scans a grid, which is not split over ranks; use data parallelism for this model")
    if not any(isinstance(part, HGRU) for part in layers):
        raise ValueError(f"model must have an HGRU inside, got {type(model).__name__} without one")
    for layer in layers:
        layer.context = context if context.world > 1 else None


@contextmanager
def whole_sequences(model: nn.Module) -> Iterator[None]:
    """Inside, a model that was parallelized reads whole sequences on its own again: to validate or generate on one rank."""
    layers = [part for part in model.modules() if isinstance(part, HGRU | ShortConvolution)]
    contexts = [layer.context for layer in layers]
    try:
        for layer in layers:
            layer.context = None
        yield
    finally:
        for layer, context in zip(layers, contexts):
            layer.context = context


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
        raise ValueError(f"cu_seqlens must be the boundaries [M + 1] of at least one sequence, got shape {found}")
    context, total = Context.of(group), int(cu_seqlens[-1])
    check_cu_seqlens(cu_seqlens, total)
    stretch, inner = local_stretch(total, group), cu_seqlens[1:-1]
    here = (inner >= stretch.start) & (inner < stretch.stop)
    if context.rank == context.world - 1:
        here |= inner == total  # in front of empty sequences at the very end
    ends = cu_seqlens.new_tensor([0, stretch.stop - stretch.start])
    return torch.cat([ends[:1], inner[here] - stretch.start, ends[1:]])


def next_labels(labels: Tensor, cu_seqlens: Tensor | None = None, ignored: int = -100) -> Tensor:
    """Whole sequences of labels `[B, T]`, moved up by one: to be split like the inputs, and scored as they are.

    After the split a rank would not know the label behind its last position. The last position of each sequence gets `ignored`.
    """
    following = nn.functional.pad(labels, (0, 1), value=ignored)[:, 1:]
    if cu_seqlens is None:
        return following
    sequence = sequence_ids(cu_seqlens, labels.shape[1])
    return following.masked_fill(sequence != sequence.roll(-1), ignored)


@torch.no_grad()
def last_state(state: tuple[tuple[Tensor, ...], ...], group: Group) -> tuple[tuple[Tensor, ...], ...]:
    """The state behind a sequence that is not packed, on every rank: what the last rank's model returned, without its gradient.

    Give it to the next call, and the sequence goes on.
    """
    context = Context.of(group)
    if context.world > 1:
        state = tuple(tuple(part.clone() for part in layer) for layer in state)
        for layer in state:
            for part in layer:
                dist.broadcast(part, group=_GROUPS[context.name], group_src=context.world - 1)
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
    context, options = Context.of(group), dict(cu_seqlens=cu_seqlens, mask=mask, engine=engine)
    if context.world == 1:
        return hgru_scan(candidate, forget, lower_bound, theta, initial_state, reverse=reverse, **options)
    return context.scan(candidate, forget, lower_bound, [(reverse, theta)], initial_state, **options)


# ---------------------------------------------------------------------------------------------------------------------
# What the layers call


@dataclass(frozen=True)
class Context:
    """This rank's place among those that share a sequence."""

    name: str
    rank: int
    world: int

    @classmethod
    def of(cls, group: Group) -> "Context":
        """From a process group or a device mesh of one dimension."""
        if isinstance(group, DeviceMesh):
            if group.ndim != 1:
                raise ValueError(f"group must have one dimension, got a mesh of {group.ndim}; take one, as mesh['context']")
            group = group.get_group()
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group must be a ProcessGroup or a DeviceMesh of one dimension, got {type(group).__name__}")
        _GROUPS[group.group_name] = group
        return cls(group.group_name, dist.get_rank(group), dist.get_world_size(group))

    def is_first(self, reverse: bool) -> bool:
        """Whether a scan begins on this rank."""
        return self.rank == (self.world - 1 if reverse else 0)

    def before(self, x: Tensor, reverse: bool) -> Tensor:
        """Of values of all ranks `[R, ...]` those of the ranks that a scan reads before this one, nearest last."""
        return x[self.rank + 1 :].flip(0) if reverse else x[: self.rank]

    def gather(self, x: Tensor) -> Tensor:
        """`[...]` of every rank -> `[R, ...]` on every rank."""
        gathered = x.new_empty((self.world, *x.shape))
        dist.all_gather(list(gathered), x.contiguous(), group=_GROUPS[self.name])
        return gathered

    # A compiler would drop or move an exchange whose result this rank does not need, and the others would wait: both are eager.
    @torch.compiler.disable
    def scan(
        self,
        candidate: Tensor,
        forget: Tensor,
        lower_bound: Tensor | None,
        directions: list[tuple[bool, Tensor | None]],
        initial_state: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        mask: Tensor | None = None,
        engine: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sum of the scans in all directions `(reverse, theta)`, which share messages; the final state of the first."""
        thetas = [theta for _, theta in directions]
        layout = _Layout(candidate, "candidate", 1, cu_seqlens)
        if candidate.ndim != 3:
            raise ValueError(f"candidate must have shape [B, T, C], got {tuple(candidate.shape)}")
        if cu_seqlens is not None and cu_seqlens.shape[0] < 2:
            raise ValueError("cu_seqlens must hold at least one sequence on every rank, as local_cu_seqlens makes it")
        size = _check_gate(forget, "forget", layout, thetas[0])
        initial = layout.initial(initial_state)
        *h, final = _ContextScan.apply(
            layout.canonical(candidate), layout.canonical(forget), layout.channels(lower_bound, "lower_bound", size),
            None if thetas[0] is None else torch.stack([layout.channels(theta, "theta", size) for theta in thetas]),
            None if initial is None else initial.squeeze(1), cu_seqlens, layout.mask(mask),
            tuple(reverse for reverse, _ in directions), library._choose(engine, candidate.device.type), self,
        )  # fmt: skip
        return sum(h[1:], h[0]).reshape(candidate.shape), final

    @torch.compiler.disable
    def window(self, x: Tensor, state: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        """The inputs in front of this rank's stretch x `[B, T, C]`, `[N, W - 1, C]`: `state` where no earlier rank has them."""
        if state.shape[1] == 0:
            return state
        before, later = (state, state[:0]) if cu_seqlens is None else (state[:1], state[1:])  # later ones begin in x
        if not self.is_first(reverse=False):
            before = torch.zeros_like(before)
        own, kept = _last_inputs(x, state.shape[1], mask, cu_seqlens)
        own = own + _moved(later[-1:] if len(later) else before, kept)
        passed = kept if _passes(cu_seqlens) else torch.full_like(kept, state.shape[1])
        # Zeros are added on the first rank too: its part of the backward's exchange hangs on them.
        return torch.cat([before + _ContextWindow.apply(own, passed, self), later])


# ---------------------------------------------------------------------------------------------------------------------
# The scan


class _ContextScan(torch.autograd.Function):
    """Scans of a stretch in one or two directions, in the canonical layout; states are `[N, C]`."""

    @staticmethod
    def forward(
        ctx, candidate, forget, lower_bound, thetas, initial_state, cu_seqlens, mask, directions, engine, context
    ):
        arguments = (candidate, forget, lower_bound)
        angles = (None,) * len(directions) if thetas is None else thetas.unbind(0)
        carry = reference.hgru_carry if engine == "reference" else library.hgru_carry
        scan = reference.hgru_scan if engine == "reference" else library.hgru_scan
        trailing = () if engine == "reference" else (engine,)
        counts = _counts(candidate, cu_seqlens, mask)

        starts, message = [], []
        for reverse, theta in zip(directions, angles):
            entry, exit = _edge_rows(cu_seqlens, reverse)
            decay, end = (x.squeeze(1) for x in carry(*arguments, theta, cu_seqlens, mask, reverse, *trailing))
            start, end = torch.zeros_like(end), end[exit]
            if initial_state is not None:
                start.copy_(initial_state)
                if not context.is_first(reverse):
                    start[entry] = 0
                turned = _turned(start[exit].double(), counts[exit], theta)
                end = end + (reference._double(decay[exit], theta) * turned).to(end.dtype)
            if not message:  # both directions pass through the same gates
                decay = decay[exit] if _passes(cu_seqlens) else torch.zeros_like(decay[exit])
                # In float32 a count is exact to 2^24 steps, where a rotation step by step is off by a radian itself.
                message += [decay, counts[exit].unsqueeze(-1).to(decay.dtype)]
            starts.append(start)
            message.append(end)

        decays, steps, *ends = context.gather(torch.cat(message, dim=-1)).split([part.shape[-1] for part in message], dim=-1)
        decays, steps = decays.clone(), steps.squeeze(-1).long()  # without the ends, which the backward does not need

        outputs, finals = [], []
        for reverse, theta, start, end in zip(directions, angles, starts, ends):
            if not context.is_first(reverse):
                entry, _ = _edge_rows(cu_seqlens, reverse)
                start[entry] = _arriving(*(context.before(x, reverse) for x in (end, decays, steps)), theta).to(start.dtype)
            h, final = scan(*arguments, theta, start.unsqueeze(1), cu_seqlens, mask, reverse, *trailing)
            outputs.append(h)
            finals.append(final.squeeze(1))
        ctx.save_for_backward(*arguments, thetas, cu_seqlens, mask, decays, steps, *starts, *outputs)
        ctx.directions, ctx.engine, ctx.context, ctx.has_initial = directions, engine, context, initial_state is not None
        return *outputs, finals[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        candidate, forget, lower_bound, thetas, cu_seqlens, mask, decays, steps, *saved = ctx.saved_tensors
        directions, context = ctx.directions, ctx.context
        angles = (None,) * len(directions) if thetas is None else thetas.unbind(0)
        starts, outputs = saved[: len(directions)], saved[len(directions) :]
        *grads_h, grad_final = grads
        grads_final = [grad_final, *(torch.zeros_like(start) for start in starts[1:])]

        def gradients(index: int) -> tuple[Tensor | None, ...]:
            return _scan_gradients(
                grads_h[index], grads_final[index].unsqueeze(1), candidate, forget, lower_bound, angles[index],
                starts[index].unsqueeze(1), outputs[index], cu_seqlens, mask, directions[index], ctx.engine,
            )  # fmt: skip

        # First what this rank's own loss sends back to where each scan entered; then, with what arrives from
        # the ranks behind, everything. No linear shortcut: the gates' gradients need the whole adjoint at once.
        sent = []
        for index, reverse in enumerate(directions):
            entry, _ = _edge_rows(cu_seqlens, reverse)
            sent.append(gradients(index)[4].squeeze(1)[entry])
        gathered = context.gather(torch.cat(sent, dim=-1)).split([part.shape[-1] for part in sent], dim=-1)
        results = []
        for index, (reverse, theta) in enumerate(zip(directions, angles)):
            behind = (context.before(x, not reverse) for x in (gathered[index], decays, steps))
            arriving = _arriving(*behind, None if theta is None else -theta)
            _, exit = _edge_rows(cu_seqlens, reverse)
            grads_final[index] = grads_final[index].clone()
            grads_final[index][exit] += arriving.to(grad_final.dtype)
            results.append(gradients(index))

        grad_initial = None
        if ctx.has_initial:
            own = []
            for reverse, result in zip(directions, results):
                grad, (entry, _) = result[4].squeeze(1).clone(), _edge_rows(cu_seqlens, reverse)
                if not context.is_first(reverse):
                    grad[entry] = 0
                own.append(grad)
            grad_initial = sum(own[1:], own[0])
        of_candidate, of_forget, of_bound, of_theta, _ = zip(*results)
        return (
            sum(of_candidate[1:], of_candidate[0]), sum(of_forget[1:], of_forget[0]),
            None if lower_bound is None else sum(of_bound[1:], of_bound[0]), None if thetas is None else torch.stack(of_theta),
            grad_initial, *(None,) * 5,
        )  # fmt: skip


def _scan_gradients(
    grad_h, grad_final, candidate, forget, lower_bound, theta, initial_state, h, cu_seqlens, mask, reverse, engine
):
    """Gradients of candidate, forget, lower_bound, theta and initial_state; None or zeros for what was not given."""
    inputs = (candidate, forget, lower_bound, theta, initial_state)
    if engine != "reference":
        return library.hgru_scan_backward(grad_h, grad_final, *inputs, h, cu_seqlens, mask, reverse, engine)
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        outputs = reference.hgru_scan(*leaves, cu_seqlens, mask, reverse)
    wanted = [x for x in leaves if x is not None]
    grads = iter(torch.autograd.grad(outputs, wanted, (grad_h, grad_final), materialize_grads=True))
    return tuple(None if x is None else next(grads) for x in leaves)


def _edge_rows(cu_seqlens: Tensor | None, reverse: bool) -> tuple[slice, slice]:
    """The rows of states by which a scan enters and leaves the stretch: all, or of packed sequences the first and the last."""
    if cu_seqlens is None:
        return slice(None), slice(None)
    first, last = slice(0, 1), slice(cu_seqlens.shape[0] - 2, cu_seqlens.shape[0] - 1)
    return (last, first) if reverse else (first, last)


def _passes(cu_seqlens: Tensor | None) -> bool:
    """Whether a state passes through the whole stretch: no border lies in it."""
    return cu_seqlens is None or cu_seqlens.shape[0] == 2


def _counts(x: Tensor, cu_seqlens: Tensor | None, mask: Tensor | None) -> Tensor:
    """How many positions of each sequence in x `[B, T, 1, C]` are not masked, `[N]`."""
    if cu_seqlens is None:
        return x.new_full((x.shape[0],), x.shape[1], dtype=torch.long) if mask is None else mask.sum((1, 2))
    borders = cu_seqlens.long().clamp(0, x.shape[1])
    return (borders if mask is None else nn.functional.pad(mask.flatten().cumsum(0), (1, 0))[borders]).diff()


def _turned(state: Tensor, steps: Tensor, theta: Tensor | None) -> Tensor:
    """A state `[..., C]`, float64, rotated by theta `[D]` so many times as steps `[...]` says."""
    if theta is None:
        return state
    return reference.rotate(state, (steps.unsqueeze(-1) * theta.double()).remainder(2 * math.pi))


def _arriving(states: Tensor, decays: Tensor, steps: Tensor, theta: Tensor | None) -> Tensor:
    """The sum of what has become, where they arrive, of states `[Q, B, C]` that each left one of Q stretches, nearest last.

    The state of a stretch passes through all that are nearer: gates `[Q, B, D]`, steps `[Q, B]`. In float64: it is little work.
    """
    decays, steps = decays.double(), _behind(steps)
    through = torch.cat([decays[1:], torch.ones_like(decays[:1])]).flip(0).cumprod(0).flip(0)
    return (reference._double(through, theta) * _turned(states.double(), steps, theta)).sum(0)


def _behind(counts: Tensor) -> Tensor:
    """For each of Q stretches, nearest last, the sum of the counts `[Q, ...]` of those that are nearer."""
    return torch.cat([counts[1:], torch.zeros_like(counts[:1])]).flip(0).cumsum(0).flip(0)


# ---------------------------------------------------------------------------------------------------------------------
# The window of a short convolution


class _ContextWindow(torch.autograd.Function):
    """What each rank leaves behind, `[B, W - 1, C]`, and how far it moves what was before, `[B]` -> what this rank finds."""

    @staticmethod
    def forward(ctx, own, passed, context):
        message = torch.cat([passed[:, None].to(own.dtype), own.flatten(1)], dim=1)
        passed, windows = context.gather(message).split([1, message.shape[1] - 1], dim=-1)
        passed = passed.squeeze(-1).long()
        ctx.save_for_backward(passed)
        ctx.context = context
        windows = windows.unflatten(-1, own.shape[1:])
        return _moved(*_before(context, windows, passed, reverse=False)).sum(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (passed,) = ctx.saved_tensors
        windows, by = _before(ctx.context, ctx.context.gather(grad), passed, reverse=True)
        return _moved(windows, -by).sum(0), None, None


def _before(context: Context, windows: Tensor, passed: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """The windows of the ranks before this one, and by how much each has moved on the way."""
    return context.before(windows, reverse), _behind(context.before(passed, reverse))


def _moved(window: Tensor, by: Tensor) -> Tensor:
    """Windows `[..., W - 1, C]` that have moved by so many places `[...]`, towards the oldest where positive; zeros come in."""
    size = window.shape[-2]
    places = torch.arange(size, device=window.device) + by.unsqueeze(-1)
    inside = (places >= 0) & (places < size)
    index = places.clamp(0, size - 1).unsqueeze(-1).expand_as(window)
    return torch.where(inside.unsqueeze(-1), window.gather(-2, index), 0)


def _last_inputs(x: Tensor, size: int, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """The last `size` inputs of x `[B, T, C]` (of its last sequence), oldest first, zeros in front; and how many they are."""
    batch, length = x.shape[:2]
    positions = torch.arange(length, device=x.device)
    keep = positions.expand(batch, length) >= (0 if cu_seqlens is None else cu_seqlens[-2])
    kept = (keep if mask is None else keep & mask).cumsum(1)
    if length == 0:  # padded, so that the backward passes here as on every rank
        return nn.functional.pad(x, (0, 0, size, 0)), kept.new_zeros(batch)
    count = kept[:, -1]
    number = count[:, None] - torch.arange(size - 1, -1, -1, device=x.device)  # of each among the inputs, from 1
    index = torch.searchsorted(kept, number.clamp(min=1)).clamp(max=length - 1)
    inputs = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
    return torch.where(number[..., None] > 0, inputs, 0), count.clamp(max=size)
