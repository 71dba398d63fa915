"""A step of a model as a list of kernel calls over memory that stays where it is: made once, run many times.

What a step computes at a batch of one is so little that calling PyTorch a hundred times for it can take longer. The calls of a
program follow each other in compiled code, and read their weights where the model has them.
"""

import numpy as np
import torch
from torch import Tensor

from . import cpu, cpu_layer, cpu_linear, cpu_scan, threads
from .cpu_language import Kernel, enter, enter_parallel, load_index, store_index


@Kernel("calls count parallel threads")
def _sequence(call):
    """Runs `count` calls: rows of (kernel, block, whether on all threads). Run by one thread."""
    for k in range(call.count):
        row = call.calls + 24 * k
        kernel, block = load_index(row, 0), load_index(row, 1)
        store_index(block, 1, 0)  # no task of it is taken
        if load_index(row, 2) != 0 and call.parallel != 0:
            enter_parallel(call.parallel, kernel, block, call.threads)
        else:
            enter(kernel, block)


class Program:
    """Calls that are appended in order, and then run together.

    All tensors are float32 on the CPU (states and weights of norms too), with rows of sequences first; outputs are given,
    `[N, ...]` and contiguous. The addresses of weights are taken when a call is appended: changes of their values are seen,
    other storage in their place is not. Values that are computed from parameters (bounds, angles) are computed then too.
    """

    def __init__(self):
        self._launches: list[cpu.Launch] = []
        self._kept: list[Tensor] = []
        self._calls: np.ndarray | None = None

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, *, scale: Tensor | None = None, add=None) -> None:
        """`y = x weight^T + bias + add`; `add` may be y. With `scale` `[O]` the weight is int8, and row o counts `scale[o]` times."""
        rest = {} if scale is None else {"scale": scale}
        kernel = cpu_linear.linear if scale is None else cpu_linear.int8_linear
        self._append(cpu.linear_launch(kernel, x, weight, bias, y, add, **rest))

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, y: Tensor) -> None:
        """`y = LayerNorm(x)`."""
        self._append(
            cpu.rows_launch(cpu_layer.norm, "identity", x, {"x": x}, scale=weight, shift=bias, eps=torch.tensor(eps), y=y)
        )

    def gated_norm(self, x, gate, weight, bias, eps: float, y, *, activation: str, gate_first: bool) -> None:
        """As `hgrn.ops.gated_norm`."""
        mean, inverse, scratch = x.new_empty(x.shape[0]), x.new_empty(x.shape[0]), torch.empty_like(x)
        self._append(
            cpu.rows_launch(
                cpu_layer.gated_norm, activation, x, {"x": x, "z": gate}, gate_first=gate_first, scale=weight, shift=bias,
                eps=torch.tensor(eps), y=y, mean=mean, inverse=inverse, scratch=scratch,
            )
        )  # fmt: skip

    def gated_unit(self, x: Tensor, y: Tensor, *, activation: str) -> None:
        """As `hgrn.ops.gated_unit`."""
        self._append(cpu.rows_launch(cpu_layer.gated_unit, activation, y, {"x": x}, y=y))

    def hgru_step(self, candidate, forget, lower_bound: Tensor | None, theta: Tensor | None, state: Tensor, h: Tensor) -> None:
        """One position of `hgrn.ops.hgru_scan`: `state` `[N, C]` becomes the state after it, and h too."""
        candidate, forget, h = (x[:, None, None] for x in (candidate, forget, h))
        scan = cpu.Scan(candidate, forget.shape[-1], None, None, False)
        room, cos, sin = scan.channel_values(lower_bound, theta)
        self._append(
            scan.launch(
                cpu_scan.hgru_scan, **cpu.strided("candidate", candidate), **cpu.strided("forget", forget), room=room, cos=cos,
                sin=sin, state=state, h=h, decay=0,
            ),
            candidate, forget,
        )  # fmt: skip

    def run(self) -> None:
        """Runs all calls; not by two threads at once."""
        if self._calls is None:
            shared = (threads.is_shared(launch.block, launch.work) for launch in self._launches)
            rows = [(launch.kernel, launch.block.ctypes.data, both) for launch, both in zip(self._launches, shared)]
            self._calls = np.array(rows, dtype=np.int64)
        count = torch.get_num_threads()
        block = _sequence.block(
            1, calls=self._calls.ctypes.data, count=len(self._calls), threads=count,
            parallel=threads.parallel_address() if count > 1 else 0,
        )  # fmt: skip
        threads.run(_sequence.address("float32", 0), block, 0)

    def _append(self, launch: cpu.Launch, *kept: Tensor) -> None:
        self._launches.append(launch)
        self._kept.extend(kept)
