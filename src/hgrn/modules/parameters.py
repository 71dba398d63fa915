"""What is special about some parameters: which never leave float32, and which take no weight decay."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precisions; float32 and float64 as they are."""
    return torch.promote_types(dtype, torch.float32)


class KeepsFloat32(nn.Module):
    """A module whose `float32_parameters` (buffers may be among them) stay float32 when the rest goes to a half precision.

    A lower bound of 0.9995 is 1.0 in bfloat16, and a layer with that bound never writes; the small angles at
    the end of theta lose their digits likewise. So `.to(torch.bfloat16)`, `.half()` and a parent's `.to(...)`
    move these parameters but do not narrow them. `.double()` widens them as usual.
    """

    float32_parameters: tuple[str, ...] = ()

    def _wide(self) -> Iterator[Tensor]:
        """What stays float32: the parameters themselves, or what a parametrization computes them from."""
        for name in self.float32_parameters:
            if is_parametrized(self, name):
                yield from self.parametrizations[name].parameters()
                yield from self.parametrizations[name].buffers()
            elif (parameter := getattr(self, name)) is not None:
                yield parameter

    def _apply(self, fn, recurse=True):
        kept = {id(t) for p in self._wide() for t in (p, p.grad) if t is not None}

        def without_narrowing(t: Tensor) -> Tensor:
            applied = fn(t)
            if id(t) not in kept or applied.dtype == at_least_float32(applied.dtype):
                return applied
            return t.to(applied.device, at_least_float32(t.dtype))

        return super()._apply(without_narrowing, recurse)


_WITHOUT_DECAY = (nn.LayerNorm, nn.RMSNorm, nn.Embedding)


def no_decay_names(module: nn.Module) -> set[str]:
    """The parameters that take no weight decay, by their names in `module.named_parameters()`.

    What is decayed is the weight matrices of linear maps; everything else is named here:
    - what a module of ours lists in its class attribute `no_decay` (theta, the table of lower bounds);
    - gains and offsets of norms, and all biases;
    - embeddings: a row is decayed at every step but learns only when its token occurs: rare ones would fade;
    - what a parametrization (`torch.nn.utils.parametrize`) computes any of these from.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for own, name in _own_parameters(part)
        if isinstance(part, _WITHOUT_DECAY) or own == "bias" or own in getattr(part, "no_decay", ())
    }


def _own_parameters(part: nn.Module) -> Iterator[tuple[str, str]]:
    """The parameters that a module has itself: what it calls each, and the name of the tensor that is trained for it."""
    for name, _ in part.named_parameters(recurse=False):
        yield name, name
    if is_parametrized(part):
        for own, parametrization in part.parametrizations.items():
            for name, _ in parametrization.named_parameters():
                yield own, f"parametrizations.{own}.{name}"


def layer_matrices(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The weights of the linear maps inside the blocks, by their names, and how many rows each of the maps laid together has.

    Embeddings and an output head are not among them: their rows belong to tokens. Nor are weights with a parametrization, which
    compute them from others.
    """
    found = {}
    for prefix, part in module.named_modules():
        for name, child in part.named_children():
            if (
                isinstance(child, nn.Linear)
                and ".blocks." in f".{prefix}."
                and not is_parametrized(child, "weight")
            ):
                rows = getattr(part, "joined_rows", {}).get(name, (child.out_features,))
                found[f"{prefix}.{name}.weight"] = rows
    return found
