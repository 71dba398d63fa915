"""The limits of the machine: how fast memory is read and written, and how fast matrices are multiplied."""

from functools import partial

import torch
from torch import Tensor

from hgrn.bench.measure import Tell, Times, round_robin
from hgrn.bench.results import Row

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
    """`torch.add(a, b, out=c)` into memory that is already mapped: three streams that no cache holds.

    Calling it moves `bytes` bytes: two streams are read and one is written. `time_of` turns its measured time into the
    time of any other traffic.
    """

    def __init__(self, mebibytes: int = 64):
        self.a, self.b, self.c = (torch.ones(mebibytes * _MIB // 4) for _ in range(3))
        self.bytes = 3 * self.a.nbytes

    def __call__(self) -> Tensor:
        return torch.add(self.a, self.b, out=self.c)

    def time_of(self, traffic: int, measured: Times) -> float:
        """Milliseconds for `traffic` bytes at the bandwidth that was measured."""
        return measured.median * traffic / self.bytes


def measure(quick: bool, tell: Tell) -> list[Row]:
    """Bandwidth of copying work and of reading, and GFLOP/s of matrix products, all in one loop."""
    stream = Stream(32 if quick else 64)
    source = torch.ones(stream.bytes // 4)
    functions = {"add": stream, "sum": source.sum, "fill": partial(torch.zeros, stream.a.shape)}
    for rows, inputs, outputs in _PRODUCTS:
        x = torch.randn(rows, inputs)
        weight = torch.randn(outputs, inputs)
        out = torch.empty(rows, outputs)
        functions[_product_name(rows, inputs, outputs)] = partial(torch.mm, x, weight.T, out=out)
    times = round_robin(functions, 3 if quick else 30, on_call=tell("limits"))

    def traffic(name: str, label: str, amount: int, kind: str) -> Row:
        note = f"{amount / times[name].median / 1e6:.1f} GB/s"
        return Row.timed(times[name], name=label, peer="torch", kind=kind, bytes=amount, note=note)

    found = [
        traffic("add", "memory: torch.add, three streams", stream.bytes, "kernel"),
        traffic("sum", "memory: torch.sum, read only", source.nbytes, "kernel"),
        traffic("fill", "memory: torch.zeros, allocated and written", stream.a.nbytes, "op"),
    ]
    for rows, inputs, outputs in _PRODUCTS:
        name = _product_name(rows, inputs, outputs)
        flops = 2 * rows * inputs * outputs
        found.append(
            Row.timed(
                times[name],
                name="matrix product",
                peer="torch",
                shape=name,
                kind="kernel",
                flops=flops,
                bytes=4 * (rows * inputs + inputs * outputs + rows * outputs),
                note=f"{flops / times[name].median / 1e6:.1f} GFLOP/s",
            )
        )
    return found


def _product_name(rows: int, inputs: int, outputs: int) -> str:
    return f"[{rows}, {inputs}] x [{inputs}, {outputs}]"
