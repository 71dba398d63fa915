"""Decoding on a CPU by compiled steps, while the caller promises that the weights stay."""

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


class _Program(NamedTuple):
    """A compiled step for a number of sequences, and the parts of the model it stands for."""

    backbone: nn.Module
    head: nn.Module
    watch: Watch  # of what is around the stack; the stepper watches the stack and the head
    stepper: Stepper


class CompiledSteps:
    """The compiled steps of a language model: one program for each number of sequences.

    Programs hold addresses in the memory of the model. So a copy, or what is unpickled, starts
    without any.
    """

    def __init__(self) -> None:
        self._programs: dict[int, _Program | None] = {}  # None: there can be none

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()

    def run(
        self,
        backbone: HGRNModel,
        head: nn.Module,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        cache: HGRNCache | None,
    ) -> Tensor | None:
        """One new token for each sequence.

        Args:
            backbone, head: the parts of the model, as they are now. If they have changed they are
                compiled anew.
            input_ids: `[N, 1]`.
            attention_mask: as the model takes it.
            cache: of N sequences; it is updated.

        Returns:
            Logits `[N, 1, vocab_size]`; None if the model has to compute this call itself.
        """
        if input_ids is None or cache is None or not _suits(input_ids, attention_mask, cache):
            return None
        size = len(input_ids)
        program = self._programs.get(size)
        if size not in self._programs or (
            program is not None and not _is_current(program, backbone, head)
        ):
            program = self._programs[size] = _compile(backbone, head, size)
        if program is None:
            return None
        x = backbone.embed(input_ids)
        # The setter is decorated, so the checker does not see it.
        program.stepper.state = cache.state  # pyright: ignore[reportAttributeAccessIssue]
        try:
            logits = program.stepper(x[:, 0])
        except NotSteppable:  # the model has changed into one that has no program
            self._programs[size] = None
            return None
        cache.update_state(program.stepper.state, 1)
        return logits[:, None]


class _Active(threading.local):
    """The models that are stepping in this thread, by id.

    They are kept here and not on the model, which may step in several threads at once, and be
    copied meanwhile.
    """

    def __init__(self) -> None:
        self.steps: dict[int, CompiledSteps] = {}


_active = _Active()


def active_steps(model: nn.Module) -> CompiledSteps | None:
    """The compiled steps with which this model is stepping in this thread; None if it is not."""
    return _active.steps.get(id(model))


@contextlib.contextmanager
def step_with(model: nn.Module, steps: CompiledSteps) -> Iterator[None]:
    """Let the model step in this thread while inside; what is active already stays."""
    if id(model) in _active.steps:
        yield
        return
    _active.steps[id(model)] = steps
    try:
        yield
    finally:
        del _active.steps[id(model)]


def _suits(input_ids: Tensor, attention_mask: Tensor | None, cache: HGRNCache) -> bool:
    """Whether a call is one for which there are compiled steps."""
    return (
        isinstance(cache, HGRNCache)
        and input_ids.ndim == 2
        and input_ids.shape[1] == 1
        and not torch.is_grad_enabled()
        and not must_dispatch((input_ids,))
        and not torch.is_autocast_enabled("cpu")
        and cache.is_initialized
        and cache.batch_size == len(input_ids)
        and (attention_mask is None or bool(attention_mask[:, -1].all()))
    )


def _is_current(program: _Program, backbone: nn.Module, head: nn.Module) -> bool:
    same_parts = program.backbone is backbone and program.head is head
    return same_parts and not program.watch.has_changed()


def _compile(backbone: HGRNModel, head: nn.Module, size: int) -> _Program | None:
    """A program for `size` sequences; None for a model that has none."""
    drops_out = backbone.dropout.training and backbone.dropout.p > 0
    if type(backbone) is not HGRNModel or has_own_forward(backbone) or drops_out:
        return None
    try:
        stepper = Stepper(backbone.stack, size, head)
    except NotSteppable:
        return None
    return _Program(backbone, head, Watch([backbone, backbone.dropout]), stepper)
