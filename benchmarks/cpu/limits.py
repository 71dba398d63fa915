"""The limits of the machine: how fast memory is read and written, how fast matrices multiply."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.parts import Part
from benchmarks.rows import Row
from hgrn.cli.speed import Stream, round_robin
from hgrn.progress import OnProgress

# Matrix products of the models that are measured: rows (tokens), inputs, outputs.
_PRODUCTS = (
    (4096, 128, 256),
    (4096, 512, 1024),
    (4096, 1024, 512),
    (1, 768, 1536),
    (1, 768, 50272),
)


def parts(quick: bool) -> list[Part]:
    """One part: bandwidths and products in one loop."""
    repeats = 3 if quick else 30

    def measure(tell: OnProgress) -> list[Row]:
        return _measure(Stream(32 if quick else 64), repeats, tell)

    return [Part("limits of the machine", lambda row: row.repeats == repeats, measure)]


def _measure(stream: Stream, repeats: int, tell: OnProgress) -> list[Row]:
    # As many bytes as the stream moves, so that both run as long.
    source = torch.ones(stream.bytes // 4)
    functions: dict[Any, Callable[[], object]] = {
        "add": stream,
        "sum": source.sum,
        "fill": partial(torch.zeros, stream.a.shape),
    }
    for sizes in _PRODUCTS:
        rows, inputs, outputs = sizes
        x = torch.randn(rows, inputs)
        weight = torch.randn(outputs, inputs)
        functions[sizes] = partial(torch.mm, x, weight.T, out=torch.empty(rows, outputs))
    times = round_robin(functions, repeats, on_call=tell)

    def traffic(key: Any, name: str, amount: int, kind: str) -> Row:
        note = f"{amount / times[key].median / 1e6:.1f} GB/s"
        return Row.timed(times[key], name=name, peer="torch", kind=kind, bytes=amount, note=note)

    found = [
        traffic("add", "memory: torch.add, three streams", stream.bytes, "kernel"),
        traffic("sum", "memory: torch.sum, read only", source.nbytes, "kernel"),
        traffic("fill", "memory: torch.zeros, allocated and written", stream.a.nbytes, "op"),
    ]
    for sizes in _PRODUCTS:
        rows, inputs, outputs = sizes
        flops = 2 * rows * inputs * outputs
        found.append(
            Row.timed(
                times[sizes],
                name="matrix product",
                peer="torch",
                shape=f"[{rows}, {inputs}] x [{inputs}, {outputs}]",
                kind="kernel",
                flops=flops,
                bytes=4 * (rows * inputs + inputs * outputs + rows * outputs),
                note=f"{flops / times[sizes].median / 1e6:.1f} GFLOP/s",
            )
        )
    return found
