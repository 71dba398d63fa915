"""All options of the public scans on a GPU, compared with the reference loop in float64.

Each combination is a kernel that must be compiled, so there is one dtype and there are few pairs;
tests/ops/test_triton.py has more of them. Shape letters: T time, D channels, C = D (real state) or
2D (complex state), N sequences.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.session import Session, interpreted
from benchmarks.scan_cases import label, refuse_if_wrong
from hgrn import ops

_DTYPE = torch.float32

# (engine, where, [x, forget, state, lower_bound, theta or None]) -> outputs
Scan = Callable[[str, dict[str, Any], Sequence[Tensor]], tuple[Tensor, ...]]


def _hgru_scan(engine: str, where: dict[str, Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, forget, state, bound, *theta = inputs
    return ops.hgru_scan(
        x, forget, bound, theta[0] if theta else None, state, engine=engine, **where
    )


def _hgru_carry(engine: str, where: dict[str, Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, forget, _, bound, *theta = inputs
    return ops.hgru_carry(x, forget, bound, *theta, engine=engine, **where)


def _gated_scan(engine: str, where: dict[str, Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, forget, state, _, *theta = inputs
    angle = theta[0] if theta else None
    log_f = F.logsigmoid(forget)
    return ops.gated_scan(x, log_f, state, theta=angle, engine=engine, **where)


_SCANS: dict[str, Scan] = {
    "hgru_scan": _hgru_scan,
    "hgru_carry": _hgru_carry,
    "gated_scan": _gated_scan,
}


def check(session: Session) -> None:
    """All scans with masks, packed sequences, initial states, in both directions."""
    steps, channels = (20, 8) if session.rehearse else (700, 96)
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(2, steps, generator=generator) > 0.3
    packing = torch.tensor([0, 0, 13, steps])
    places = {
        "mask, reverse": {"mask": mask, "reverse": True},
        "packed": {"cu_seqlens": packing},
        "packed, mask, reverse": {"cu_seqlens": packing, "mask": mask[:1], "reverse": True},
    }
    for state in ("real", "complex"):
        for place, where in places.items():
            batch = 1 if "cu_seqlens" in where else 2
            sequences = 3 if "cu_seqlens" in where else batch
            width = channels * (2 if state == "complex" else 1)
            sizes = ((batch, steps, width), (batch, steps, channels), (sequences, width))
            inputs = [torch.randn(*size, generator=generator) for size in sizes]
            bound, theta = (torch.rand(channels, generator=generator) for _ in range(2))
            inputs += [0.95 * bound] if state == "real" else [0.95 * bound, theta]
            for name, scan in _SCANS.items():
                cells: dict[str, Any] = {
                    "name": f"check of {name} {state}, {place}",
                    "dtype": label(_DTYPE),
                }
                # Checks leave no rows unless they fail, so every run repeats them.
                if not session.skips(**cells):
                    with session.guarded(**cells):
                        _compare(session, cells["name"], scan, where, inputs)


def _compare(
    session: Session, name: str, scan: Scan, where: dict[str, Any], inputs: list[Tensor]
) -> None:
    """Outputs, and the gradients of their weighted sum. Raises UserError where they differ."""
    there = {
        option: value.to(session.device) if isinstance(value, Tensor) else value
        for option, value in where.items()
    }
    found = _through("triton", scan, there, [tensor.to(session.device) for tensor in inputs])
    with interpreted(False):
        wanted = _through("reference", scan, where, [tensor.double() for tensor in inputs])
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        refuse_if_wrong(f"{name}, tensor {number},", _DTYPE, one.cpu(), other)


def _through(engine: str, scan: Scan, where: dict[str, Any], inputs: list[Tensor]) -> list[Tensor]:
    """The outputs by an engine, and the gradients of their sum under fixed random weights."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = scan(engine, where, leaves)
    generator = torch.Generator().manual_seed(3)
    # In bfloat16 weights are the same numbers in every dtype.
    weights = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs]
    grads = torch.autograd.grad(outputs, leaves, weights, allow_unused=True, materialize_grads=True)
    return [*(out.detach() for out in outputs), *grads]
