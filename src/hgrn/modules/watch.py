"""Whether a model is still what it was when something was compiled from it.

This is asked before every compiled step, so the questions are those that the interpreter answers in
a sweep: comparisons of lists and of dictionaries, which look first whether both hold the same
object.
"""

from collections.abc import Iterable
from operator import getitem

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from hgrn.ops.addresses import Places

# Attributes that decide what a module computes, in the classes of which there are compiled steps.
# Training counts for the first module and for what drops something: the others compute the same.
_OPTIONS = ("training", "eps", "act", "gate_act", "gate_position")


class Watch:
    """Modules as they are now: kinds, options, hooks, contents, and where their tensors lie.

    Values of tensors are not watched. The modules inside are watched where they are given too.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self._modules = list(modules)
        self._types = list(map(type, self._modules))
        self._attributes = list(map(vars, self._modules))
        # A forward of a module's own is one attribute more.
        self._sizes = list(map(len, self._attributes))
        self._hooks = [
            hooks
            for module in self._modules
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        pairs = [
            (own, name)
            for own in self._attributes
            for name in _OPTIONS
            if name in own and (name != "training" or own is self._attributes[0] or own.get("p"))
        ]
        self._holders = [own for own, _ in pairs]
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
        # Two tensors of one element are equal where their values are, so the comparison below does
        # not tell them apart.
        self._single = [(held, name, x) for held, name, x in named if x.numel() == 1]
        self._places = Places([x for _, _, x in named])

    def has_changed(self) -> bool:
        """Whether anything is different now."""
        return (
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
        except (RuntimeError, TypeError):  # two different tensors have been compared
            return False
        return same and all(held[name] is x for held, name, x in self._single)
