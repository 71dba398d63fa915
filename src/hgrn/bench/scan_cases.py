"""The scans that are measured: their inputs, a call, the bytes that it must move, and the check of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn.errors import UserError

# The largest error allowed, relative to the largest value of a tensor. Half precisions: a few units in the last place.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Of a check, numbers a step and numbers in all at most: enough that work is split as in what is measured, and few
# enough for the reference, which is slow.
_CHECKED_STEP = 1 << 14
_CHECKED = 1 << 19


@dataclass(frozen=True)
class ScanCase:
    """`hgru_scan` or `gated_scan`, of a real or a complex state, forward or forward and backward."""

    kernel: str
    complex_state: bool
    backward: bool

    @property
    def name(self) -> str:
        state = "complex" if self.complex_state else "real"
        return f"{self.kernel} {state} {'forward+backward' if self.backward else 'forward'}"

    def minimal_bytes(self, shape: tuple[int, int, int], dtype: torch.dtype) -> int:
        """Forward reads input and gate and writes h; backward reads these, h and its gradient, and writes two."""
        batch, steps, channels = shape
        numbers = (
            2 if self.complex_state else 1,
            1,
        )  # of the input (and h) and of the gate, a channel
        forward = 2 * numbers[0] + numbers[1]
        backward = 4 * numbers[0] + 2 * numbers[1]
        total = forward + backward if self.backward else forward
        return total * batch * steps * channels * dtype.itemsize

    def inputs(self, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Input `[B, T, D or 2D]`, gate `[B, T, D]`, and lower_bound and theta `[D]` where the case has them."""
        batch, steps, channels = shape
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(
            batch, steps, channels * (2 if self.complex_state else 1), generator=generator
        ).to(dtype)
        gate = torch.randn(batch, steps, channels, generator=generator)
        tensors = [
            x,
            (gate if self.kernel == "hgru_scan" else torch.nn.functional.logsigmoid(gate)).to(
                dtype
            ),
        ]
        if self.kernel == "hgru_scan":
            # Up to 0.95: a state kept for thousands of steps would show how cos(theta) was rounded, not what a kernel
            # does.
            tensors.append(0.95 * torch.rand(channels, generator=generator))
        if self.complex_state:
            tensors.append(torch.rand(channels, generator=generator))
        return tuple(tensors)

    def call(
        self, inputs: tuple[Tensor, ...], engine: str | None = None
    ) -> Callable[[], tuple[Tensor, ...]]:
        """A function that returns h, and with backward the gradients of all inputs for one gradient of h."""
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
        from hgrn import ops

        if self.kernel == "hgru_scan":
            return ops.hgru_scan(*inputs, engine=engine)[0]
        x, log_f, *theta = inputs
        return ops.gated_scan(x, log_f, theta=theta[0] if theta else None, engine=engine)[0]


def check(case: ScanCase, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Compares one call, allocating and into given memory, with the float64 reference at `shape`, made smaller.

    Channels stay, because the engine chooses its blocks by them, and small batches; time is cut first. Raises UserError
    where they differ.
    """
    batch, steps, channels = shape
    batch = min(batch, max(1, _CHECKED_STEP // channels))
    inputs = case.inputs(
        (batch, min(steps, max(128, _CHECKED // (batch * channels))), channels), dtype
    )
    expected = case.call(tuple(tensor.double() for tensor in inputs), "reference")()
    call = case.call(inputs)
    kernel = GivenOutputs().wrap(call)
    kernel()  # allocates what is then given
    for kind, actual in (("op", call()), ("kernel", kernel())):
        for number, (found, wanted) in enumerate(zip(actual, expected, strict=True)):
            what = "h" if number == 0 else f"the gradient of input {number}"
            refuse_if_wrong(f"{case.name} ({kind}), {what}", dtype, found, wanted)


def refuse_if_wrong(kernel: str, dtype: torch.dtype, found: Tensor, expected: Tensor) -> None:
    """Raises UserError unless `found` is within the tolerance of its dtype from the `expected` of the reference."""
    scale = expected.abs().max().item()
    error = (found.double() - expected).abs().max().item() / max(scale, 1e-30)
    if not error <= TOLERANCES[dtype]:  # NaN is not
        raise UserError(
            f"{kernel} in {str(dtype).removeprefix('torch.')} differs from the reference by {error:.2g} of the "
            f"largest value ({TOLERANCES[dtype]:.0e} is allowed), so no time of it is reported; try `hgrn doctor`, and "
            "report this"
        )


class GivenOutputs:
    """Memory for the results of a call of the CPU engine: kept from the first, handed out again in every later one.

    So a "kernel" is the same code as an "op", autograd included, less the allocation of what it returns.
    """

    def __init__(self):
        self._kept: list[Tensor] = []

    def wrap(self, function: Callable[[], object]) -> Callable[[], object]:
        """The function with its results in the kept memory; those of its call before are overwritten."""

        def call() -> object:
            with self._given():
                return function()

        return call

    @contextmanager
    def _given(self) -> Iterator[None]:
        """For one call: results go into the kept memory, in the order in which they were asked for."""
        from hgrn.ops.cpu import launch

        allocate = launch._empty
        kept = iter(tuple(self._kept))

        def hand_out(*arguments) -> Tensor:
            tensor = next(kept, None)
            if tensor is None:
                tensor = allocate(*arguments)
                self._kept.append(tensor)
            return tensor.detach()  # a tensor of its own: autograd marks the one that it gets

        launch._empty = hand_out
        try:
            yield
        finally:
            launch._empty = allocate
