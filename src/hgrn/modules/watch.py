"""Whether a model has changed since something was compiled from it.

This is asked before every compiled step, so it must be fast: it compares lists and dictionaries,
which the interpreter does in one sweep, and which first look whether both hold the same object.
"""

from collections.abc import Iterable
from operator import getitem

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from hgrn.ops.addresses import Places

# Attributes that decide what a module computes, in the classes that have compiled steps. `training`
# counts only for the first module and for dropout: it changes nothing in the others.
_OPTIONS = (
    *("training", "eps", "act", "gate_act", "gate_position"),
    *("query_act", "candidate_act", "scale", "heads"),
)


class Watch:
    """Remembers modules as they are now: types, options, hooks, contents, addresses of tensors.

    It does not watch the values of tensors, nor modules inside the given ones unless they are given
    too.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self._modules = list(modules)
        self._types = list(map(type, self._modules))
        self._attributes = list(map(vars, self._modules))
        # A `forward` or a `scan` that is set on a module is one more attribute.
        self._sizes = list(map(len, self._attributes))
        self._hooks = [
            hooks
            for module in self._modules
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        # Two parallel lists, `option` of `holder`, can be read by one `map` at every step.
        pairs = [
            (attributes, name)
            for attributes in self._attributes
            for name in _OPTIONS
            if name in attributes
            and (name != "training" or attributes is self._attributes[0] or attributes.get("p"))
        ]
        self._holders = [attributes for attributes, _ in pairs]
        self._names = [name for _, name in pairs]
        self._options = list(map(getitem, self._holders, self._names))
        kinds = [(module._parameters, module._buffers, module._modules) for module in self._modules]
        self._contents = [held for kind in kinds for held in kind if held]
        self._expected = list(map(dict, self._contents))
        named = [
            (held, name, x)
            for *tensors, _ in kinds
            for held in tensors
            for name, x in held.items()
            if x is not None
        ]
        # Two tensors of one element compare equal where their values are, so the comparison of the
        # contents does not tell them apart. These are compared by identity.
        self._single = [(held, name, x) for held, name, x in named if x.numel() == 1]
        self._places = Places([x for _, _, x in named])

    def has_changed(self) -> bool:
        """Whether anything is different now."""
        return bool(
            self._places.have_changed()
            or not self._holds_the_same()
            or any(self._hooks)
            or _has_any_global_hook()
            or list(map(type, self._modules)) != self._types
            or list(map(len, self._attributes)) != self._sizes
            or list(map(getitem, self._holders, self._names)) != self._options
        )

    def _holds_the_same(self) -> bool:
        try:
            same = self._contents == self._expected
        except (RuntimeError, TypeError):
            # Two different tensors were compared, and the result is no single truth value.
            return False
        return same and all(held[name] is x for held, name, x in self._single)
