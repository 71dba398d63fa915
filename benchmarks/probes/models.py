"""The models that are asked: an embedding, blocks of one mixer, and the embedding again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.probes import peers
from benchmarks.probes.classics import Attention, Recurrent
from hgrn.modules import HGRN, HGRU, HGRN2Mixer, Mixer


@dataclass(frozen=True)
class Contestant:
    """A mixer with its options. name: in commands and rows. label: in pictures and tables."""

    name: str
    label: str
    mixer: type[Mixer]
    options: Mapping[str, Any] = field(default_factory=dict)


# What a label says of a mixer that is another one but for its convolution.
BARE = ", no convolution"
_CONV = {"conv_size": 4}
CONTESTANTS = (
    Contestant("hgrn2-64", "HGRN2, heads of 64", HGRN2Mixer, _CONV | {"head_dim": 64}),
    Contestant("hgrn2-16", "HGRN2, heads of 16", HGRN2Mixer, _CONV | {"head_dim": 16}),
    Contestant("hgrn-complex", "HGRN, complex", HGRU, _CONV),
    Contestant("hgrn-real", "HGRN, real", HGRU, _CONV | {"complex_state": False}),
    Contestant("mamba", "Mamba", peers.Mamba, _CONV),
    Contestant(
        "fixed-decay-16", "fixed decay, heads of 16", peers.FixedDecay, _CONV | {"head_dim": 16}
    ),
    Contestant("mingru", "minGRU", peers.MinGRU, _CONV),
    Contestant("hgrn2-64-bare", f"HGRN2, heads of 64{BARE}", HGRN2Mixer, {"head_dim": 64}),
    Contestant("hgrn-complex-bare", f"HGRN, complex{BARE}", HGRU),
)
# These read whole sequences, so they have no state to compare.
CLASSICS = (
    Contestant("gru", "GRU", Recurrent, _CONV | {"kind": nn.GRU}),
    Contestant("lstm", "LSTM", Recurrent, _CONV | {"kind": nn.LSTM}),
    Contestant("attention", "attention", Attention, _CONV),
)


class Answerer(nn.Module):
    """Tokens to the logits of the answers that are asked for.

    Args:
        stack: the blocks, of D channels.
        vocabulary: number of tokens.
        answers: which of them are answers.
    """

    def __init__(self, stack: HGRN, vocabulary: int, answers: slice):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, stack.dim)
        nn.init.normal_(self.embedding.weight, std=stack.dim**-0.5)
        self.stack = stack
        self._answers = answers

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """tokens int64 `[B, T]`, places `[B, Q]` -> logits `[B, Q, answers]`."""
        y, _ = self.stack(self.embedding(tokens))
        read = torch.take_along_dim(y, places[..., None], dim=1)
        # The rows of the answers. Tied as in Zoology: what is remembered can be named at once.
        return read @ self.embedding.weight[self._answers].T


def stack_of(contestant: Contestant, width: int, depth: int) -> HGRN:
    """The blocks of a contestant, at the start of training."""
    return HGRN(width, depth, mixer=contestant.mixer, **contestant.options)


def first_mixer(stack: HGRN) -> Mixer:
    """The mixer of the first block."""
    return cast(Mixer, stack.blocks[0].mixer)


def state_bytes(mixer: Mixer) -> int:
    """What the state of one sequence takes in one layer."""
    return sum(part.nbytes for part in mixer.initial_state(1))
