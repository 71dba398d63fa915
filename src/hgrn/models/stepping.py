"""Decoding on a CPU by compiled steps: for as long as a caller says that the weights stay as they are."""

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hgrn.models.backbone import HGRNModel
from hgrn.models.cache import HGRNCache
from hgrn.modules import Stepper
from hgrn.modules.stepper import NotSteppable, has_own_forward
from hgrn.modules.watch import Watch
from hgrn.ops.dispatch import must_dispatch


class Steps(NamedTuple):
    """The compiled steps of a language model, and the parts of it for which they stand."""

    backbone: nn.Module
    head: nn.Module
    watch: Watch  # of what is around the stack; the stepper watches the stack and the head
    stepper: Stepper


Steppers = dict[int, Steps | None]  # for a number of sequences; None where it cannot be


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
        Where a call does not suit (gradients, a half precision, another device, adapters, hooks, masked tokens), the model computes
        it as ever. A model that is changed inside is compiled anew, which takes some milliseconds. `steppers`, empty at first,
        keeps what is compiled from one time to the next.
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

    def _step(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, cache: HGRNCache | None
    ) -> Tensor | None:
        """Logits `[N, 1, vocab_size]` of one new token each, the cache brought up to date; None if it cannot be done so."""
        if not _suits(input_ids, attention_mask, cache):
            return None
        steppers = _active.models[id(self)]
        size = len(input_ids)
        steps = steppers.get(size)
        if size not in steppers or (steps is not None and not self._belongs(steps)):
            steps = steppers[size] = self._compiled(size)
        if steps is None:
            return None
        x = self.model.embed(input_ids)
        steps.stepper.state = cache.state
        try:
            logits = steps.stepper(x[:, 0])
        except NotSteppable:  # no longer
            steppers[size] = None
            return None
        cache.update_state(steps.stepper.state, 1)
        return logits[:, None]

    def _belongs(self, steps: Steps) -> bool:
        return (
            steps.backbone is self.model
            and steps.head is self.lm_head
            and not steps.watch.has_changed()
        )

    def _compiled(self, size: int) -> Steps | None:
        backbone = self.model
        if (
            type(backbone) is not HGRNModel
            or has_own_forward(backbone)
            or (backbone.dropout.training and backbone.dropout.p > 0)
        ):
            return None
        try:
            stepper = Stepper(backbone.stack, size, self.lm_head)
        except NotSteppable:
            return None
        return Steps(backbone, self.lm_head, Watch([backbone, backbone.dropout]), stepper)


def _suits(
    input_ids: Tensor | None, attention_mask: Tensor | None, cache: HGRNCache | None
) -> bool:
    """Whether a call is one of those for which there are compiled steps."""
    return (
        input_ids is not None
        and isinstance(cache, HGRNCache)
        and input_ids.ndim == 2
        and input_ids.shape[1] == 1
        and not torch.is_grad_enabled()
        and not must_dispatch((input_ids,))
        and not torch.is_autocast_enabled("cpu")
        and cache.is_initialized
        and cache.batch_size == len(input_ids)
        and (attention_mask is None or bool(attention_mask[:, -1].all()))
    )
