"""The scan of a stretch: its own carry, one exchange, and one scan from the state that enters it; and the way back.

Shape letters: B batch, N sequences that are packed into the stretch, D channels, C = D (real state) or 2D (complex), Q ranks
before this one in the order of travel.
"""

import math

import torch
from torch import Tensor, nn

from hgrn.ops import operators, reference


class ContextScan(torch.autograd.Function):
    """Scans of a stretch in one or two directions, in the canonical layout; states are `[N, C]`."""

    @staticmethod
    def forward(
        ctx,
        candidate,
        forget,
        lower_bound,
        thetas,
        initial_state,
        cu_seqlens,
        mask,
        directions,
        engine,
        context,
    ):
        arguments = (candidate, forget, lower_bound)
        angles = (None,) * len(directions) if thetas is None else thetas.unbind(0)
        counts = _counts(candidate, cu_seqlens, mask)

        starts = []
        message = []
        for reverse, theta in zip(directions, angles):
            entry, exit = _edge_rows(cu_seqlens, reverse)
            decay, end = (
                x.squeeze(1)
                for x in operators.hgru_carry(*arguments, theta, cu_seqlens, mask, reverse, engine)
            )
            start = torch.zeros_like(end)
            end = end[exit]
            if initial_state is not None:
                start.copy_(initial_state)
                if not context.is_first(reverse):
                    start[entry] = 0
                turned = _turned(start[exit].double(), counts[exit], theta)
                end = end + (reference.doubled(decay[exit], theta) * turned).to(end.dtype)
            if not message:  # both directions pass through the same gates
                decay = decay[exit] if passes(cu_seqlens) else torch.zeros_like(decay[exit])
                # In float32 a count is exact to 2^24 steps, where a rotation step by step is off by a radian itself.
                message += [decay, counts[exit].unsqueeze(-1).to(decay.dtype)]
            starts.append(start)
            message.append(end)

        decays, steps, *ends = context.gather(torch.cat(message, dim=-1)).split(
            [part.shape[-1] for part in message], dim=-1
        )
        decays, steps = (
            decays.clone(),
            steps.squeeze(-1).long(),
        )  # without the ends, which the backward does not need

        outputs = []
        finals = []
        for reverse, theta, start, end in zip(directions, angles, starts, ends):
            if not context.is_first(reverse):
                entry, _ = _edge_rows(cu_seqlens, reverse)
                start[entry] = _arriving(
                    *(context.before(x, reverse) for x in (end, decays, steps)), theta
                ).to(start.dtype)
            h, final = operators.hgru_scan(
                *arguments, theta, start.unsqueeze(1), cu_seqlens, mask, reverse, engine
            )
            outputs.append(h)
            finals.append(final.squeeze(1))
        ctx.save_for_backward(
            *arguments, thetas, cu_seqlens, mask, decays, steps, *starts, *outputs
        )
        ctx.directions = directions
        ctx.engine = engine
        ctx.context = context
        ctx.has_initial = initial_state is not None
        return *outputs, finals[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        candidate, forget, lower_bound, thetas, cu_seqlens, mask, decays, steps, *saved = (
            ctx.saved_tensors
        )
        directions = ctx.directions
        context = ctx.context
        angles = (None,) * len(directions) if thetas is None else thetas.unbind(0)
        starts = saved[: len(directions)]
        outputs = saved[len(directions) :]
        *grads_h, grad_final = grads
        grads_final = [grad_final, *(torch.zeros_like(start) for start in starts[1:])]

        def gradients(index: int) -> tuple[Tensor | None, ...]:
            return _scan_gradients(
                grads_h[index],
                grads_final[index].unsqueeze(1),
                candidate,
                forget,
                lower_bound,
                angles[index],
                starts[index].unsqueeze(1),
                outputs[index],
                cu_seqlens,
                mask,
                directions[index],
                ctx.engine,
            )

        # First what this rank's own loss sends back to where each scan entered; then, with what arrives from
        # the ranks behind, everything. No linear shortcut: the gates' gradients need the whole adjoint at once.
        sent = []
        for index, reverse in enumerate(directions):
            entry, _ = _edge_rows(cu_seqlens, reverse)
            sent.append(gradients(index)[4].squeeze(1)[entry])
        gathered = context.gather(torch.cat(sent, dim=-1)).split(
            [part.shape[-1] for part in sent], dim=-1
        )
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
            sum(of_candidate[1:], of_candidate[0]),
            sum(of_forget[1:], of_forget[0]),
            None if lower_bound is None else sum(of_bound[1:], of_bound[0]),
            None if thetas is None else torch.stack(of_theta),
            grad_initial,
            *(None,) * 5,
        )


def _scan_gradients(
    grad_h,
    grad_final,
    candidate,
    forget,
    lower_bound,
    theta,
    initial_state,
    h,
    cu_seqlens,
    mask,
    reverse,
    engine,
):
    """Gradients of candidate, forget, lower_bound, theta and initial_state; None or zeros for what was not given."""
    inputs = (candidate, forget, lower_bound, theta, initial_state)
    return operators.hgru_scan_backward(
        grad_h, grad_final, *inputs, h, cu_seqlens, mask, reverse, engine
    )


def _edge_rows(cu_seqlens: Tensor | None, reverse: bool) -> tuple[slice, slice]:
    """The rows of states by which a scan enters and leaves the stretch: all, or of packed sequences the first and the last."""
    if cu_seqlens is None:
        return slice(None), slice(None)
    first = slice(0, 1)
    last = slice(cu_seqlens.shape[0] - 2, cu_seqlens.shape[0] - 1)
    return (last, first) if reverse else (first, last)


def passes(cu_seqlens: Tensor | None) -> bool:
    """Whether a state passes through the whole stretch: no border lies in it."""
    return cu_seqlens is None or cu_seqlens.shape[0] == 2


def _counts(x: Tensor, cu_seqlens: Tensor | None, mask: Tensor | None) -> Tensor:
    """How many positions of each sequence in x `[B, T, 1, C]` are not masked, `[N]`."""
    if cu_seqlens is None:
        return (
            x.new_full((x.shape[0],), x.shape[1], dtype=torch.long)
            if mask is None
            else mask.sum((1, 2))
        )
    borders = cu_seqlens.long().clamp(0, x.shape[1])
    return (
        borders if mask is None else nn.functional.pad(mask.flatten().cumsum(0), (1, 0))[borders]
    ).diff()


def _turned(state: Tensor, steps: Tensor, theta: Tensor | None) -> Tensor:
    """A state `[..., C]`, float64, rotated by theta `[D]` so many times as steps `[...]` says."""
    if theta is None:
        return state
    return reference.rotate(state, (steps.unsqueeze(-1) * theta.double()).remainder(2 * math.pi))


def _arriving(states: Tensor, decays: Tensor, steps: Tensor, theta: Tensor | None) -> Tensor:
    """The sum of what has become, where they arrive, of states `[Q, B, C]` that each left one of Q stretches, nearest last.

    The state of a stretch passes through all that are nearer: gates `[Q, B, D]`, steps `[Q, B]`. In float64: it is little work.
    """
    decays = decays.double()
    steps = behind(steps)
    through = torch.cat([decays[1:], torch.ones_like(decays[:1])]).flip(0).cumprod(0).flip(0)
    return (reference.doubled(through, theta) * _turned(states.double(), steps, theta)).sum(0)


def behind(counts: Tensor) -> Tensor:
    """For each of Q stretches, nearest last, the sum of the counts `[Q, ...]` of those that are nearer."""
    return torch.cat([counts[1:], torch.zeros_like(counts[:1])]).flip(0).cumsum(0).flip(0)
