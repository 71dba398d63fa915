"""The linear map of all HGRN modules."""

from torch import Tensor, nn

from hgrn.ops import linear


class Linear(nn.Linear):
    """`nn.Linear`, with the product that `hgrn.ops.linear` picks: decoding on a CPU reads its weights at the speed of memory."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
