"""Our scans against the memory traffic that they must have, and against other people's scans."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.cpu import scan_peers
from benchmarks.parts import Part
from benchmarks.rows import Row
from benchmarks.scan_cases import GivenOutputs, ScanCase, Shape, check, label
from hgrn.cli.speed import Stream, round_robin
from hgrn.progress import OnProgress

# [batch, time, channels], all of 2^24 elements.
SHAPES = {
    "base": (8, 2048, 1024),
    "narrow": (128, 2048, 64),
    "short": (128, 128, 1024),
    "long": (1, 65536, 256),
    "wide": (2, 2048, 4096),
}
# The same corners, of 2^16 to 2^18 elements.
QUICK_SHAPES = {
    "base": (4, 128, 512),
    "narrow": (16, 256, 64),
    "short": (16, 16, 512),
    "long": (1, 1024, 64),
    "wide": (1, 64, 2048),
}
PEER_SHAPE = (4, 2048, 512)
QUICK_PEER_SHAPE = (2, 128, 64)
CASES = tuple(
    ScanCase(kernel, complex_state, backward)
    for kernel, complex_state in (("hgru_scan", False), ("hgru_scan", True), ("gated_scan", False))
    for backward in (False, True)
)


def parts(quick: bool) -> list[Part]:
    """Every case at every shape in float32, and at the first in half precision; then the peers."""
    shapes = QUICK_SHAPES if quick else SHAPES
    runs = [(name, torch.float32) for name in shapes]
    if not quick:
        runs += [("base", torch.bfloat16), ("base", torch.float16)]
    repeats = 3 if quick else 15
    stream = Stream(32 if quick else 64)
    found = [_against_limit(name, shapes[name], dtype, stream, repeats) for name, dtype in runs]
    peers = _against_peers(QUICK_PEER_SHAPE, 3, 2) if quick else _against_peers(PEER_SHAPE, 15, 30)
    return [*found, peers]


def _against_limit(
    name: str, shape: Shape, dtype: torch.dtype, stream: Stream, repeats: int
) -> Part:
    where = f"{name} {list(shape)}"

    def measure(tell: OnProgress) -> list[Row]:
        functions: dict[object, Callable[[], object]] = {"stream": stream}
        for case in CASES:
            check(case, shape, dtype)
            call = case.call(case.inputs(shape, dtype))
            functions[case, "op"] = call
            functions[case, "kernel"] = GivenOutputs().wrap(call)
        # The stream runs in the same loop, so the limit is that of the same minutes.
        times = round_robin(functions, repeats, on_call=tell)
        rows = []
        for case in CASES:
            traffic = case.minimal_bytes(shape, dtype)
            rows += [
                Row.timed(
                    times[case, kind],
                    name=case.name,
                    shape=where,
                    dtype=label(dtype),
                    kind=kind,
                    bytes=traffic,
                    limit_ms=stream.time_of(traffic, times["stream"]),
                    note="limit: as many bytes by torch.add",
                )
                for kind in ("op", "kernel")
            ]
        return rows

    def owns(row: Row) -> bool:
        return (row.shape, row.dtype) == (where, label(dtype))

    return Part(f"scan {where} {label(dtype)}", owns, measure)


def _against_peers(shape: Shape, repeats: int, cap_s: float) -> Part:
    where = f"peers {list(shape)}"
    measure = partial(_measure_peers, shape, repeats, cap_s, where)
    return Part(f"scan {where}", lambda row: row.shape == where, measure)


def _measure_peers(
    shape: Shape, repeats: int, cap_s: float, where: str, tell: OnProgress
) -> list[Row]:
    """Real scans, forward and backward. Peers start from gates in (0, 1), ours from their own."""
    ours = {case.kernel: case for case in CASES if case.backward and not case.complex_state}
    functions = {}
    for kernel, case in ours.items():
        check(case, shape, torch.float32)
        functions[f"hgrn {kernel}"] = case.call(case.inputs(shape, torch.float32))
    x, log_f = ours["gated_scan"].inputs(shape, torch.float32)
    absent = []
    notes = {}
    for peer in scan_peers.PEERS:
        # Gates are given to them, so their exponentials are not counted; ours are.
        try:
            functions[peer.name] = peer.prepare(log_f.exp(), x, torch.ones_like(x)).run
            notes[peer.name] = peer.note()
        except ImportError:
            absent.append(peer.name)
    times = round_robin(functions, repeats, cap_s=cap_s, on_call=tell)
    cells: dict[str, Any] = {"name": "gated recurrence real forward+backward", "shape": where}
    timed = [
        Row.timed(times[name], peer=name, note=notes.get(name, ""), **cells) for name in functions
    ]
    return [*timed, *(Row(peer=name, note="not installed", **cells) for name in absent)]
