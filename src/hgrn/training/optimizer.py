"""AdamW with the decay groups that a recipe chooses."""

import torch
from torch import nn

from hgrn.training.recipe import OptimizerSpec


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW over the parameters that train: one group with weight decay, one without (either may be absent).

    With `no_decay: module` the second group holds what `model.no_decay_names()` names. The fused kernel
    updates all tensors of a group in one pass.
    """
    spared = model.no_decay_names() if spec.no_decay == "module" else set()
    decayed, undecayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (undecayed if name in spared else decayed).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, spec.weight_decay), (undecayed, 0.0))
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Every parameter that an optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` for the next step of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
