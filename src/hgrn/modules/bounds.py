"""Lower bounds of the forget gates: one table for the whole stack, rising with depth."""

from types import ModuleType

import torch
from torch import Tensor, nn

from hgrn.modules.parameters import Init, KeepsFloat32
from hgrn.ops.arguments import at_least_float32


class LowerBounds(KeepsFloat32):
    """The learned lower bound of each layer's forget gate (paper, section 3).

    With `P = softmax(logits)` over the layers, layer k (counted from 0) is bounded by the exclusive
    sum `P_0 + ... + P_{k-1}`. So the bound is exactly 0 in the first layer, rises with depth, and
    is at most `1 - P_last` in the last layer, which therefore can still forget. All logits start at
    0, so layer k of H starts with the bound `k / H`.

    Args:
        depth: number of layers H.
        dim: channels D of each layer.

    Shape:
        returns `[H, D]`, float32 (float64 if the parameter is), every value in [0, 1].
    """

    no_decay = ("logits",)
    float32_parameters = ("logits",)

    def __init__(self, depth: int, dim: int):
        super().__init__()
        wide = at_least_float32(torch.get_default_dtype())
        self.logits = nn.Parameter(torch.empty(depth, dim, dtype=wide))
        self.reset_parameters()

    def reset_parameters(self, init: type[Init] | ModuleType = Init) -> None:
        init.zeros_(self.logits)

    def forward(self) -> Tensor:
        # Mixed-precision sharding hands over a narrowed copy of the parameter, so it is widened.
        shares = self.logits.to(at_least_float32(self.logits.dtype)).softmax(dim=0)
        below = nn.functional.pad(shares[:-1].cumsum(dim=0), (0, 0, 1, 0))
        # Rounding can carry the sum past 1 when the last share is tiny.
        return below.clamp(max=1.0)
