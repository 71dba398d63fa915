"""Our scans against the memory traffic that they cannot do without, and against other people's scans."""

from collections.abc import Iterator

import torch

from hgrn.bench import scan_peers
from hgrn.bench.limits import Stream
from hgrn.bench.measure import Tell, Times, round_robin
from hgrn.bench.results import Row
from hgrn.bench.scan_cases import GivenOutputs, ScanCase, check

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
LIMIT = "limit: as many bytes by torch.add"


def measure(quick: bool, tell: Tell) -> list[Row]:
    """Every case at every shape in float32, and at the first shape in half precision; then the peers.

    Raises UserError if a kernel disagrees with the reference.
    """
    shapes = QUICK_SHAPES if quick else SHAPES
    runs = [(name, torch.float32) for name in shapes]
    if not quick:
        runs += [("base", torch.bfloat16), ("base", torch.float16)]
    rows = []
    stream = Stream(32 if quick else 64)
    for name, dtype in runs:
        repeats = 3 if quick else 15
        rows += _against_limit(name, shapes[name], dtype, stream, repeats, tell)
    return rows + _against_peers(
        QUICK_PEER_SHAPE if quick else PEER_SHAPE, 3 if quick else 15, 2 if quick else 30, tell
    )


def _against_limit(
    label: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    stream: Stream,
    repeats: int,
    tell: Tell,
) -> Iterator[Row]:
    functions = {"stream": stream}
    for case in CASES:
        check(case, shape, dtype)
        call = case.call(case.inputs(shape, dtype))
        functions[case, "op"] = call
        functions[case, "kernel"] = GivenOutputs().wrap(call)
    kind = str(dtype).removeprefix("torch.")
    times = round_robin(functions, repeats, on_call=tell(f"scan {label} {list(shape)} {kind}"))
    measured = times.pop("stream")
    for case, how in times:
        traffic = case.minimal_bytes(shape, dtype)
        yield Row.timed(
            times[case, how],
            name=case.name,
            shape=f"{label} {list(shape)}",
            dtype=kind,
            kind=how,
            bytes=traffic,
            limit_ms=stream.time_of(traffic, measured),
            note=LIMIT,
        )


def _against_peers(
    shape: tuple[int, int, int], repeats: int, cap_s: float, tell: Tell
) -> list[Row]:
    """Real scans, forward and backward. Peers start from gates in (0, 1), ours from what each of ours takes."""
    ours = {case.kernel: case for case in CASES if case.backward and not case.complex_state}
    functions = {}
    for kernel, case in ours.items():
        check(case, shape, torch.float32)
        functions[f"hgrn {kernel}"] = case.call(case.inputs(shape, torch.float32))
    x, log_f = ours["gated_scan"].inputs(shape, torch.float32)
    absent = {}
    notes = {}
    for peer in scan_peers.PEERS:
        try:
            functions[peer.name] = peer.prepare(log_f.exp(), x, torch.ones_like(x)).run
            notes[peer.name] = peer.note()
        except ImportError:
            absent[peer.name] = "not installed"
    times: dict[str, Times] = round_robin(
        functions, repeats, cap_s=cap_s, on_call=tell(f"scan peers {list(shape)}")
    )
    cells = {"name": "gated recurrence real forward+backward", "shape": f"peers {list(shape)}"}
    return [
        Row.timed(times[name], peer=name, note=notes.get(name, ""), **cells) for name in functions
    ] + [Row(peer=name, note=note, **cells) for name, note in absent.items()]
