"""The limits of the machine: how fast memory is read and written, how fast matrices multiply."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Tell, Times, round_robin
from benchmarks.parts import Part
from benchmarks.rows import Row

_MIB = 1 << 20
# Matrix products of the models that are measured: rows (tokens), inputs, outputs.
_PRODUCTS = (
    (4096, 128, 256),
    (4096, 512, 1024),
    (4096, 1024, 512),
    (1, 768, 1536),
    (1, 768, 50272),
)


class Stream:
    """`torch.add(a, b, out=c)` on memory that is mapped already and that no cache can hold.

    A call moves `bytes` bytes: it reads two streams and writes one. `time_of` turns its measured
    time into the time of any other traffic.
    """

    def __init__(self, mebibytes: int = 64):
        self.a, self.b, self.c = (torch.ones(mebibytes * _MIB // 4) for _ in range(3))
        self.bytes = 3 * self.a.nbytes

    def __call__(self) -> Tensor:
        return torch.add(self.a, self.b, out=self.c)

    def time_of(self, traffic: int, measured: Times) -> float:
        """Milliseconds for `traffic` bytes at the bandwidth that was measured."""
        return measured.median * traffic / self.bytes


def parts(quick: bool) -> list[Part]:
    """One part: bandwidths and products in one loop."""
    repeats = 3 if quick else 30

    def measure(tell: Tell) -> list[Row]:
        return _measure(Stream(32 if quick else 64), repeats, tell)

    return [Part("limits of the machine", lambda row: row.repeats == repeats, measure)]


def _measure(stream: Stream, repeats: int, tell: Tell) -> list[Row]:
    source = torch.ones(stream.bytes // 4)
    functions = {"add": stream, "sum": source.sum, "fill": partial(torch.zeros, stream.a.shape)}
    for sizes in _PRODUCTS:
        rows, inputs, outputs = sizes
        x = torch.randn(rows, inputs)
        weight = torch.randn(outputs, inputs)
        functions[sizes] = partial(torch.mm, x, weight.T, out=torch.empty(rows, outputs))
    times = round_robin(functions, repeats, tell=tell)

    def traffic(key: str, name: str, amount: int, kind: str) -> Row:
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
