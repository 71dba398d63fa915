"""Measure the forget gates of a trained model beside their learned lower bounds, layer by layer.

That the gates of upper layers stay close to 1 is the central claim of the paper.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hgrn.models import HGRNForCausalLM
from hgrn.ops.reference import gates


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


@torch.no_grad()
def gate_statistics(model: HGRNForCausalLM, input_ids: Tensor) -> list[LayerGates]:
    """The forget gates of every layer over `input_ids [B, T]`.

    These are `lambda = gamma + (1 - gamma) sigmoid(W_f x + b_f)`, with gamma the lower bound.
    """
    stack = model.model.stack
    forgets: list[Tensor] = []

    def listen(mixer: Any, arguments: tuple[Tensor, ...]) -> None:
        _, forget, *_ = mixer.project(arguments[0])
        forgets.append(forget.flatten(0, 1))

    # The model does not return its gates, so a hook on each mixer projects its input once more.
    with ExitStack() as hooks:
        for block in stack.blocks:
            hook = cast(nn.Module, block.mixer).register_forward_pre_hook(listen)
            hooks.callback(hook.remove)
        was_training = model.training
        model.eval()
        model(input_ids=input_ids, use_cache=False, logits_to_keep=1)
        model.train(was_training)
    layers = []
    for bound, forget in zip(stack.lower_bounds(), forgets, strict=True):
        values, _ = gates(forget.float(), bound)
        low, high = values.quantile(values.new_tensor([0.05, 0.95]), dim=0)
        layers.append(LayerGates(bound, values.mean(0), low, high))
    return layers
