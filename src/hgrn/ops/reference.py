"""The recurrences of HGRN as loops in plain PyTorch: the definition that every engine is measured against.

Shape letters: O outer, T time, I inner, D channels, C = D (real state) or 2D (complex state, [Re | Im]), N sequences.
All functions take the canonical layout `[O, T, I, C]` that `hgrn.ops.operators` makes of the caller's tensors, work in
any floating dtype, and are differentiable any number of times by PyTorch's own autograd.

Per channel, with `gamma` the lower bound of the layer (paper, section 3; README of the authors' repository):

    lambda_t = gamma + (1 - gamma) * sigmoid(forget_t)
    h_t      = lambda_t * exp(i theta) * h_{t-1} + (1 - lambda_t) * SiLU(candidate_t)
"""

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """State and accumulation: float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gates(forget: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forget gate `lambda` and its complement `1 - lambda`, the second never by cancellation."""
    keep = torch.sigmoid(forget)
    write = torch.sigmoid(-forget)
    if lower_bound is None:
        return keep, write
    return lower_bound + (1 - lower_bound) * keep, (1 - lower_bound) * write


def rotate(state: Tensor, theta: Tensor | None) -> Tensor:
    """Multiplies a complex state `[..., 2D]` by `exp(i theta)`, theta `[D]`; a real state is returned as it is."""
    if theta is None:
        return state
    real, imag = state.chunk(2, dim=-1)
    cos = torch.cos(theta)
    sin = torch.sin(theta)
    return torch.cat([cos * real - sin * imag, sin * real + cos * imag], dim=-1)


def doubled(gate: Tensor, theta: Tensor | None) -> Tensor:
    """A gate `[..., D]` as wide as the state: once for real parts, once for imaginary parts."""
    return gate if theta is None else torch.cat([gate, gate], dim=-1)


def _recur(
    decay: Tensor, x: Tensor, theta, initial_state: Tensor, mask, reverse: bool
) -> tuple[Tensor, Tensor]:
    """`h_t = decay_t * exp(i theta) * h_{t-1} + x_t` over `[O, T, I, *]`; where mask is False, `h_t = h_{t-1} + x_t`."""
    state, states = (
        initial_state.clone(),
        [None] * x.shape[1],
    )  # a copy: no output may alias an input
    for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        carried = doubled(decay[:, t], theta) * rotate(state, theta)
        if mask is not None:
            carried = torch.where(mask[:, t, :, None], carried, state)
        state = carried + x[:, t]
        states[t] = state
    return (torch.stack(states, dim=1) if states else x.clone()), state


def _each_sequence(
    decay, x, theta, initial_state, cu_seqlens, mask, reverse
) -> tuple[Tensor, Tensor]:
    """`_recur` over the whole tensor, or over each packed sequence on its own."""
    if cu_seqlens is None:
        if initial_state is None:
            initial_state = x.new_zeros(x.shape[0], *x.shape[2:])
        return _recur(decay, x, theta, initial_state, mask, reverse)
    if initial_state is None:
        initial_state = x.new_zeros(cu_seqlens.shape[0] - 1, *x.shape[2:])
    bounds = cu_seqlens.tolist()
    pieces = [
        _recur(
            decay[:, a:b],
            x[:, a:b],
            theta,
            initial_state[n : n + 1],
            None if mask is None else mask[:, a:b],
            reverse,
        )
        for n, (a, b) in enumerate(zip(bounds, bounds[1:]))
    ]
    return torch.cat([h for h, _ in pieces], dim=1), torch.cat([final for _, final in pieces])


def gated_scan(x, log_f, theta, initial_state, cu_seqlens, mask, reverse) -> tuple[Tensor, Tensor]:
    """`h_t = exp(log_f_t + i theta) * h_{t-1} + x_t`; where mask is False the state is held and x_t still added.

    Args:
        x: `[O, T, I, C]`. log_f: `[O, T, I, D]`, <= 0. theta: `[D]` or None. initial_state: `[N, I, C]` or None.
        cu_seqlens: `[N + 1]` or None. mask: bool `[O, T, I]` or None. reverse: from the last position to the first.

    Returns:
        h `[O, T, I, C]` in x's dtype, final state `[N, I, C]` in the state dtype.
    """
    accumulate = state_dtype(x.dtype)
    h, final = _each_sequence(
        log_f.to(accumulate).exp(),
        x.to(accumulate),
        theta,
        initial_state,
        cu_seqlens,
        mask,
        reverse,
    )
    return h.to(x.dtype), final


def hgru_scan(
    candidate, forget, lower_bound, theta, initial_state, cu_seqlens, mask, reverse
) -> tuple[Tensor, Tensor]:
    """The recurrence of HGRN from pre-activations (equations at the top of this file).

    Args:
        candidate: `[O, T, I, C]`. forget: `[O, T, I, D]`. lower_bound, theta: `[D]` or None; the rest as `gated_scan`,
        but where mask is False `h_t = h_{t-1}` exactly.

    Returns:
        h `[O, T, I, C]` in candidate's dtype, final state `[N, I, C]` in the state dtype.
    """
    accumulate = state_dtype(candidate.dtype)
    keep, write = gates(forget.to(accumulate), lower_bound)
    x = doubled(write, theta) * torch.nn.functional.silu(candidate.to(accumulate))
    if mask is not None:
        x = torch.where(mask[..., None], x, 0)
    h, final = _each_sequence(keep, x, theta, initial_state, cu_seqlens, mask, reverse)
    return h.to(candidate.dtype), final


def hgru_carry(
    candidate, forget, lower_bound, theta, cu_seqlens, mask, reverse
) -> tuple[Tensor, Tensor]:
    """What a stretch of sequence does to any state that enters it, without the states inside.

    Returns:
        The product of the real gates `[N, I, D]`, and the end state from zero `[N, I, C]`; the state that enters leaves
        as `decay * exp(i n theta) * state + end_state` after n positions that are not masked.
    """
    accumulate = state_dtype(candidate.dtype)
    keep, _ = gates(forget.to(accumulate), lower_bound)
    sequences = keep.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    ones = keep.new_ones(sequences, *keep.shape[2:])
    _, decay = _each_sequence(keep, torch.zeros_like(keep), None, ones, cu_seqlens, mask, reverse)
    _, end_state = hgru_scan(candidate, forget, lower_bound, theta, None, cu_seqlens, mask, reverse)
    return decay, end_state
