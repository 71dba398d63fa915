"""One layer of HGRN: a token mixer and a channel mixer, each behind a norm and with a residual."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hgrn.modules.norms import BatchNorm, make_norm


class Block(nn.Module):
    """`x + dropout(mixer(norm(x)))`, then `x + dropout(glu(norm(x)))` (the authors' fairseq: modules/rnn/hgrn/hgrn_layer.py).

    Args:
        dim: channels.
        mixer: the token mixer; called as an `HGRU` is.
        glu: the channel mixer, `[..., dim]` -> `[..., dim]`.
        dropout: probability on both branches.
        norm_eps: epsilon of both norms.
        norm_type: "layer", "rms" or "batch", of both.

    Attributes:
        gradient_checkpointing: set it to True to keep only the block's inputs while training, and to compute
            the block again in the backward pass. (The two names are the ones that transformers looks for and
            sets.)
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func = staticmethod(partial(checkpoint, use_reentrant=False))

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        glu: nn.Module,
        *,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        norm_type: str = "layer",
    ):
        super().__init__()
        self.mixer_norm = make_norm(norm_type, dim, norm_eps)
        self.mixer = mixer
        self.glu_norm = make_norm(norm_type, dim, norm_eps)
        self.glu = glu
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *rest) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """As `HGRU.forward`: (x, lower_bound, state, mask, cu_seqlens) -> (y, state)."""
        if not (self.gradient_checkpointing and self.training):
            return self._compute(x, *rest)
        return self._checkpointed(x, *rest)

    def _checkpointed(self, x: Tensor, lower_bound=None, state=None, mask=None, cu_seqlens=None):
        """As `_compute`. The tensors of the states go in and out one by one: reentrant checkpointing has no gradients for others."""
        options = {}
        if isinstance(self.mixer_norm, BatchNorm):
            options["context_fn"] = lambda: (nullcontext(), self._same_statistics())

        def compute(x, lower_bound, mask, cu_seqlens, *state):
            y, after = self._compute(x, lower_bound, state or None, mask, cu_seqlens)
            return y, *(after or ())

        y, *after = self._gradient_checkpointing_func(
            compute, x, lower_bound, mask, cu_seqlens, *(state or ()), **options
        )
        return y, tuple(after) or None

    @contextmanager
    def _same_statistics(self) -> Iterator[None]:
        """Around the second time that a checkpointed batch is computed: it counts once in the running statistics."""
        for norm in (self.mixer_norm, self.glu_norm):
            norm.updates = False
        try:
            yield
        finally:
            for norm in (self.mixer_norm, self.glu_norm):
                norm.updates = True

    def _compute(self, x: Tensor, lower_bound=None, state=None, mask=None, cu_seqlens=None):
        mixed, state = self.mixer(self.mixer_norm(x), lower_bound, state, mask, cu_seqlens)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.glu(self.glu_norm(x))), state
