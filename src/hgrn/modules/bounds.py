"""Lower bounds of the forget gates: one table for the whole stack, monotone in depth by construction."""

import torch
from torch import Tensor, nn

from hgrn.modules.parameters import KeepsFloat32, at_least_float32


class LowerBounds(KeepsFloat32):
    """The learned lower bound of each layer's forget gate (paper, section 3; exclusive cumulative sum).

    With `P = softmax(logits)` over the layers, layer k (counted from 0) is bounded by `P_0 + ... + P_{k-1}`:
    exactly 0 in the first layer, rising with depth, and at most `1 - P_last` in the last, which therefore can
    still forget. All logits are 0 at the start, so that layer k of H begins at `k / H`.

    Args:
        depth: number of layers H.
        dim: channels of each layer.

    Shape:
        returns `[depth, dim]`, float32 (float64 if the parameter is), every value in [0, 1].
    """

    no_decay = ("logits",)
    float32_parameters = ("logits",)

    def __init__(self, depth: int, dim: int):
        super().__init__()
        self.logits = nn.Parameter(
            torch.empty(depth, dim, dtype=at_least_float32(torch.get_default_dtype()))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.logits)

    def forward(self) -> Tensor:
        # Wide even where a wrapper (mixed-precision sharding) hands over a narrowed copy of the parameter.
        shares = self.logits.to(at_least_float32(self.logits.dtype)).softmax(dim=0)
        below = nn.functional.pad(shares[:-1].cumsum(dim=0), (0, 0, 1, 0))
        return below.clamp(max=1.0)  # rounding of the sum may pass 1 when the last share is tiny
