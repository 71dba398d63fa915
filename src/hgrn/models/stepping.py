"""Decoding on a CPU by compiled steps: for as long as a caller says that the weights stay as they are."""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from hgrn.modules import Stepper
from hgrn.modules.stepper import has_own_forward, why_not
from hgrn.ops.operator import is_listened_to

from .cache import HGRNCache

Steppers = dict[int, Stepper | None]  # for a number of sequences; None where it cannot be


class _Active(threading.local):
    """The models that are stepping in this thread, by id."""

    def __init__(self):
        self.models: dict[int, Steppers] = {}


_active = _Active()


class SteppingMixin:
    """For a causal language model with `model` (embeddings and stack) and `lm_head`."""

    @contextlib.contextmanager
    def stepping(self, steppers: Steppers | None = None) -> Iterator[None]:
        """While inside, calls for a single new token of 1 to 8 sequences run as one call of compiled code.

        `generate` does this by itself; a decoding loop of one's own gains by it what the model's many small operations cost.
        Weights, dtype and device must not be changed inside. Where a call does not suit (gradients, a half precision, another
        device, adapters, hooks, masked tokens), the model computes it as ever. `steppers`, empty at first, keeps what is compiled
        from one time to the next, for a model that does not change between them either.
        """
        if self.is_stepping:
            yield
            return
        _active.models[id(self)] = {} if steppers is None else steppers
        try:
            yield
        finally:
            del _active.models[id(self)]

    @property
    def is_stepping(self) -> bool:
        """Whether this thread is inside `stepping`."""
        return id(self) in _active.models

    def _step(self, input_ids: Tensor | None, attention_mask: Tensor | None, cache: HGRNCache | None) -> Tensor | None:
        """Logits `[N, 1, vocab_size]` of one new token each, the cache brought up to date; None if it cannot be done so."""
        stepper = self._stepper(input_ids, attention_mask, cache)
        if stepper is None:
            return None
        x = self.model.embed(input_ids)
        stepper.state = cache.state
        logits = stepper(x[:, 0])
        cache.update_state(stepper.state, 1)
        return logits[:, None]

    def _stepper(self, input_ids: Tensor | None, attention_mask: Tensor | None, cache: HGRNCache | None) -> Stepper | None:
        if (
            input_ids is None
            or not isinstance(cache, HGRNCache)
            or input_ids.ndim != 2
            or input_ids.shape[1] != 1
            or torch.is_grad_enabled()
            or is_listened_to((input_ids,))
            or torch.is_autocast_enabled("cpu")
            or not cache.is_initialized
            or cache.batch_size != len(input_ids)
            or (attention_mask is not None and not attention_mask[:, -1].all())
        ):
            return None
        steppers, size = _active.models[id(self)], len(input_ids)
        if size not in steppers:
            suits = why_not(self.model.stack, size, self.lm_head) is None and not has_own_forward(self.model)
            steppers[size] = Stepper(self.model.stack, size, self.lm_head) if suits else None
        return steppers[size]
