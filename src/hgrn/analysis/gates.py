"""Measure the forget gates of a trained model beside their learned lower bounds, layer by layer.

That the gates of upper layers stay close to 1 is the central claim of the paper.
Shape letters: L layers, B batch, T time, D channels.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hgrn.models import HGRNForCausalLM
from hgrn.modules import HGRU, HGRN2Mixer


@dataclass(frozen=True)
class LayerGates:
    """The forget gates of one layer over some text; each tensor has one value a channel, `[D]`.

    All values lie in [0, 1]. lower_bound: what the layer has learned, None in a model without.
    mean, low, high: the mean over the positions, and their 5 % and 95 % quantiles.
    """

    lower_bound: Tensor | None
    mean: Tensor
    low: Tensor
    high: Tensor


def forget_gates(model: HGRNForCausalLM, input_ids: Tensor) -> Tensor:
    """The forget gate of every layer, position and channel, between 0 and 1.

    These are `lambda = gamma + (1 - gamma) sigmoid(W_f x + b_f)`, with gamma the lower bound
    (paper, section 3; in HGRN2 the same gates are those of the keys).

    Args:
        model: with mixers `HGRU`, `HGRN2Mixer`, or classes derived from them that keep `project`
            and `gates`.
        input_ids: tokens of one text, int64 `[T]`.

    Returns:
        `[L, T, D]`, float32 (float64 of a model in float64).

    Raises:
        TypeError: a layer has another mixer, whose gates nobody knows.
        ValueError: input_ids has another shape.
    """
    if input_ids.ndim != 1 or not len(input_ids):
        raise ValueError(
            f"input_ids must be the tokens of one text, [T] with T >= 1, got shape "
            f"{tuple(input_ids.shape)}"
        )
    return _gates(model, input_ids[None])[:, 0]


def gate_statistics(model: HGRNForCausalLM, input_ids: Tensor) -> list[LayerGates]:
    """The forget gates of every layer over `input_ids [B, T]`; errors as `forget_gates`."""
    values = _gates(model, input_ids).flatten(1, 2)
    layers = []
    for bound, gates in zip(model.model.stack.lower_bounds(), values, strict=True):
        low, high = gates.quantile(gates.new_tensor([0.05, 0.95]), dim=0)
        bound = None if bound is None else bound.detach()
        layers.append(LayerGates(bound, gates.mean(0), low, high))
    return layers


@torch.no_grad()
def _gates(model: HGRNForCausalLM, input_ids: Tensor) -> Tensor:
    """All gates over `[B, T]`, as `[L, B, T, D]`."""
    stack = model.model.stack
    found: list[Tensor] = []

    def listen(mixer: Any, arguments: tuple[Tensor, ...]) -> None:
        x, lower_bound, *_ = arguments
        _, forget, *_ = mixer.project(x)
        log_f, _ = mixer.gates(forget, lower_bound)
        found.append(log_f.exp())

    # The model does not return its gates, so a hook on each mixer projects its input once more.
    with ExitStack() as hooks:
        for number, block in enumerate(stack.blocks, 1):
            mixer = block.mixer
            if not isinstance(mixer, (HGRU, HGRN2Mixer)):
                raise TypeError(
                    f"layer {number} has a {type(mixer).__name__}, whose forget gates are not "
                    "known; only those of HGRU, HGRN2Mixer and classes derived from them are"
                )
            hook = mixer.register_forward_pre_hook(listen)
            hooks.callback(hook.remove)
        was_training = model.training
        model.eval()
        model(input_ids=input_ids, use_cache=False, logits_to_keep=1)
        model.train(was_training)
    return torch.stack(found)
