"""The rules for parameters: how they start, which stay float32, and which take no weight decay."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from hgrn.ops.arguments import at_least_float32


class Init:
    """Functions that fill a tensor in place: those of `torch.nn.init`, and `copy_`, which it lacks.

    Every `reset_parameters` of this package takes its functions from here unless it is given
    another place. `transformers.initialization` has the same functions and skips tensors that were
    loaded from a checkpoint, so hgrn.models passes it instead.
    """

    # Each call looks its function up in `nn.init`: transformers replaces them while it loads.
    @staticmethod
    def ones_(tensor: Tensor) -> Tensor:
        return nn.init.ones_(tensor)

    @staticmethod
    def zeros_(tensor: Tensor) -> Tensor:
        return nn.init.zeros_(tensor)

    @staticmethod
    def uniform_(tensor: Tensor, low: float, high: float) -> Tensor:
        return nn.init.uniform_(tensor, low, high)

    @staticmethod
    @torch.no_grad()
    def copy_(tensor: Tensor, values: Tensor) -> Tensor:
        return tensor.copy_(values)


class KeepsFloat32(nn.Module):
    """A module that keeps its `float32_parameters` float32 when the rest goes to a half precision.

    A lower bound of 0.9995 is 1.0 in bfloat16, and a layer with that bound never writes; the small
    angles at the end of theta lose their digits likewise. So `.to(torch.bfloat16)`, `.half()` and a
    parent's `.to(...)` move these parameters but do not narrow them. `.double()` widens them as
    usual. The names may also be those of buffers.
    """

    float32_parameters: tuple[str, ...] = ()

    def _float32_tensors(self) -> Iterator[Tensor]:
        """The named tensors; with a parametrization, the tensors that it computes them from."""
        for name in self.float32_parameters:
            if is_parametrized(self, name):
                parametrization = self.get_submodule(f"parametrizations.{name}")
                yield from parametrization.parameters()
                yield from parametrization.buffers()
            elif (parameter := getattr(self, name)) is not None:
                yield parameter

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        # PyTorch applies `fn` to gradients too, in a call of their own: they stay wide as well.
        kept = {id(t) for p in self._float32_tensors() for t in (p, p.grad) if t is not None}

        def without_narrowing(t: Tensor) -> Tensor:
            applied = fn(t)
            # What `fn` widens or leaves wide is fine; only the device is taken from the rest.
            if id(t) not in kept or applied.dtype == at_least_float32(applied.dtype):
                return applied
            return t.to(applied.device, at_least_float32(t.dtype))

        return super()._apply(without_narrowing, recurse)


_WITHOUT_DECAY = (nn.LayerNorm, nn.RMSNorm, nn.Embedding)


def no_decay_names(module: nn.Module) -> set[str]:
    """The parameters that take no weight decay, by their names in `module.named_parameters()`.

    The weight matrices of linear maps are decayed. Everything else is named here:
    - what a module of ours lists in its class attribute `no_decay` (theta, the lower bounds);
    - gains and offsets of norms, and all biases;
    - embeddings: a row is decayed at every step but learns only when its token occurs, so the rows
      of rare tokens would fade;
    - what a parametrization (`torch.nn.utils.parametrize`) computes any of these from.
    """
    names = set()
    for prefix, part in module.named_modules():
        # A class attribute, so that a module of anyone's may have one.
        exempt = getattr(part, "no_decay", ())
        for attribute, name in _own_parameters(part):
            if isinstance(part, _WITHOUT_DECAY) or attribute == "bias" or attribute in exempt:
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def _own_parameters(part: nn.Module) -> Iterator[tuple[str, str]]:
    """The attribute and the trained tensor's name, for each parameter of the module itself.

    The two names differ where a parametrization computes the attribute from the trained tensor.
    """
    for name, _ in part.named_parameters(recurse=False):
        yield name, name
    if is_parametrized(part):
        for attribute, parametrization in part.get_submodule("parametrizations").named_children():
            for name, _ in parametrization.named_parameters():
                yield attribute, f"parametrizations.{attribute}.{name}"


def layer_matrices(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The weights of the linear maps inside the blocks: name -> rows of each map joined in it.

    Embeddings and output heads are left out, because their rows belong to tokens; so are weights
    with a parametrization, because they are computed from other tensors.
    """
    found = {}
    for prefix, part in module.named_modules():
        if ".blocks." not in f".{prefix}.":
            continue
        for name, child in part.named_children():
            if isinstance(child, nn.Linear) and not is_parametrized(child, "weight"):
                rows = getattr(part, "joined_rows", {}).get(name, (child.out_features,))
                found[f"{prefix}.{name}.weight"] = rows
    return found
