"""The scans: gates against float64, times against a copy and against flash-linear-attention.

Shape letters: B batch, T time, D channels, C = D (real state) or 2D (complex state).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hgrn.bench.results import Row
from hgrn.bench.scan_cases import ScanCase, refuse_if_wrong
from torch import Tensor

from benchmarks.gpu.clock import OURS, Bench, interpreted, label
from hgrn import ops

SHAPES = ((8, 2048, 1024), (8, 2048, 2048), (1, 65536, 1024), (64, 512, 256))
TINY, TINY_LONG = (
    (1, 24, 16),
    (1, 600, 8),
)  # the interpreter is slow: the second, of several tiles, is only checked
DTYPES = (torch.bfloat16, torch.float32)
TARGETS = {"forward": 0.7, "backward": 0.8}  # of the speed of the copy, at the first three shapes
_SAMPLE = 32  # channels that are compared with float64
_PARTS = ("h", "the gradient of candidate", "of forget", "of lower_bound", "of theta")


@dataclass(frozen=True)
class Given:
    """inputs: candidate `[B, T, C]`, forget `[B, T, D]`, lower_bound and (complex only) theta `[D]`; grad is that of h."""

    inputs: tuple[Tensor, ...]
    grad: Tensor

    @classmethod
    def draw(
        cls, shape: tuple[int, int, int], dtype: torch.dtype, device: str, is_complex: bool
    ) -> "Given":
        """Drawn where they are used; lower bounds up to 0.95, as in the CPU's benchmark."""
        batch, steps, channels = shape
        generator = torch.Generator(device).manual_seed(0)

        def normal(width: int) -> Tensor:
            return torch.randn(
                batch, steps, width, generator=generator, device=device, dtype=torch.float32
            ).to(dtype)

        width = channels * (2 if is_complex else 1)
        bound, theta = (torch.rand(channels, generator=generator, device=device) for _ in range(2))
        inputs = (normal(width), normal(channels), 0.95 * bound, *((theta,) if is_complex else ()))
        return cls(tuple(tensor.requires_grad_() for tensor in inputs), normal(width))

    def sample(self) -> tuple["Given", Tensor, Tensor]:
        """Some channels in float64 on the CPU, and their columns among C and among D: channels do not mix."""
        channels = self.inputs[1].shape[-1]
        narrow = torch.linspace(0, channels - 1, min(channels, _SAMPLE)).long()
        wide = torch.cat([narrow, channels + narrow]) if len(self.inputs) == 4 else narrow

        def pick(tensor: Tensor, columns: Tensor) -> Tensor:
            return tensor.detach()[..., columns.to(tensor.device)].cpu().double()

        candidate, *others = self.inputs
        inputs = (pick(candidate, wide), *(pick(tensor, narrow) for tensor in others))
        return (
            Given(tuple(tensor.requires_grad_() for tensor in inputs), pick(self.grad, wide)),
            wide,
            narrow,
        )

    def expected(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """h and all gradients of the sampled channels by the CPU engine in float64, and the columns."""
        sample, wide, narrow = self.sample()
        with interpreted(False):
            h = ops.hgru_scan(*sample.inputs)[0]
            return [h.detach(), *torch.autograd.grad(h, sample.inputs, sample.grad)], wide, narrow


def compare(
    name: str, dtype: torch.dtype, found, expected: tuple[list[Tensor], Tensor, Tensor]
) -> None:
    """Raises UserError where results differ; found may end early."""
    wanted, wide, narrow = expected
    for number, (one, other) in enumerate(zip(found, wanted)):
        columns = wide if number < 2 else narrow
        refuse_if_wrong(
            f"{name}, {_PARTS[number]},",
            dtype,
            one.detach()[..., columns.to(one.device)].cpu(),
            other,
        )


def run(bench: Bench, check: bool, time: bool) -> None:
    if check:
        options(bench)
    if bench.rehearse:
        with bench.guarded(name="hgru_scan real", shape=str(list(TINY_LONG)), dtype="float32"):
            given = Given.draw(TINY_LONG, torch.float32, bench.device, False)
            one_scan(bench, given, TINY_LONG, torch.float32, "real", False)
    for shape in (TINY,) if bench.rehearse else SHAPES:
        for dtype in DTYPES:
            for is_complex in (False, True):
                state = "complex" if is_complex else "real"
                cells = {"shape": str(list(shape)), "dtype": label(dtype)}
                name = f"hgru_scan {state}"
                if bench.late(name=name, **cells):
                    continue
                with bench.guarded(name=name, **cells):
                    given = Given.draw(shape, dtype, bench.device, is_complex)
                    one_scan(bench, given, shape, dtype, state, time)
            if time:
                with bench.guarded(
                    name="scan real forward+backward", shape=str(list(shape)), dtype=label(dtype)
                ):
                    beside_peers(bench, shape, dtype)


def announce(bench: Bench) -> None:
    """The targets, before anything is known of them."""
    for shape in (TINY,) if bench.rehearse else SHAPES[:3]:
        for dtype in DTYPES:
            for state in ("real", "complex"):
                for way, share in TARGETS.items():
                    bench.target(f"{way} {state} {list(shape)} {label(dtype)}, of the copy", share)


def one_scan(bench: Bench, given: Given, shape, dtype: torch.dtype, state: str, time: bool) -> None:
    """Compares our scan with float64, then times it forward and backward beside copies of as many bytes."""
    cells = {"shape": str(list(shape)), "dtype": label(dtype)}
    name = f"hgru_scan {state}"

    def scan():
        h = ops.hgru_scan(*given.inputs, engine="triton")[0]
        return h, *torch.autograd.grad(h, given.inputs, given.grad)

    expected = given.expected()
    compare(name, dtype, bench.first(scan, name=name, **cells), expected)
    if not time:
        return
    plain = tuple(tensor.detach() for tensor in given.inputs)
    h = ops.hgru_scan(*given.inputs, engine="triton")[0]
    calls = {
        "forward": lambda: (ops.hgru_scan(*plain, engine="triton")[0],),
        "backward": lambda: torch.autograd.grad(h, given.inputs, given.grad, retain_graph=True),
    }
    cases = (ScanCase("hgru_scan", state == "complex", backward) for backward in (True, False))
    both, forward = (case.minimal_bytes(shape, dtype) for case in cases)
    amounts = {"forward": forward, "backward": both - forward}
    functions = {}
    for way, call in calls.items():
        call()
        functions[way, "op"] = call
        functions[way, "kernel"] = bench.capture(call)
        functions[way, "copy"] = bench.capture(copy(amounts[way], bench.device))
    replayed = functions["forward", "kernel"](), functions["backward", "kernel"]()
    bench.wait()
    compare(f"{name} from a CUDA graph", dtype, (*replayed[0], *replayed[1]), expected)
    times = bench.time(functions, 30)
    for way, amount in amounts.items():
        for kind in ("kernel", "op"):
            row = bench.add(
                Row.timed(
                    times[way, kind],
                    name=f"{name} {way}",
                    kind=kind,
                    bytes=amount,
                    limit_ms=times[way, "copy"].median,
                    note="limit: a copy of as many bytes",
                    **cells,
                )
            )
            if kind == "kernel":
                bench.reached(
                    f"{way} {state} {cells['shape']} {cells['dtype']}, of the copy", row.ratio
                )


def copy(amount: int, device: str) -> Callable[[], object]:
    """A copy that reads and writes `amount` bytes in all."""
    source = torch.zeros(amount // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def options(bench: Bench) -> None:
    """All public scans with masks, packed sequences, initial states, both directions: against the reference loop in float64.

    Each is a kernel that has to be compiled, so there is one dtype and few pairs; tests/ops/test_triton.py has more of them.
    """
    steps, channels = (20, 8) if bench.rehearse else (700, 96)
    dtype = torch.float32
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(2, steps, generator=generator) > 0.3
    packing = torch.tensor([0, 0, 13, steps])
    wheres = {
        "mask, reverse": {"mask": mask, "reverse": True},
        "packed": {"cu_seqlens": packing},
        "packed, mask, reverse": {"cu_seqlens": packing, "mask": mask[:1], "reverse": True},
    }
    for is_complex in (False, True):
        for where_name, where in wheres.items():
            batch = 1 if "cu_seqlens" in where else 2
            width = channels * (2 if is_complex else 1)
            states = 3 if "cu_seqlens" in where else batch
            x, f, s = (
                torch.randn(*size, generator=generator)
                for size in ((batch, steps, width), (batch, steps, channels), (states, width))
            )
            bound, theta = (0.95 * torch.rand(channels, generator=generator) for _ in range(2))
            angle = (theta,) if is_complex else ()
            calls = {
                "hgru_scan": lambda e, x, f, s, b, *t: ops.hgru_scan(
                    x, f, b, *t or (None,), s, engine=e, **moved(where, x)
                ),
                "hgru_carry": lambda e, x, f, s, b, *t: ops.hgru_carry(
                    x, f, b, *t, engine=e, **moved(where, x)
                ),
                "gated_scan": lambda e, x, f, s, b, *t: ops.gated_scan(
                    x, F.logsigmoid(f), s, theta=t[0] if t else None, engine=e, **moved(where, x)
                ),
            }
            for scan, call in calls.items():
                state = "complex" if is_complex else "real"
                cells = {"name": f"check of {scan} {state}, {where_name}", "dtype": label(dtype)}
                if not bench.late(**cells):
                    with bench.guarded(**cells):
                        option(bench, cells["name"], call, (x, f, s, bound, *angle), dtype)


def moved(where: dict, like: Tensor) -> dict:
    return {
        name: value.to(like.device) if isinstance(value, Tensor) else value
        for name, value in where.items()
    }


def option(bench: Bench, name: str, call, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Outputs, and the gradients of their weighted sum."""
    found = through("triton", call, [tensor.to(bench.device) for tensor in inputs])
    with interpreted(False):
        wanted = through("reference", call, [tensor.double() for tensor in inputs])
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        refuse_if_wrong(f"{name}, tensor {number},", dtype, one.cpu(), other)


def through(engine: str, call, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = call(engine, *leaves)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs]
    grads = torch.autograd.grad(outputs, leaves, weights, allow_unused=True, materialize_grads=True)
    return [*(out.detach() for out in outputs), *grads]


def beside_peers(bench: Bench, shape, dtype: torch.dtype) -> None:
    """Forward and backward in one, ours and flash-linear-attention's, each with all that makes h of the projections."""
    cells = {"name": "scan real forward+backward", "shape": str(list(shape)), "dtype": label(dtype)}
    if bench.late(peer="flash-linear-attention", **cells):
        return
    torch.compiler.reset()  # each shape is compiled for itself, not as one more of many of the same code
    given = Given.draw(shape, dtype, bench.device, False)
    expected = given.expected()
    functions = {}
    schemes = {OURS: lambda: ours(given)} | {
        f"{kind}, {'compiled' if compiled else 'eager'}": lambda kind=kind, compiled=compiled: peer(
            bench, kind, compiled, given
        )
        for kind in ("chunk_hgrn", "fused_recurrent_hgrn")
        for compiled in (False, True)
    }
    for name, build in schemes.items():
        if bench.late(peer=name, **cells):
            continue
        with bench.guarded(peer=name, **cells):
            function = build()
            compare(name, dtype, bench.first(function, peer=name, **cells), expected)
            functions[name] = function
    for name, times in bench.time(functions, 10).items():
        bench.add(Row.timed(times, peer=name, **cells))


def ours(given: Given) -> Callable[[], tuple[Tensor, ...]]:
    def call():
        h = ops.hgru_scan(*given.inputs, engine="triton")[0]
        return h, *torch.autograd.grad(h, given.inputs, given.grad)

    return call


def peer(bench: Bench, kind: str, compiled: bool, given: Given) -> Callable[[], tuple[Tensor, ...]]:
    """flash-linear-attention's scan with the operations around it, as its layer has them; in a rehearsal its plain loop."""
    if bench.rehearse:
        from fla.ops.hgrn.naive import (
            naive_recurrent_hgrn as scan,
        )  # its kernels ask for a GPU even if interpreted
    else:
        from fla.ops import hgrn

        scan = getattr(hgrn, kind)

    def gates(candidate: Tensor, forget: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        log_gate = torch.logaddexp(bound.log(), torch.log1p(-bound) + F.logsigmoid(forget)).to(
            forget.dtype
        )
        return F.silu(candidate) * (1 - log_gate.exp()), log_gate

    if compiled:
        gates = torch.compile(
            gates, dynamic=False, backend="aot_eager" if bench.rehearse else "inductor"
        )

    def call():
        x, log_gate = gates(*given.inputs)
        h = scan(x=x, g=log_gate)[0]
        return h, *torch.autograd.grad(h, given.inputs, given.grad)

    return call
