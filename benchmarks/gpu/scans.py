"""The scans: compared with float64, then timed beside a copy and flash-linear-attention's scans.

Shape letters: B batch, T time, D channels, C = D (real state) or 2D (complex state).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.session import OURS, Session, interpreted
from benchmarks.rows import Row
from benchmarks.scan_cases import ScanCase, Shape, label, refuse_if_wrong
from hgrn import ops

SHAPES = ((8, 2048, 1024), (8, 2048, 2048), (1, 65536, 1024), (64, 512, 256))
# The interpreter is slow. The second shape, of several tiles, is checked and not timed.
TINY = (1, 24, 16)
TINY_LONG = (1, 100, 8)
DTYPES = (torch.bfloat16, torch.float32)
TARGETS = {"forward": 0.7, "backward": 0.8}  # of the speed of the copy, at the first three shapes
PARTS = ("h", "the gradient of candidate", "of forget", "of lower_bound", "of theta")
_SAMPLE = 32  # channels that are compared with float64
_BESIDE_PEERS = "scan real forward+backward"
# flash-linear-attention's scans, and whether the operations around them are compiled.
_PEERS = tuple(
    (kind, compiled)
    for kind in ("chunk_hgrn", "fused_recurrent_hgrn")
    for compiled in (False, True)
)

Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Expected:
    """h and all gradients in float64, of some channels: which ones among C, and among D."""

    tensors: list[Tensor]
    wide: Tensor
    narrow: Tensor


@dataclass(frozen=True)
class Given:
    """What a scan gets.

    inputs: candidate `[B, T, C]`, forget `[B, T, D]`, lower_bound `[D]`, and theta `[D]` if the
    state is complex. grad: the gradient of h.
    """

    inputs: tuple[Tensor, ...]
    grad: Tensor

    @classmethod
    def draw(cls, shape: Shape, dtype: torch.dtype, device: str, is_complex: bool) -> "Given":
        """Drawn on the device; lower bounds go up to 0.95, as in the CPU's benchmark."""
        batch, steps, channels = shape
        generator = torch.Generator(device).manual_seed(0)

        def normal(width: int) -> Tensor:
            sizes = (batch, steps, width)
            drawn = torch.randn(*sizes, generator=generator, device=device, dtype=torch.float32)
            return drawn.to(dtype)

        width = channels * (2 if is_complex else 1)
        bound, theta = (torch.rand(channels, generator=generator, device=device) for _ in range(2))
        inputs = (normal(width), normal(channels), 0.95 * bound, *((theta,) if is_complex else ()))
        return cls(tuple(tensor.requires_grad_() for tensor in inputs), normal(width))

    def expected(self) -> Expected:
        """What the CPU engine computes in float64 for some channels, which do not mix."""
        channels = self.inputs[1].shape[-1]
        narrow = torch.linspace(0, channels - 1, min(channels, _SAMPLE)).long()
        wide = torch.cat([narrow, channels + narrow]) if len(self.inputs) == 4 else narrow

        def pick(tensor: Tensor, columns: Tensor) -> Tensor:
            return tensor.detach()[..., columns.to(tensor.device)].cpu().double()

        candidate, *others = self.inputs
        picked = (pick(candidate, wide), *(pick(tensor, narrow) for tensor in others))
        inputs = tuple(tensor.requires_grad_() for tensor in picked)
        with interpreted(False):
            h = ops.hgru_scan(*inputs)[0]
            grads = torch.autograd.grad(h, inputs, pick(self.grad, wide))
        return Expected([h.detach(), *grads], wide, narrow)

    def forward_backward(self) -> Results:
        """h and the gradients of all inputs by our kernels."""
        h = self.forward()
        return h, *torch.autograd.grad(h, self.inputs, self.grad)

    def forward(self) -> Tensor:
        """h by our kernel."""
        return ops.hgru_scan(*self.inputs, engine="triton")[0]


def compare(name: str, dtype: torch.dtype, found: Sequence[Tensor], expected: Expected) -> None:
    """Raise UserError where results differ; `found` may end early."""
    for number, (one, other) in enumerate(zip(found, expected.tensors)):
        columns = expected.wide if number < 2 else expected.narrow
        picked = one.detach()[..., columns.to(one.device)].cpu()
        refuse_if_wrong(f"{name}, {PARTS[number]},", dtype, picked, other)


def shapes(rehearse: bool) -> tuple[Shape, ...]:
    """What is timed; in a rehearsal, something tiny."""
    return (TINY,) if rehearse else SHAPES


def targets(rows: list[Row], rehearse: bool) -> dict[str, tuple[float, float | None]]:
    """The wanted share of the copy and the one that was found, if any."""
    found = {
        (row.name, row.shape, row.dtype): row.ratio
        for row in rows
        if row.ratio is not None and row.kind == "kernel"
    }
    wanted = {}
    for shape in shapes(rehearse)[:3]:
        for dtype in DTYPES:
            for state in ("real", "complex"):
                for way, share in TARGETS.items():
                    key = (f"hgru_scan {state} {way}", str(list(shape)), label(dtype))
                    name = f"{way} {state} {list(shape)} {label(dtype)}, of the copy"
                    wanted[name] = (share, found.get(key))
    return wanted


