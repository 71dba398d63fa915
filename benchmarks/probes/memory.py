"""Models for questions about memory: HGRN with bounds that start in four ways, GRU and LSTM.

With bound lambda and an open gate's logit at 0, a layer keeps `lambda + (1 - lambda) / 2` of its
state at each step. After d steps this to the power of d is left, and as much of the gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.probes.classics import Recurrent
from hgrn.modules import HGRN

WIDTH = 32
DEPTH = 6


@dataclass(frozen=True)
class Candidate:
    """name: in rows. label: in pictures. build: the blocks, for a distance that is known before."""

    name: str
    label: str
    build: Callable[[int], HGRN]


def published(distance: int) -> HGRN:
    """The bounds start at k / 6 in layer k from 0, and are learned: the paper's."""
    return HGRN(WIDTH, DEPTH)


def unbounded(distance: int) -> HGRN:
    """No bounds: every gate starts at 1/2."""
    return HGRN(WIDTH, DEPTH, use_lower_bound=False)


def fixed(distance: int) -> HGRN:
    """The published bounds, never trained."""
    stack = HGRN(WIDTH, DEPTH)
    _logits(stack).requires_grad_(False)
    return stack


def spread(distance: int) -> HGRN:
    """Learned bounds whose horizons `1 / (1 - bound)` start at 1 in the first layer and `distance`
    in the last, by equal factors in between."""
    stack = HGRN(WIDTH, DEPTH)
    bounds = 1 - torch.logspace(0, 1, DEPTH, base=distance, dtype=torch.float64).reciprocal()
    # Bound k is the sum of the shares below k, so the shares are its differences.
    shares = torch.diff(bounds, append=torch.ones(1, dtype=torch.float64))
    logits = _logits(stack)
    with torch.no_grad():
        logits.copy_(shares.log()[:, None].expand_as(logits))
    return stack


def _logits(stack: HGRN) -> nn.Parameter:
    """What the bounds are calculated from."""
    assert stack.bounds is not None
    return stack.bounds.logits


def _recurrent(kind: type[nn.GRU] | type[nn.LSTM], far: bool) -> Callable[[int], HGRN]:
    def build(distance: int) -> HGRN:
        horizon = distance if far else None
        return HGRN(
            WIDTH, DEPTH, mixer=Recurrent, use_lower_bound=False, kind=kind, horizon=horizon
        )

    return build


CANDIDATES = (
    Candidate("published", "HGRN, bounds as published", published),
    Candidate("none", "HGRN, no bounds", unbounded),
    Candidate("fixed", "HGRN, published bounds, not trained", fixed),
    Candidate("spread", "HGRN, bounds spread over 1 to d", spread),
    Candidate("gru", "GRU", _recurrent(nn.GRU, False)),
    Candidate("gru-far", "GRU, gate bias set for d", _recurrent(nn.GRU, True)),
    Candidate("lstm", "LSTM", _recurrent(nn.LSTM, False)),
    Candidate("lstm-far", "LSTM, gate bias set for d", _recurrent(nn.LSTM, True)),
)


def reach(stack: HGRN, length: int, sequences: int) -> Tensor:
    """How strongly the last output of a stack depends on each input before it.

    Returns:
        float64 `[length]`: norms of the gradient of a random projection of the last output along
        the input d steps before, d = 0 to length - 1, as a quadratic mean over the sequences.
    """
    x = torch.randn(sequences, length, stack.dim, requires_grad=True)
    y, _ = stack(x)
    (grad,) = torch.autograd.grad((y[:, -1] * torch.randn_like(y[:, -1])).sum(), x)
    return grad.double().square().sum(-1).mean(0).sqrt().flip(0)


def kept(stack: HGRN, length: int) -> Tensor:
    """What the calculation above says is left in the last layer after 0 to length - 1 steps."""
    bound = stack.lower_bounds()[-1]
    lowest = 0.0 if bound is None else bound.detach().double().mean().item()
    return torch.full((length,), (1 + lowest) / 2, dtype=torch.float64).pow(torch.arange(length))
