"""Other people's ways to run `h_t = a_t h_{t-1} + x_t` on a CPU, with gradients.

Each gets the layout that it likes best. All but the loop and PyTorch's scan need a package (the
extra `bench`). Shape letters: B batch, T time, D channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import version


@dataclass(frozen=True)
class Prepared:
    """A peer whose inputs are laid out.

    run: returns h and the gradients of a and x in the peer's layout. back: turns each of these into
    `[B, T, D]`.
    """

    run: Callable[[], tuple]
    back: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Peer:
    """A peer and its package.

    prepare: lays out a, x and the gradient of h, each `[B, T, D]`, before anything is timed. Raises
    ImportError if the package is not installed.
    """

    name: str
    package: str
    prepare: Callable[[Tensor, Tensor, Tensor], Prepared]

    def note(self) -> str:
        """The package and its version."""
        return f"{self.package} {version(self.package)}"


def _with_autograd(
    scan: Callable[[Tensor, Tensor], Tensor], a: Tensor, x: Tensor, grad: Tensor
) -> Callable[[], tuple]:
    a = a.detach().requires_grad_()
    x = x.detach().requires_grad_()

    def run() -> tuple:
        h = scan(a, x)
        return h.detach(), *torch.autograd.grad(h, (a, x), grad)

    return run


def _loop(a: Tensor, x: Tensor, grad: Tensor) -> Prepared:
    def scan(a: Tensor, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        states = []
        for gate, value in zip(a.unbind(1), x.unbind(1)):
            state = gate * state + value
            states.append(state)
        return torch.stack(states, 1)

    return Prepared(_with_autograd(scan, a, x, grad), lambda y: y)


def _accelerated_scan(a: Tensor, x: Tensor, grad: Tensor) -> Prepared:
    # The only part of the package that runs on a CPU. It expects [B, D, T].
    from accelerated_scan.ref import scan

    a, x, grad = (tensor.transpose(1, 2).contiguous() for tensor in (a, x, grad))
    return Prepared(_with_autograd(scan, a, x, grad), lambda y: y.transpose(1, 2))


def _mambapy(a: Tensor, x: Tensor, grad: Tensor) -> Prepared:
    from mambapy.pscan import pscan

    # It expects [B, T, D, N] with N numbers of a state.
    a, x, grad = (tensor.unsqueeze(-1) for tensor in (a, x, grad))
    return Prepared(_with_autograd(pscan, a, x, grad), lambda y: y.squeeze(-1))


def _associative_scan(a: Tensor, x: Tensor, grad: Tensor) -> Prepared:
    from torch._higher_order_ops.associative_scan import associative_scan

    def scan(a: Tensor, x: Tensor) -> Tensor:
        # The other mode, "pointwise", is for GPUs.
        return associative_scan(_combine, (a, x), dim=1, combine_mode="generic")[1]

    return Prepared(_with_autograd(scan, a, x, grad), lambda y: y)


def _combine(left: tuple, right: tuple) -> tuple:
    return left[0] * right[0], right[0] * left[1] + right[1]


def _jax(
    scan: Callable[[Any, Any], Any], time_first: bool
) -> Callable[[Tensor, Tensor, Tensor], Prepared]:
    def prepare(a: Tensor, x: Tensor, grad: Tensor) -> Prepared:
        import jax

        jax.config.update("jax_platforms", "cpu")

        @jax.jit
        def with_gradients(a, x, grad):
            h, pull = jax.vjp(scan, a, x)
            return h, *pull(grad)

        laid_out = [t.transpose(0, 1).contiguous() if time_first else t for t in (a, x, grad)]
        a, x, grad = (jax.numpy.array(tensor.numpy()) for tensor in laid_out)

        def back(y) -> Tensor:
            y = torch.tensor(jax.device_get(y))
            return y.transpose(0, 1) if time_first else y

        return Prepared(lambda: jax.block_until_ready(with_gradients(a, x, grad)), back)

    return prepare


def _jax_scan(a, x):
    from jax import lax, numpy

    def step(state, now):
        state = now[0] * state + now[1]
        return state, state

    return lax.scan(step, numpy.zeros_like(x[0]), (a, x))[1]


def _jax_associative_scan(a, x):
    from jax import lax

    return lax.associative_scan(_combine, (a, x), axis=1)[1]


PEERS = (
    Peer("PyTorch loop", "torch", _loop),
    Peer("accelerated-scan reference", "accelerated-scan", _accelerated_scan),
    Peer("mambapy pscan", "mambapy", _mambapy),
    Peer("PyTorch associative_scan", "torch", _associative_scan),
    Peer("JAX lax.scan", "jax", _jax(_jax_scan, time_first=True)),
    Peer("JAX lax.associative_scan", "jax", _jax(_jax_associative_scan, time_first=False)),
)
