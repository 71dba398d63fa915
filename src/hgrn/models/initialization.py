"""How the parameters of a new model start: the published schemes, module by module."""

import math

import torch
from torch import nn
from transformers import initialization as init

from hgrn.modules import BatchNorm, LowerBounds, Mixer, ShortConvolution

# The standard deviation of embeddings; "pytorch" has 1 / sqrt(hidden_size).
_EMBEDDING_STD = {"normal": 0.02, "lra": 1.0}
# The modules below start in the same way in all schemes, and say themselves how.
_SELF_INITIALIZED = (nn.LayerNorm, nn.RMSNorm, BatchNorm, LowerBounds)


@torch.no_grad()
def initialize(module: nn.Module, scheme: str) -> None:
    """Set the parameters of one module, but not those of the modules inside it.

    It writes only through `transformers.initialization`, or under its guard. Both leave alone every
    tensor that was loaded, so a checkpoint in which one tensor is missing keeps all others.
    """
    if isinstance(module, nn.Linear):
        _initialize_linear(module, scheme)
    elif isinstance(module, nn.Embedding):
        std = _EMBEDDING_STD.get(scheme, float(module.embedding_dim**-0.5))
        table = torch.empty_like(module.weight).normal_(std=std)
        if module.padding_idx is not None:
            table[module.padding_idx] = 0
        init.copy_(module.weight, table)
    elif isinstance(module, ShortConvolution) and scheme == "normal":
        init.normal_(module.weight, std=0.02)
    elif isinstance(module, (*_SELF_INITIALIZED, ShortConvolution)):
        with init.guard_torch_init_functions():
            module.reset_parameters()
    elif isinstance(module, Mixer):
        module.reset_parameters(init)


def _initialize_linear(module: nn.Linear, scheme: str) -> None:
    if scheme == "normal":
        init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            init.zeros_(module.bias)
        return
    # PyTorch's own default, written out: its `reset_parameters` rounds the limit differently.
    limit = 1 / math.sqrt(module.in_features)
    init.uniform_(module.weight, -limit, limit)
    if module.bias is not None:
        init.uniform_(module.bias, -limit, limit)
