"""The public scans: `hgru_scan`, `hgru_carry` and `gated_scan`.

Each checks the caller's tensors, brings them to the canonical layout (`hgrn.ops.arguments`), calls
the registered operator, and gives the results the caller's shape.
"""

import torch
from torch import Tensor

# transforms says what the operators do under torch.func.
from hgrn.ops import operators, transforms  # noqa: F401
from hgrn.ops.arguments import Layout
from hgrn.ops.engines import choose


def hgru_scan(
    candidate: Tensor,
    forget: Tensor,
    lower_bound: Tensor | None = None,
    theta: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    dim: int = 1,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The hierarchically gated recurrence, from pre-activation projections to hidden states.

    Per channel: `lambda_t = gamma + (1 - gamma) sigmoid(forget_t)` and
    `h_t = lambda_t exp(i theta) h_{t-1} + (1 - lambda_t) SiLU(candidate_t)` (HGRN paper, section
    3). All of it is one pass over memory.

    Args:
        candidate: `[..., T, ..., C]` with T at `dim`. C = D for a real state; with theta C = 2D,
            laid out `[Re | Im]`. All other leading axes are independent sequences.
        forget: the same with D channels, in candidate's dtype.
        lower_bound: gamma, `[D]` in [0, 1]; None is 0.
        theta: angles in radians, `[D]`; they make the state complex.
        initial_state: candidate's shape without the time axis (`[N, C]` if packed); None is zeros.
            With `reverse` it enters behind the last position.
        dim: the time axis.
        reverse: scan from the last position to the first.
        cu_seqlens: boundaries `[N + 1]` of N sequences that are packed into candidate
            `[1, total, C]`, int32 or int64.
        mask: bool, candidate's shape without the channel axis; where False, `h_t = h_{t-1}`
            exactly.
        engine: "numba" (CPU), "triton" (CUDA) or "reference"; None takes the fastest that works
            here.

    Returns:
        h like candidate, and the final state like initial_state, in float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument breaks the rules above; the message names it.
    """
    layout = Layout(candidate, "candidate", dim, cu_seqlens)
    scan = layout.scan(forget, "forget", lower_bound, theta, initial_state, mask, reverse)
    h, final = operators.hgru_scan(*scan, choose(engine, candidate.device.type))
    return h.reshape(candidate.shape), layout.caller_state(final)


def hgru_carry(
    candidate: Tensor,
    forget: Tensor,
    lower_bound: Tensor | None = None,
    theta: Tensor | None = None,
    *,
    dim: int = 1,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """What a stretch of a sequence does to any state that enters it; no hidden states are written.

    A state s that enters leaves as `decay * exp(i n theta) * s + end_state` after n positions that
    are not masked. So stretches of one sequence can be computed apart and joined exactly.

    Args:
        The same as `hgru_scan`'s.

    Returns:
        decay, the product of the real gates (a state's shape with D channels), and end_state, where
        `hgru_scan` would end from zero (a state's shape).

    Raises:
        ValueError, TypeError: as `hgru_scan`.
    """
    layout = Layout(candidate, "candidate", dim, cu_seqlens)
    scan = layout.scan(forget, "forget", lower_bound, theta, None, mask, reverse)
    engine = choose(engine, candidate.device.type)
    x, gate, bound, angles, _, *rest = scan
    decay, end_state = operators.hgru_carry(x, gate, bound, angles, *rest, engine)
    return layout.caller_state(decay), layout.caller_state(end_state)


def gated_scan(
    x: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None = None,
    *,
    theta: Tensor | None = None,
    dim: int = 1,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence from explicit gates: `h_t = exp(log_f_t + i theta) h_{t-1} + x_t`.

    It is for ablations and other models, and has gradients of any order.

    Args:
        x: what is added to the state, in the place of `hgru_scan`'s candidate.
        log_f: logarithms of the gates, `<= 0` (not checked), in the place of forget.
        The rest is as in `hgru_scan`.

    Returns:
        h like x, and the final state in float32 (float64 for float64).

    Raises:
        ValueError, TypeError: as `hgru_scan`.
    """
    layout = Layout(x, "x", dim, cu_seqlens)
    scan = layout.scan(log_f, "log_f", None, theta, initial_state, mask, reverse)
    entering, gate, _, *rest = scan
    if scan.mask is not None:
        # The operator holds the state at a masked position, but still adds what enters there.
        entering = torch.where(scan.mask[..., None], entering, 0)
    h, final = operators.gated_scan(entering, gate, *rest, choose(engine, x.device.type))
    return h.reshape(x.shape), layout.caller_state(final)
