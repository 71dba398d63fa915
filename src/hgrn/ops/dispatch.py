"""How a registered operator is called: straight, through PyTorch's dispatcher where something listens, or as what can be derived."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

_DERIVING = (TransformType.Grad, TransformType.Jvp)


@torch.compiler.assume_constant_result
def is_transformed() -> bool:
    """Whether forward-mode derivatives, or a transform of torch.func that makes derivatives, are at work.

    PyTorch shows them no operator that is registered from Python: forward mode takes its results for constants.
    """
    if forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(
        interpreter.key() in _DERIVING
        for interpreter in torch._C._functorch.get_interpreter_stack()
    )


from hgrn.ops.addresses import is_plain

_BATCHING = torch._C._dispatch_key_parse("VmapMode")  # on while torch.autograd batches gradients


def is_listened_to(arguments: tuple) -> bool:
    """Whether the operator itself must be seen, and by whom: a tracer, a transform of torch.func, a dispatch mode, a tensor subclass.

    Or by PyTorch's dispatcher, which knows what to do with a tensor that is no plain memory: one of the meta device, one that is
    negated or zero without its values being written down, and the batches of gradients in `is_grads_batched`.
    """
    if (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None  # torch.jit.trace
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._dispatch_tls_is_dispatch_key_included(_BATCHING)
    ):
        return True
    for x in arguments:
        if isinstance(x, Tensor) and not is_plain(x):
            return True
    return False


class Operator:
    """A function registered as `torch.ops.<name>`, with its gradient.

    A call of a Python operator costs the dispatcher more than a tenth of a millisecond, as much as the work of a small one. So in
    plain eager mode a call goes to the function directly, or to an `autograd.Function` made of the same two parts as the
    registered gradient. Where derivatives are made that PyTorch does not ask a registered operator for, it goes to a
    composition of functions that it does ask.
    """

    def __init__(self, name: str, function: Callable):
        self._function = function
        self._direct = function
        self._composition = None
        self.registered = torch.library.custom_op(name, function, mutates_args=())
        self.register_fake = self.registered.register_fake
        self.register_vmap = self.registered.register_vmap

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The operator as the dispatcher knows it."""
        return self.registered._opoverload

    def register_autograd(self, backward: Callable, setup_context: Callable) -> None:
        """As `torch.library.CustomOpDef.register_autograd`."""
        self.registered.register_autograd(backward, setup_context=setup_context)
        function = self._function

        class Direct(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *arguments):
                output = function(*arguments)
                setup_context(ctx, arguments, output)
                return output

        Direct.backward = staticmethod(backward)
        Direct.__name__ = Direct.__qualname__ = function.__name__
        self._direct = Direct.apply

    def register_composition(self, composition: Callable) -> Callable:
        """What the operator is under `is_transformed`: a function of the same arguments that PyTorch can derive."""
        self._composition = composition
        return composition

    def without_derivatives(self, *arguments):
        """The operator as it computes, for a function that knows its derivatives."""
        return (self.registered if is_listened_to(arguments) else self._function)(*arguments)

    def __call__(self, *arguments):
        if is_transformed():
            if self._composition is None:
                raise NotImplementedError(
                    f"{self.overload} has no forward-mode derivatives, and none under torch.func"
                )
            return self._composition(*arguments)
        return (self.registered if is_listened_to(arguments) else self._direct)(*arguments)


def operator(name: str) -> Callable[[Callable], Operator]:
    """Registers the decorated function under `name`."""
    return lambda function: Operator(name, function)
