"""The scans that are timed: their inputs, the call, the bytes that it must move, and its check."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor

from hgrn import ops
from hgrn.errors import UserError

# The largest error allowed, relative to the largest value of a tensor. In half precision these are
# a few units in the last place.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# A check has at most so many numbers in a step, and in all. That is enough for work to be split as
# it is in what is timed, and few enough for the reference, which is slow.
_CHECKED_STEP = 1 << 14
_CHECKED = 1 << 19

Shape = tuple[int, int, int]
Output = TypeVar("Output")


def label(dtype: torch.dtype) -> str:
    """The name of a dtype, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class ScanCase:
    """`hgru_scan` or `gated_scan` of a real or a complex state; forward, or forward and backward.

    Shape letters: B batch, T time, D channels, C = D (real state) or 2D (complex state).
    """

    kernel: str
    complex_state: bool
    backward: bool

    @property
    def name(self) -> str:
        state = "complex" if self.complex_state else "real"
        return f"{self.kernel} {state} {'forward+backward' if self.backward else 'forward'}"

    def minimal_bytes(self, shape: Shape, dtype: torch.dtype) -> int:
        """The least traffic of a call at `[B, T, D]`.

        Forward reads the input and the gate and writes h. Backward reads these, h and its gradient,
        and writes two gradients.
        """
        batch, steps, channels = shape
        # Numbers of a channel: of the input (and of h), and of the gate.
        wide = 2 if self.complex_state else 1
        narrow = 1
        forward = 2 * wide + narrow
        backward = 4 * wide + 2 * narrow
        total = forward + backward if self.backward else forward
        return total * batch * steps * channels * dtype.itemsize

    def inputs(self, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Input `[B, T, C]`, gate `[B, T, D]`; then lower_bound and theta `[D]` if it has them."""
        batch, steps, channels = shape
        generator = torch.Generator().manual_seed(0)
        width = channels * (2 if self.complex_state else 1)
        x = torch.randn(batch, steps, width, generator=generator).to(dtype)
        gate = torch.randn(batch, steps, channels, generator=generator)
        if self.kernel == "gated_scan":
            gate = torch.nn.functional.logsigmoid(gate)
        tensors = [x, gate.to(dtype)]
        if self.kernel == "hgru_scan":
            # Up to 0.95. A state that is kept for thousands of steps would show how cos(theta) was
            # rounded, not what a kernel does.
            tensors.append(0.95 * torch.rand(channels, generator=generator))
        if self.complex_state:
            tensors.append(torch.rand(channels, generator=generator))
        return tuple(tensors)

    def call(
        self, inputs: tuple[Tensor, ...], engine: str | None = None
    ) -> Callable[[], tuple[Tensor, ...]]:
        """A function that returns h, and with backward the gradients of all inputs."""
        if not self.backward:
            return lambda: (self._scan(inputs, engine),)
        inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(inputs[0].shape, generator=generator).to(inputs[0].dtype)

        def forward_backward() -> tuple[Tensor, ...]:
            h = self._scan(inputs, engine)
            return h.detach(), *torch.autograd.grad(h, inputs, grad)

        return forward_backward

    def _scan(self, inputs: tuple[Tensor, ...], engine: str | None) -> Tensor:
        if self.kernel == "hgru_scan":
            return ops.hgru_scan(*inputs, engine=engine)[0]
        x, log_f, *theta = inputs
        return ops.gated_scan(x, log_f, theta=theta[0] if theta else None, engine=engine)[0]


def check(case: ScanCase, shape: Shape, dtype: torch.dtype) -> None:
    """Compare a call with the float64 reference at a smaller shape; both as an op and as a kernel.

    Small batches stay, and so do the channels, because the engine chooses its blocks by them. Time
    is cut first. Raises UserError where they differ.
    """
    batch, steps, channels = shape
    batch = min(batch, max(1, _CHECKED_STEP // channels))
    steps = min(steps, max(128, _CHECKED // (batch * channels)))
    inputs = case.inputs((batch, steps, channels), dtype)
    expected = case.call(tuple(tensor.double() for tensor in inputs), "reference")()
    call = case.call(inputs)
    kernel = GivenOutputs().wrap(call)
    kernel()  # allocates the memory that the next call is given
    for kind, actual in (("op", call()), ("kernel", kernel())):
        for number, (found, wanted) in enumerate(zip(actual, expected, strict=True)):
            what = "h" if number == 0 else f"the gradient of input {number}"
            refuse_if_wrong(f"{case.name} ({kind}), {what}", dtype, found, wanted)


def refuse_if_wrong(kernel: str, dtype: torch.dtype, found: Tensor, expected: Tensor) -> None:
    """Raise UserError unless `found` is within the tolerance of its dtype from `expected`."""
    scale = expected.abs().max().item()
    error = (found.double() - expected).abs().max().item() / max(scale, 1e-30)
    allowed = TOLERANCES[dtype]
    if not error <= allowed:  # this also refuses NaN
        raise UserError(
            f"{kernel} in {label(dtype)} differs from the reference by {error:.2g} of the "
            f"largest value ({allowed:.0e} is allowed), so no time of it is reported; "
            "try `hgrn doctor`, and report this"
        )


class GivenOutputs:
    """Memory for the results of a call of the CPU engine, kept and given to every later call.

    A "kernel" therefore is the same code as an "op", autograd included, without the allocation of
    what it returns.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def wrap(self, function: Callable[[], Output]) -> Callable[[], Output]:
        """The function with its results in the kept memory; each call overwrites the last."""

        def call() -> Output:
            with self._given():
                return function()

        return call

    @contextmanager
    def _given(self) -> Iterator[None]:
        """Inside, the engine gets the kept memory, in the order of its first requests."""
        from hgrn.ops.cpu import launch

        # The public functions take no memory for their results, so this replaces the engine's
        # allocation.
        allocate = launch._empty
        kept = iter(tuple(self._kept))

        def hand_out(*arguments: Any) -> Tensor:
            tensor = next(kept, None)
            if tensor is None:
                tensor = allocate(*arguments)
                self._kept.append(tensor)
            return tensor.detach()  # autograd marks the tensor that it gets, so it gets its own

        with mock.patch.object(launch, "_empty", hand_out):
            yield