def run(session: Session, time: bool) -> None:
    """Compare all scans; with `time` also time them, and those of others."""
    if session.rehearse:
        _one_scan(session, TINY_LONG, torch.float32, is_complex=False, time=False)
    for shape in shapes(session.rehearse):
        for dtype in DTYPES:
            for is_complex in (False, True):
                _one_scan(session, shape, dtype, is_complex, time)
            if time:
                cells = {"shape": str(list(shape)), "dtype": label(dtype)}
                with session.guarded(name=_BESIDE_PEERS, **cells):
                    _beside_peers(session, shape, dtype)


def _one_scan(
    session: Session, shape: Shape, dtype: torch.dtype, is_complex: bool, time: bool
) -> None:
    """Compare our scan with float64, then time both ways beside copies of as many bytes."""
    cells: dict[str, Any] = {"shape": str(list(shape)), "dtype": label(dtype)}
    name = f"hgru_scan {'complex' if is_complex else 'real'}"
    # The backward's rows are the last that are written.
    if time and session.results.has(name=f"{name} backward", kind="op", **cells):
        return
    if session.skips(name=name, **cells):
        return
    with session.guarded(name=name, **cells):
        given = Given.draw(shape, dtype, session.device, is_complex)
        expected = given.expected()
        found = session.first(given.forward_backward, name=name, **cells)
        compare(name, dtype, found, expected)
        if time:
            _time(session, given, expected, name, cells)


def _time(
    session: Session, given: Given, expected: Expected, name: str, cells: dict[str, Any]
) -> None:
    dtype = given.inputs[0].dtype
    batch, steps, channels = given.inputs[1].shape
    is_complex = len(given.inputs) == 4
    plain = tuple(tensor.detach() for tensor in given.inputs)
    h = given.forward()

    def forward() -> Results:
        return (ops.hgru_scan(*plain, engine="triton")[0],)

    def backward() -> Results:
        return torch.autograd.grad(h, given.inputs, given.grad, retain_graph=True)

    cases = (ScanCase("hgru_scan", is_complex, both) for both in (True, False))
    both, one = (case.minimal_bytes((batch, steps, channels), dtype) for case in cases)
    amounts = {"forward": one, "backward": both - one}
    functions: dict[tuple[str, str], Callable[[], Any]] = {}
    for way, call in (("forward", forward), ("backward", backward)):
        call()
        functions[way, "op"] = call
        functions[way, "kernel"] = session.capture(call)
        functions[way, "copy"] = session.capture(_copy(amounts[way], session.device))
    replayed = (*functions["forward", "kernel"](), *functions["backward", "kernel"]())
    session.wait()
    compare(f"{name} from a CUDA graph", dtype, replayed, expected)
    times = session.time(functions, 30)
    for way, amount in amounts.items():
        for kind in ("kernel", "op"):
            row = Row.timed(
                times[way, kind],
                name=f"{name} {way}",
                kind=kind,
                bytes=amount,
                limit_ms=times[way, "copy"].median,
                note="limit: a copy of as many bytes",
                **cells,
            )
            session.add(row)


def _copy(amount: int, device: str) -> Callable[[], Tensor]:
    """A copy that reads and writes `amount` bytes in all."""
    source = torch.zeros(amount // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _beside_peers(session: Session, shape: Shape, dtype: torch.dtype) -> None:
    """Forward and backward in one: our scan and others', with all that makes h of the inputs."""
    cells: dict[str, Any] = {
        "name": _BESIDE_PEERS,
        "shape": str(list(shape)),
        "dtype": label(dtype),
    }
    peers = {f"{kind}, {'compiled' if compiled else 'eager'}": kind for kind, compiled in _PEERS}
    if all(session.results.has(peer=peer, **cells) for peer in (OURS, *peers)):
        return
    # Each shape is compiled for itself, and not as one more of many for the same code.
    torch.compiler.reset()
    given = Given.draw(shape, dtype, session.device, is_complex=False)
    expected = given.expected()
    builds: dict[str, Callable[[], Callable[[], Results]]] = {OURS: lambda: given.forward_backward}
    for (kind, compiled), name in zip(_PEERS, peers):
        builds[name] = partial(_peer, session, kind, compiled, given)
    functions: dict[str, Callable[[], Results]] = {}
    for name, build in builds.items():
        if session.skips(peer=name, **cells):
            continue
        with session.guarded(peer=name, **cells):
            function = build()
            compare(name, dtype, session.first(function, peer=name, **cells), expected)
            functions[name] = function
    for name, times in session.time(functions, 10).items():
        session.add(Row.timed(times, peer=name, **cells))


def _peer(session: Session, kind: str, compiled: bool, given: Given) -> Callable[[], Results]:
    """flash-linear-attention's scan, and the operations around it that its layer has."""
    if session.rehearse:
        # Its kernels ask for a GPU even in the interpreter, so a rehearsal runs its plain loop.
        from fla.ops.hgrn.naive import naive_recurrent_hgrn as scan
    else:
        from fla.ops import hgrn

        scan = getattr(hgrn, kind)

    def gates(candidate: Tensor, forget: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        log_gate = torch.logaddexp(bound.log(), torch.log1p(-bound) + F.logsigmoid(forget))
        log_gate = log_gate.to(forget.dtype)
        return F.silu(candidate) * (1 - log_gate.exp()), log_gate

    if compiled:
        backend = "aot_eager" if session.rehearse else "inductor"
        gates = torch.compile(gates, dynamic=False, backend=backend)

    def call() -> Results:
        x, log_gate = gates(*given.inputs)
        h = scan(x=x, g=log_gate)[0]
        return h, *torch.autograd.grad(h, given.inputs, given.grad)

    return call
