"""One layer of HGRN: a token mixer and a channel mixer, each behind a norm and with a residual."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hgrn.modules.norms import BatchNorm, make_norm


class Block(nn.Module):
    """`x + dropout(mixer(norm(x)))`, then `x + dropout(glu(norm(x)))`.

    The order is that of the authors' fairseq (modules/rnn/hgrn/hgrn_layer.py).

    Args:
        dim: channels D.
        mixer: the token mixer; called as an `HGRU` is.
        glu: the channel mixer, `[..., D]` -> `[..., D]`.
        dropout: probability on both branches.
        norm_eps: epsilon of both norms.
        norm_type: "layer", "rms" or "batch", of both norms.

    Attributes:
        gradient_checkpointing: set it to True to keep only the block's inputs while training,
            and to compute the block again in the backward pass.
    """

    # transformers looks for both names and sets them.
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

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """x `[B, T, D]` -> y like x, and the mixer's state; arguments as `HGRU.forward`."""
        if not (self.gradient_checkpointing and self.training):
            return self._compute(x, lower_bound, state, mask, cu_seqlens)
        return self._checkpointed(x, lower_bound, state, mask, cu_seqlens)

    def _checkpointed(self, x: Tensor, lower_bound, state, mask, cu_seqlens):
        """Like `_compute`, but what it computes is not kept for the backward pass."""
        options = {}
        if isinstance(self.mixer_norm, BatchNorm):
            options["context_fn"] = lambda: (nullcontext(), self._same_statistics())

        # The tensors of a state go in and out one by one, because reentrant checkpointing finds no
        # gradients inside a tuple.
        def compute(x, lower_bound, mask, cu_seqlens, *state):
            y, after = self._compute(x, lower_bound, state or None, mask, cu_seqlens)
            return y, *(after or ())

        y, *after = self._gradient_checkpointing_func(
            compute, x, lower_bound, mask, cu_seqlens, *(state or ()), **options
        )
        return y, tuple(after) or None

    @contextmanager
    def _same_statistics(self) -> Iterator[None]:
        """Inside, the batch norms leave their running statistics as they are.

        A checkpointed batch is computed twice and must count once.
        """
        norms = [norm for norm in (self.mixer_norm, self.glu_norm) if isinstance(norm, BatchNorm)]
        for norm in norms:
            norm.updates = False
        try:
            yield
        finally:
            for norm in norms:
                norm.updates = True

    def _compute(self, x: Tensor, lower_bound, state, mask, cu_seqlens):
        mixed, state = self.mixer(self.mixer_norm(x), lower_bound, state, mask, cu_seqlens)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.glu(self.glu_norm(x))), state
