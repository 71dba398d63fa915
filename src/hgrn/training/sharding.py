"""Weights and optimizer state in parts, one for every rank: FSDP2, and its checkpoints.

Every parameter is a DTensor, cut along its first axis into one stretch for each rank, in rank
order. The parameters of a block are gathered when the block runs. A sharded checkpoint is a folder
of safetensors files, one per rank, that `torch.distributed.checkpoint` writes and reads. There is
no pickled index, and any number of ranks can read the parts that it needs.
"""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hgrn.modules import Block


def shard(model: nn.Module, mesh: DeviceMesh, *, bf16: bool) -> None:
    """Shard `model` in place: a unit for every block, and one for the rest.

    bf16: gather the linear maps inside the blocks in bfloat16, in which autocast computes them;
    their gradients are summed in float32. Everything else keeps its dtype: norms, lower bounds,
    theta, embeddings, and what passes between the modules. A bound of 0.9995 would be 1.0 in
    bfloat16.

    Raises RuntimeError unless every parameter is then cut as described above.
    """
    # The state that a block returns is a view, and nothing writes into it.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    narrow = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in [part for part in model.modules() if isinstance(part, Block)]:
        if bf16:
            fully_shard(
                [part for part in block.modules() if isinstance(part, nn.Linear)],
                mesh=mesh,
                mp_policy=narrow,
            )
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            raise RuntimeError(f"{name} was not sharded")
        found = parameter.to_local().shape
        expected = local_shape(parameter.shape, mesh)
        if found != expected:
            raise RuntimeError(
                f"this rank holds {tuple(found)} of {name} instead of {tuple(expected)}"
            )


def local_shape(shape: torch.Size, mesh: DeviceMesh) -> torch.Size:
    """The shape that this rank holds of a parameter: `ceil(rows / ranks)` rows, fewer in the last
    ranks."""
    rows = -(-shape[0] // mesh.size())
    return torch.Size([min(rows, max(0, shape[0] - mesh.get_local_rank() * rows)), *shape[1:]])


def saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a model saves, by name: running statistics of batch norms, never sharded."""
    names = model.state_dict().keys() - dict(model.named_parameters()).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in names}


def whole_weights(model: nn.Module, keep: bool) -> dict[str, Tensor] | None:
    """Every parameter, gathered on the CPU, and this rank's buffers, or None without `keep`.

    Collective. Parameters are gathered one after another, so only one is whole on the device.
    """
    whole = {name: buffer.cpu() for name, buffer in saved_buffers(model).items()}
    for name, parameter in model.named_parameters():
        gathered = cast(DTensor, parameter.detach()).full_tensor()
        if keep:
            whole[name] = gathered.cpu()
    return whole if keep else None


def split_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The optimizer's `state_dict` with None for sharded tensors; and those tensors and the
    weights, by their names in a sharded checkpoint."""
    state = optimizer.state_dict()
    names = _names(model, optimizer)
    sharded = {_weight(name): parameter.detach() for name, parameter in model.named_parameters()}
    for index, values in state["state"].items():
        # A copy, because `state_dict` gives the dictionaries of the optimizer itself.
        state["state"][index] = dict(values)
        for key, value in values.items():
            if isinstance(value, DTensor):
                sharded[_moment(names[index], key)] = value
                state["state"][index][key] = None
    return state, sharded


def save(folder: Path, sharded: dict[str, Tensor]) -> None:
    """Write this rank's part of a sharded checkpoint; collective, and so are its errors."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save_state(sharded, storage_writer=writer)
    except CheckpointException as error:
        # A BaseException that holds the errors of the ranks; raise that of the first one.
        failure, _ = error.failures[min(error.failures)]
        raise failure from error


def load(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Put a sharded checkpoint into a model and its optimizer, whole or sharded over any number of
    ranks.

    state: the `state_dict` that `split_state` returned; its None are filled in. A sharded
    checkpoint has no buffers (see `load_buffers`).
    """
    parameters = dict(model.named_parameters())
    wanted = {_weight(name): parameter.detach() for name, parameter in parameters.items()}
    for index, name in enumerate(_names(model, optimizer)):
        for key, value in state["state"].get(index, {}).items():
            if value is None:
                moment = torch.empty_like(parameters[name]).detach()
                state["state"][index][key] = moment
                wanted[_moment(name, key)] = moment
    # One process may read what several have written.
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning
        )
        load_state(wanted, storage_reader=HuggingFaceStorageReader(str(folder)))


def load_whole(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """The same from a file of whole weights and the optimizer's whole `state_dict`.

    Both are cut as the model is.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        load_model(model, file, device="cpu")
        return
    load_buffers(file, model)
    parameters = dict(model.named_parameters())
    with safe_open(file, framework="pt") as whole, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_cut(whole.get_tensor(name), cast(DTensor, parameter)))
    for index, name in enumerate(_names(model, optimizer)):
        for key, value in state["state"].get(index, {}).items():
            if value.shape == parameters[name].shape:
                state["state"][index][key] = _cut(value, cast(DTensor, parameters[name]))


def load_buffers(file: Path, model: nn.Module) -> None:
    """Put the saved buffers of a file of whole weights on every rank: those of the first rank."""
    with safe_open(file, framework="pt") as whole, torch.no_grad():
        for name, buffer in saved_buffers(model).items():
            buffer.copy_(whole.get_tensor(name))


def _cut(tensor: Tensor, parameter: DTensor) -> DTensor:
    """A whole tensor of a parameter's shape, cut as the parameter is."""
    tensor = tensor.to(parameter.device)
    return distribute_tensor(
        tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of an optimizer's parameters, in the order of their numbers in its `state_dict`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]
    ]


def _weight(name: str) -> str:
    return f"model.{name}"


def _moment(name: str, key: str) -> str:
    return f"optimizer.{name}.{key}"
