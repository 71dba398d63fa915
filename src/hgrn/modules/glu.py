"""GLU: the channel mixer of HGRN."""

from torch import Tensor, nn

from hgrn.modules.linear import Linear
from hgrn.ops import gated_unit

GLU_ACTS = ("silu", "identity")


class GLU(nn.Module):
    """The gated linear unit `W_d (act(W_g x) * W_u x)` (the authors' fairseq: modules/ffn/glu.py).

    Args:
        dim: channels of input and output.
        hidden: channels inside.
        act: "silu", or "identity" for the bilinear unit that the authors' WikiText-103 model runs.
        bias: biases of the linear maps.
        dropout: probability on the activated branch (the authors' Long Range Arena code: models/sequence/glu.py).

    The first half of the rows of `gate_up_proj` is W_g, the second W_u: one product makes both.

    Shape:
        `[..., dim]` -> `[..., dim]`.
    """

    def __init__(
        self, dim: int, hidden: int, act: str = "silu", bias: bool = True, dropout: float = 0.0
    ):
        super().__init__()
        if act not in GLU_ACTS:
            raise ValueError(f"act must be one of {GLU_ACTS}, got {act!r}")
        self.act = act
        self.joined_rows = {"gate_up_proj": (hidden, hidden)}
        self.gate_up_proj = Linear(dim, 2 * hidden, bias=bias)
        self.down_proj = Linear(hidden, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def extra_repr(self) -> str:
        return f"act={self.act}"

    def forward(self, x: Tensor) -> Tensor:
        # Dropping a factor drops the product: so one pass makes both activation and product.
        return self.down_proj(self.dropout(gated_unit(self.gate_up_proj(x), activation=self.act)))
