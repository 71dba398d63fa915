"""The models that are asked: an embedding, two blocks of one mixer, and the embedding again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.recall import peers
from benchmarks.recall.data import KEYS, VALUES, VOCABULARY
from hgrn.modules import HGRN, HGRU, HGRN2Mixer, Mixer

WIDTH = 64
DEPTH = 2


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


class Recall(nn.Module):
    """Tokens to the logits of the values that are asked for."""

    def __init__(self, contestant: Contestant, width: int = WIDTH):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.stack = HGRN(width, DEPTH, mixer=contestant.mixer, **contestant.options)

    @property
    def mixer(self) -> Mixer:
        """The mixer of the first block."""
        return cast(Mixer, self.stack.blocks[0].mixer)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """tokens int64 `[B, T]`, places `[B, Q]` -> logits `[B, Q, VALUES]`."""
        y, _ = self.stack(self.embedding(tokens))
        read = torch.take_along_dim(y, places[..., None], dim=1)
        # The rows of the values. Tied as in Zoology: what is remembered can be named at once.
        return read @ self.embedding.weight[KEYS : KEYS + VALUES].T


def state_bytes(mixer: Mixer) -> int:
    """What the state of one sequence takes in one layer."""
    return sum(part.nbytes for part in mixer.initial_state(1))
