"""The recurrences of HGRN as loops in plain PyTorch: the definition that every engine must match.

It is also an engine like the others (`hgrn.ops.engines.Engine`): slow, but it works on every device
and in every floating dtype. Shape letters as in `hgrn.ops.arguments`.

Per channel, with `gamma` the lower bound of the layer (paper, section 3; README of the authors'
repository):

    lambda_t = gamma + (1 - gamma) * sigmoid(forget_t)
    h_t      = lambda_t * exp(i theta) * h_{t-1} + (1 - lambda_t) * SiLU(candidate_t)

And for each head of HGRN2, whose state is a matrix (HGRN2 paper, arXiv 2404.07904, section 3):

    S_t = Diag(exp(log_f_t)) S_{t-1} + k_t v_t^T,    y_t = q_t S_t
"""

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from hgrn.ops.arguments import Scan, at_least_float32
from hgrn.ops.gla_arguments import GlaScan


def gates(forget: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """The forget gate `lambda`, and `1 - lambda`, which keeps its digits where lambda is near 1."""
    keep = torch.sigmoid(forget)
    write = torch.sigmoid(-forget)
    if lower_bound is None:
        return keep, write
    return lower_bound + (1 - lower_bound) * keep, (1 - lower_bound) * write


def rotate(state: Tensor, theta: Tensor | None) -> Tensor:
    """A complex state `[..., 2D]` times `exp(i theta)`, theta `[D]`; a real state as it is."""
    if theta is None:
        return state
    real, imag = state.chunk(2, dim=-1)
    cos = torch.cos(theta)
    sin = torch.sin(theta)
    return torch.cat([cos * real - sin * imag, sin * real + cos * imag], dim=-1)


def doubled(gate: Tensor, theta: Tensor | None) -> Tensor:
    """A gate `[..., D]` as wide as the state: once for real parts, once for imaginary parts."""
    return gate if theta is None else torch.cat([gate, gate], dim=-1)


def loop(
    keep: Tensor,
    entering: Tensor,
    theta: Tensor | None,
    state: Tensor,
    mask: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """`h_t = keep_t * exp(i theta) * h_{t-1} + entering_t` from `state`; and the last state.

    Where the mask is False, `h_t = h_{t-1} + entering_t`.
    """
    steps = range(entering.shape[1])
    states = [state] * len(steps)
    state = state.clone()  # no output may be an input, even where there is no step
    for t in reversed(steps) if reverse else steps:
        carried = doubled(keep[:, t], theta) * rotate(state, theta)
        if mask is not None:
            carried = torch.where(mask[:, t, :, None], carried, state)
        state = carried + entering[:, t]
        states[t] = state
    h = torch.stack(states, dim=1) if states else entering.clone()
    return h, state


def recurrence(scan: Scan, keep: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
    """`loop` over whole rows, or over each packed sequence on its own.

    keep and entering take the place of the scan's gate and x.
    """
    state = scan.initial_state
    if state is None:
        state = entering.new_zeros(scan.sequences, *entering.shape[2:])
    if scan.cu_seqlens is None:
        return loop(keep, entering, scan.theta, state, scan.mask, scan.reverse)
    bounds = scan.cu_seqlens.tolist()
    pieces = [
        loop(
            keep[:, a:b],
            entering[:, a:b],
            scan.theta,
            state[n : n + 1],
            None if scan.mask is None else scan.mask[:, a:b],
            scan.reverse,
        )
        for n, (a, b) in enumerate(pairwise(bounds))
    ]
    return torch.cat([h for h, _ in pieces], dim=1), torch.cat([final for _, final in pieces])


def hgru_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """The equations at the top of this file; where the mask is False, `h_t = h_{t-1}` exactly."""
    wide = at_least_float32(scan.x.dtype)
    keep, write = gates(scan.gate.to(wide), scan.lower_bound)
    entering = doubled(write, scan.theta) * torch.nn.functional.silu(scan.x.to(wide))
    if scan.mask is not None:
        entering = torch.where(scan.mask[..., None], entering, 0)
    h, final = recurrence(scan, keep, entering)
    return h.to(scan.x.dtype), final


def hgru_carry(scan: Scan) -> tuple[Tensor, Tensor]:
    """What a stretch does to any state that enters it: the product of its gates, its end from zero.

    The state that enters leaves as `decay * exp(i n theta) * state + end_state` after n positions
    that are not masked.
    """
    keep, _ = gates(scan.gate.to(at_least_float32(scan.gate.dtype)), scan.lower_bound)
    # A real state of ones without any input becomes the product of the gates.
    ones = keep.new_ones(scan.sequences, *keep.shape[2:])
    alone = scan._replace(theta=None, initial_state=ones)
    _, decay = recurrence(alone, keep, torch.zeros_like(keep))
    _, end_state = hgru_scan(scan)
    return decay, end_state


def gated_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """`h_t = exp(log_f_t + i theta) * h_{t-1} + x_t`; where the mask is False, `h_{t-1} + x_t`."""
    wide = at_least_float32(scan.x.dtype)
    h, final = recurrence(scan, scan.gate.to(wide).exp(), scan.x.to(wide))
    return h.to(scan.x.dtype), final


def gla_scan(scan: GlaScan) -> tuple[Tensor, Tensor]:
    """The equations of HGRN2 at the top of this file."""
    wide = at_least_float32(scan.q.dtype)
    state = scan.initial_state
    if state is None:
        state = scan.q.new_zeros(scan.state_shape, dtype=wide)
    q, k, v = (x.to(wide) for x in (scan.q, scan.k, scan.v))
    keep = scan.log_f.exp()
    if scan.cu_seqlens is None:
        y, final = _outer_loop(q, k, v, keep, state)
        return y.to(scan.v.dtype), final
    pieces = [
        _outer_loop(q[:, a:b], k[:, a:b], v[:, a:b], keep[:, a:b], state[n : n + 1])
        for n, (a, b) in enumerate(pairwise(scan.cu_seqlens.tolist()))
    ]
    y = torch.cat([y for y, _ in pieces], dim=1)
    return y.to(scan.v.dtype), torch.cat([final for _, final in pieces])


def _outer_loop(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`S_t = Diag(keep_t) S_{t-1} + k_t v_t^T` and `y_t = q_t S_t`, position by position."""
    state = state.clone()  # no output may be an input, even where there is no step
    y = []
    for t in range(q.shape[1]):
        written = k[:, t, :, :, None] * v[:, t, :, None, :]
        state = keep[:, t, :, :, None] * state + written
        y.append((q[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(y, dim=1) if y else torch.zeros_like(v), state


def gla_scan_backward(
    scan: GlaScan, grad_y: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.gla_scan_backward`."""
    names = ("q", "k", "v", "log_f", "initial_state")
    given = {name: x for name in names if (x := getattr(scan, name)) is not None}
    pull_back = torch.func.vjp(lambda given: gla_scan(scan._replace(**given)), given)[1]
    found = cast(dict[str, Tensor], pull_back((grad_y, grad_final))[0])
    found = {"initial_state": torch.zeros_like(grad_final)} | found
    return found["q"], found["k"], found["v"], found["log_f"], found["initial_state"]


def _gradients(
    function: Callable[[Scan], tuple[Tensor, Tensor]], scan: Scan, grads: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """The gradients of the scan's tensors, by name; zeros for those that were not given."""
    names = ("x", "gate", "lower_bound", "theta", "initial_state")
    given = {name: x for name in names if (x := getattr(scan, name)) is not None}
    # Autograd is switched off inside of a registered operator; torch.func.vjp works there too.
    pull_back = torch.func.vjp(lambda given: function(scan._replace(**given)), given)[1]
    found = cast(dict[str, Tensor], pull_back(grads)[0])
    channel = scan.gate.new_zeros(scan.channels, dtype=grads[1].dtype)
    state = torch.zeros_like(grads[1])
    missing = {"lower_bound": channel, "theta": channel.clone(), "initial_state": state}
    return missing | found


def hgru_scan_backward(
    scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.hgru_scan_backward`; h is computed again."""
    found = _gradients(hgru_scan, scan, (grad_h, grad_final))
    return (
        found["x"],
        found["gate"],
        found["lower_bound"],
        found["theta"],
        found["initial_state"],
    )


def gated_scan_backward(
    scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.gated_scan_backward`; h is computed again."""
    found = _gradients(gated_scan, scan, (grad_h, grad_final))
    return found["x"], found["gate"], found["theta"], found["initial_state"]
