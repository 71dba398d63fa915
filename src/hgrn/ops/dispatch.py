"""How a registered operator is called, and how it is derived.

A Python operator costs PyTorch's dispatcher more than a tenth of a millisecond a call, as much as
the work of a small scan. So in plain eager mode a call goes straight to the function. There are two
other ways: through the dispatcher, where something must see the operator; and through a composition
of functions that PyTorch can derive, where it would not ask the operator for a derivative.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from hgrn.ops.addresses import is_plain

_DERIVING = (TransformType.Grad, TransformType.Jvp)
_BATCHING = torch._C._dispatch_key_parse("VmapMode")  # on while torch.autograd batches gradients


@torch.compiler.assume_constant_result
def is_transformed() -> bool:
    """Whether forward mode is on, or a transform of torch.func that makes derivatives.

    PyTorch asks no Python operator for these. Forward mode would take its results for constants.
    """
    if forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(interpreter.key() in _DERIVING for interpreter in get_interpreter_stack())


def must_dispatch(arguments: tuple) -> bool:
    """Whether a call must go through PyTorch's dispatcher.

    It must where a tracer, a transform of torch.func, a dispatch mode or a tensor subclass has to
    see the operator. It also must where a tensor is no plain memory (on the meta device, negated
    lazily, zeros that were never written) and for the batches of gradients of `is_grads_batched`:
    the dispatcher knows what to do with these.
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
    # A loop, because a generator costs as much again.
    for x in arguments:  # noqa: SIM110
        if isinstance(x, Tensor) and not is_plain(x):
            return True
    return False


class Operator:
    """A function registered as `torch.ops.<name>`, with its derivatives.

    Its schema has all tensors first, then plain values. Attributes:
        overload: the operator as PyTorch's dispatcher knows it.
        composition: a function of the same arguments and results that PyTorch can derive; None if
            derivatives of the operator are never asked for.
    """

    def __init__(self, name: str, function: Callable):
        self._function = function
        self._direct = function
        self._registered = torch.library.custom_op(name, function, mutates_args=())
        self.register_fake = self._registered.register_fake
        self.register_vmap = self._registered.register_vmap
        self.overload = self._registered._opoverload
        self.composition: Callable | None = None
        kinds = [str(argument.type) for argument in self.overload._schema.arguments]
        self._tensors = sum("Tensor" in kind for kind in kinds)

    def __call__(self, *arguments):
        if is_transformed():
            if self.composition is None:
                raise NotImplementedError(
                    f"{self.overload} has no forward-mode derivatives, and none under torch.func"
                )
            return self.composition(*arguments)
        return (self._registered if must_dispatch(arguments) else self._direct)(*arguments)

    def without_derivatives(self, *arguments: Any) -> Any:
        """The results alone, for a function that knows its own derivatives."""
        return (self._registered if must_dispatch(arguments) else self._function)(*arguments)

    def register_composition(self, composition: Callable) -> Callable:
        """Sets `composition`; a decorator."""
        self.composition = composition
        return composition

    def register_gradient(
        self, keep: tuple[int, ...] = (), constant: tuple[int, ...] = ()
    ) -> Callable[[Callable], Callable]:
        """Registers the decorated function as the gradient.

        It takes the arguments of the operator, the outputs numbered in `keep`, and the gradients of
        all outputs. It returns the gradients of the first arguments; the rest have none.
        It need not be differentiable: where a derivative of a gradient is asked for, the gradient
        is that of the composition.

        Args:
            constant: numbers of the outputs that have no gradient.
        """

        def register(gradient: Callable) -> Callable:
            def setup(ctx, inputs, output):
                outputs = (output,) if isinstance(output, Tensor) else output
                if constant:
                    ctx.mark_non_differentiable(*(outputs[number] for number in constant))
                ctx.save_for_backward(
                    *inputs[: self._tensors], *(outputs[number] for number in keep)
                )
                ctx.values = inputs[self._tensors :]

            def backward(ctx, *grads):
                # Read once: gradient checkpointing gives them once.
                saved = ctx.saved_tensors
                arguments = (*saved[: self._tensors], *ctx.values)
                needs = ctx.needs_input_grad
                if torch.is_grad_enabled() or is_transformed():
                    found = self._derivable_gradients(arguments, needs, grads)
                else:
                    found = gradient(arguments, saved[self._tensors :], grads)
                padding = (None,) * (len(needs) - len(found))
                return tuple(g if need else None for need, g in zip(needs, found)) + padding

            self._registered.register_autograd(backward, setup_context=setup)
            self._direct = _autograd_function(self._function, setup, backward).apply
            return gradient

        return register

    def _derivable_gradients(self, arguments: tuple, needs: tuple[bool, ...], grads: tuple) -> list:
        """Gradients that can be derived again: those of the composition."""
        assert self.composition is not None
        wanted = [x for x, need in zip(arguments, needs) if need]
        with torch.enable_grad():
            outputs = self.composition(*arguments)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            pairs = [pair for pair in zip(outputs, grads) if pair[0].requires_grad]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                wanted,
                [grad for _, grad in pairs],
                create_graph=True,
                materialize_grads=True,
            )
        )
        return [next(found) if need else None for need in needs]


def _autograd_function(function: Callable, setup: Callable, backward: Callable):
    """The operator for PyTorch's autograd alone, without the dispatcher."""

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            output = function(*arguments)
            setup(ctx, arguments, output)
            return output

    Direct.backward = staticmethod(backward)
    Direct.__name__ = Direct.__qualname__ = function.__name__
    return Direct


def operator(name: str) -> Callable[[Callable], Operator]:
    """Registers the decorated function under `name`."""
    return lambda function: Operator(name, function)
