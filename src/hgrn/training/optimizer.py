"""The optimizer that a recipe chooses, with its decay groups."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hgrn.training.muon import Muon
from hgrn.training.recipe.fields import OptimizerSpec


def build_optimizer(model: Any, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """AdamW over the parameters that train, or Muon over the matrices of the layers and AdamW over
    the rest.

    model: an `nn.Module` with the methods `no_decay_names()` and `layer_matrices()`, as all models
    of hgrn have.

    AdamW has one group with weight decay and one without; either may be absent. With
    `no_decay: module` the second holds the parameters of `model.no_decay_names()`. Muon takes the
    matrices of `model.layer_matrices()`.
    """
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    matrices = model.layer_matrices() if spec.name == "muon" else {}
    spared = model.no_decay_names() if spec.no_decay == "module" else set()
    decayed = []
    undecayed = []
    for name, parameter in parameters.items():
        if name not in matrices:
            (undecayed if name in spared else decayed).append(parameter)
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decayed, spec.weight_decay), (undecayed, 0.0))
        if members
    ]
    options = {"lr": spec.lr, "betas": spec.betas, "eps": spec.eps}
    # The fused kernel updates all tensors of a group in one pass.
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, fused=True, **options)
    pairs = [(parameters[name], rows) for name, rows in matrices.items() if name in parameters]
    return Muon(pairs, groups, spec.weight_decay, **options)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Every parameter that an optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this rank holds; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` for the next step of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
