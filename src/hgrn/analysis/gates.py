"""The forget gates of a trained model beside their learned lower bounds: the central claim of the paper, measured."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn.models import HGRNForCausalLM
from hgrn.ops.reference import gates


@dataclass(frozen=True)
class LayerGates:
    """The forget gates of one layer over some text; every tensor has one value per channel, `[D]`, in [0, 1].

    lower_bound: what the layer has learned; None in a model without. mean, low, high: mean, 5 % and 95 % quantiles over the
    positions.
    """

    lower_bound: Tensor | None
    mean: Tensor
    low: Tensor
    high: Tensor


@torch.no_grad()
def gate_statistics(model: HGRNForCausalLM, input_ids: Tensor) -> list[LayerGates]:
    """The forget gates `lambda = gamma + (1 - gamma) sigmoid(W_f x + b_f)` of every layer over `input_ids [B, T]`."""
    stack = model.model.stack
    forgets = []
    with ExitStack() as hooks:
        for block in stack.blocks:
            keep = block.mixer.register_forward_pre_hook(
                lambda mixer, arguments: forgets.append(
                    mixer.project(arguments[0])[1].flatten(0, 1)
                )
            )
            hooks.callback(keep.remove)
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
