"""The scan of a stretch: its carry, one exchange, one scan from the state that enters; and back.

A stretch does to any state that enters it `h -> decay * exp(i n theta) * h + end` (`hgru_carry`; n
counts the positions that are not masked). So each rank computes its `decay`, `n` and `end`, and one
all-gather hands them round. Each rank then puts together the state that enters its stretch, and one
scan from there is exact. The gradient that arrives at a stretch's end obeys the same law the other
way round, which takes one more all-gather. No message depends on the length of the sequence.

A scan travels from the first rank to the last, a reverse scan from the last to the first.

Shape letters: B batch, T positions of this rank's stretch, N sequences that are packed into the
stretch, D channels, C = D (real state) or 2D (complex), Q ranks before this one as the scan
travels.
"""

import math

import torch
from torch import Tensor, nn

from hgrn.ops import operators, reference
from hgrn.ops.arguments import Layout, Scan
from hgrn.ops.engines import choose
from hgrn.parallel.exchange import Context, passes, sum_of_nearer


# A compiler would drop or move an exchange whose result this rank does not need, and the other
# ranks would wait for it.
@torch.compiler.disable()
def scan_stretch(
    candidate: Tensor,
    forget: Tensor,
    lower_bound: Tensor | None,
    directions: list[tuple[bool, Tensor | None]],
    initial_state: Tensor | None = None,
    *,
    context: Context,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`hgru_scan` on a stretch `[B, T, C]`, in one or two directions, which share messages.

    Args:
        directions: `(reverse, theta)` of each scan.
        The rest is as in `hgru_scan`; initial_state has a row for each sequence of the stretch.

    Returns:
        The sum of the scans, like candidate, and the final state of the first, `[N, C]`.

    Raises:
        ValueError, TypeError: as `hgru_scan`; or this rank has no sequence.
    """
    layout = Layout(candidate, "candidate", 1, cu_seqlens)
    if candidate.ndim != 3:
        raise ValueError(f"candidate must have shape [B, T, C], got {tuple(candidate.shape)}")
    if layout.sequences == 0 and cu_seqlens is not None:
        raise ValueError(
            "cu_seqlens must hold at least one sequence on every rank, as local_cu_seqlens makes it"
        )
    scans = [
        layout.scan(forget, "forget", lower_bound, theta, initial_state, mask, reverse)
        for reverse, theta in directions
    ]
    first = scans[0]
    angles = [scan.theta for scan in scans if scan.theta is not None]
    *h, final = _StretchScan.apply(
        first.x,
        first.gate,
        first.lower_bound,
        torch.stack(angles) if angles else None,
        None if first.initial_state is None else first.initial_state.squeeze(1),
        first.cu_seqlens,
        first.mask,
        tuple(scan.reverse for scan in scans),
        choose(engine, candidate.device.type),
        context,
    )
    return sum(h[1:], h[0]).reshape(candidate.shape), final


class _StretchScan(torch.autograd.Function):
    """The scans in the canonical layout, thetas `[directions, D]`, states `[N, C]`."""

    @staticmethod
    def forward(
        ctx,
        x,
        gate,
        lower_bound,
        thetas,
        initial_state,
        cu_seqlens,
        mask,
        directions,
        engine,
        context,
    ):
        tensors = (x, gate, lower_bound, thetas, cu_seqlens, mask)
        scans = _scans(*tensors, directions)
        counts = _counts(x, cu_seqlens, mask)

        # What this stretch does to a state that enters, and where a given initial state goes.
        starts = []
        message = []
        for scan in scans:
            entry, exit = _edge_rows(cu_seqlens, scan.reverse)
            decay, end = operators.hgru_carry(*scan[:4], *scan[5:], engine)
            decay = decay.squeeze(1)
            end = end.squeeze(1)
            start = torch.zeros_like(end)
            end = end[exit]
            if initial_state is not None:
                start.copy_(initial_state)
                if not context.is_first(scan.reverse):
                    start[entry] = 0
                turned = _turned(start[exit].double(), counts[exit], scan.theta)
                end = end + (reference.doubled(decay[exit], scan.theta) * turned).to(end.dtype)
            if not message:  # both directions pass through the same gates
                decay = decay[exit] if passes(cu_seqlens) else torch.zeros_like(decay[exit])
                # float32 counts exactly up to 2^24 steps; by then a rotation step by step is off by
                # a radian itself.
                message += [decay, counts[exit].unsqueeze(-1).to(decay.dtype)]
            starts.append(start)
            message.append(end)

        sizes = [part.shape[-1] for part in message]
        gathered = context.gather(torch.cat(message, dim=-1))
        decays, steps, *ends = gathered.split(sizes, dim=-1)
        # Copies, so that the ends, which the backward does not need, can be freed.
        decays = decays.clone()
        steps = steps.squeeze(-1).long()

        # From the states that arrive, the whole scan.
        outputs = []
        finals = []
        for scan, start, end in zip(scans, starts, ends):
            if not context.is_first(scan.reverse):
                entry, _ = _edge_rows(cu_seqlens, scan.reverse)
                states, gates, turns = (
                    context.before(part, scan.reverse) for part in (end, decays, steps)
                )
                start[entry] = _arriving(states, gates, turns, scan.theta).to(start.dtype)
            scan = scan._replace(initial_state=start.unsqueeze(1))
            h, final = operators.hgru_scan(*scan, engine)
            outputs.append(h)
            finals.append(final.squeeze(1))

        ctx.save_for_backward(*tensors, decays, steps, *starts, *outputs)
        ctx.directions = directions
        ctx.engine = engine
        ctx.context = context
        ctx.has_initial = initial_state is not None
        return *outputs, finals[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        saved = ctx.saved_tensors  # read once: gradient checkpointing gives them once
        x, gate, lower_bound, thetas, cu_seqlens, mask, decays, steps, *states = saved
        context = ctx.context
        number = len(ctx.directions)
        scans = _scans(x, gate, lower_bound, thetas, cu_seqlens, mask, ctx.directions)
        scans = [
            scan._replace(initial_state=start.unsqueeze(1))
            for scan, start in zip(scans, states[:number])
        ]
        outputs = states[number:]
        *grads_h, grad_final = grads
        # Only the first direction's final state was returned.
        grads_final = [grad_final, *(torch.zeros_like(start) for start in states[1:number])]

        def gradients(index: int) -> tuple[Tensor, ...]:
            scan = scans[index]
            return operators.hgru_scan_backward(
                grads_h[index],
                grads_final[index].unsqueeze(1),
                *scan[:5],
                outputs[index],
                *scan[5:],
                ctx.engine,
            )

        # First, what this rank's own loss sends back to where each scan entered.
        sent = []
        for index, scan in enumerate(scans):
            entry, _ = _edge_rows(cu_seqlens, scan.reverse)
            sent.append(gradients(index)[4].squeeze(1)[entry])
        sizes = [part.shape[-1] for part in sent]
        gathered = context.gather(torch.cat(sent, dim=-1)).split(sizes, dim=-1)

        # Then everything, with what arrives from the ranks behind. There is no linear shortcut: the
        # gates' gradients need the whole adjoint at once.
        results = []
        for index, scan in enumerate(scans):
            states, gates, turns = (
                context.before(part, not scan.reverse) for part in (gathered[index], decays, steps)
            )
            back = None if scan.theta is None else -scan.theta
            arriving = _arriving(states, gates, turns, back)
            _, exit = _edge_rows(cu_seqlens, scan.reverse)
            grads_final[index] = grads_final[index].clone()
            grads_final[index][exit] += arriving.to(grad_final.dtype)
            results.append(gradients(index))

        of_x, of_gate, of_bound, of_theta, of_initial = zip(*results)
        grad_initial = None
        if ctx.has_initial:
            own = []
            for scan, grad in zip(scans, of_initial):
                grad = grad.squeeze(1).clone()
                if not context.is_first(scan.reverse):
                    # There the rank before gave the state, not the caller.
                    entry, _ = _edge_rows(cu_seqlens, scan.reverse)
                    grad[entry] = 0
                own.append(grad)
            grad_initial = sum(own[1:], own[0])
        return (
            sum(of_x[1:], of_x[0]),
            sum(of_gate[1:], of_gate[0]),
            None if lower_bound is None else sum(of_bound[1:], of_bound[0]),
            None if thetas is None else torch.stack(of_theta),
            grad_initial,
            *(None,) * 5,
        )


def _scans(x, gate, lower_bound, thetas, cu_seqlens, mask, directions) -> list[Scan]:
    """The scan of each direction, from zero."""
    angles = (None,) * len(directions) if thetas is None else thetas.unbind(0)
    return [
        Scan(x, gate, lower_bound, theta, None, cu_seqlens, mask, reverse)
        for reverse, theta in zip(directions, angles)
    ]


def _edge_rows(cu_seqlens: Tensor | None, reverse: bool) -> tuple[slice, slice]:
    """The rows of states by which a scan enters and leaves the stretch.

    These are all rows; if sequences are packed, the first one and the last.
    """
    if cu_seqlens is None:
        return slice(None), slice(None)
    first = slice(0, 1)
    last = slice(cu_seqlens.shape[0] - 2, cu_seqlens.shape[0] - 1)
    return (last, first) if reverse else (first, last)


def _counts(x: Tensor, cu_seqlens: Tensor | None, mask: Tensor | None) -> Tensor:
    """How many positions of each sequence in x `[B, T, 1, C]` are not masked, `[N]`."""
    if cu_seqlens is None:
        if mask is not None:
            return mask.sum((1, 2))
        return x.new_full((x.shape[0],), x.shape[1], dtype=torch.long)
    borders = cu_seqlens.long().clamp(0, x.shape[1])
    if mask is not None:
        # How many are not masked before each border.
        borders = nn.functional.pad(mask.flatten().cumsum(0), (1, 0))[borders]
    return borders.diff()


def _turned(state: Tensor, steps: Tensor, theta: Tensor | None) -> Tensor:
    """A state `[..., C]`, float64, rotated by theta `[D]` as many times as steps `[...]` says."""
    if theta is None:
        return state
    return reference.rotate(state, (steps.unsqueeze(-1) * theta.double()).remainder(2 * math.pi))


def _arriving(states: Tensor, decays: Tensor, steps: Tensor, theta: Tensor | None) -> Tensor:
    """The state that enters here, from the states `[Q, B, C]` in which the Q stretches before end.

    Each passes through all stretches that are nearer, whose gates are `[Q, B, D]` and whose steps
    are `[Q, B]`; what has become of them adds up. In float64, because it is little work.
    """
    decays = decays.double()
    through = torch.cat([decays[1:], torch.ones_like(decays[:1])]).flip(0).cumprod(0).flip(0)
    turned = _turned(states.double(), sum_of_nearer(steps), theta)
    return (reference.doubled(through, theta) * turned).sum(0)
