"""The cache of generation: the recurrent state of every layer, and how many tokens it has seen."""

from collections.abc import Callable
from typing import NoReturn, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class HGRNCache(Cache):
    """What HGRN knows of the past: its state (whose size does not grow) and a count of tokens.

    States are replaced and never written in place, so gradients flow through a returned cache;
    `detach` cuts them (truncated back-propagation through time).

    Args:
        state: as the stack returns it: for each layer a tuple of tensors, sequences first; None
            before the first token.
        seen_tokens: positions of each sequence that have been read, padding included.
    """

    def __init__(self, state: tuple[tuple[Tensor, ...], ...] | None = None, seen_tokens: int = 0):
        super().__init__(layers=[])
        self.state = state
        self.seen_tokens = seen_tokens

    def __repr__(self) -> str:
        sizes = f"batch_size={self.batch_size}, seen_tokens={self.seen_tokens}"
        return f"HGRNCache({len(self)} layers, {sizes})"

    def __len__(self) -> int:
        return 0 if self.state is None else len(self.state)

    @property
    def is_compileable(self) -> bool:
        return (
            False  # with True, generation would replace the 2-d mask, which we need, by a 4-d one
        )

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    @property
    def batch_size(self) -> int:
        """Sequences in the state; -1 before the first update (as transformers has it)."""
        return -1 if self.state is None else self.state[0][0].shape[0]

    def update_state(self, state: tuple[tuple[Tensor, ...], ...], tokens: int) -> None:
        """Take the state after `tokens` further positions."""
        self.state = state
        self.seen_tokens += tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1  # no limit, as transformers has it

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        return self.state is not None

    def detach(self) -> Self:
        """A cache with the same values, cut from the graph that made them."""
        return self._mapped(Tensor.detach)

    def reset(self) -> None:
        """Forget everything."""
        self.state = None
        self.seen_tokens = 0

    # transformers calls the next three in beam search, and where one prompt gets several answers.

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Sequence i becomes what sequence `indices[i]` was."""
        self.state = self._mapped(lambda part: part.index_select(0, indices.to(part.device))).state

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times, copies side by side."""
        self.state = self._mapped(lambda part: torch.repeat_interleave(part, repeats, dim=0)).state

    def crop(self, tokens_to_remove: int) -> NoReturn:
        raise NotImplementedError(NO_WAY_BACK)

    def activate_past_recording(self) -> NoReturn:
        raise NotImplementedError(NO_WAY_BACK)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Self:
        state = self.state
        if state is not None:
            state = tuple(tuple(function(part) for part in layer) for layer in state)
        return type(self)(state, self.seen_tokens)


NO_WAY_BACK = (
    "an HGRN cache cannot be cropped: a recurrent state does not hold the tokens that led to it, "
    "so none can be taken back; decode without an assistant model, prompt lookup or contrastive "
    "search"
)
