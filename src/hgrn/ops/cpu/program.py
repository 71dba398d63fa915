"""A step of a model as a list of kernel calls over memory that stays where it is: made once, run many times.

What a step computes at a batch of one is so little that calling PyTorch a hundred times for it can take longer. The calls of a
program follow each other in compiled code, and read their weights where the model has them.
"""

import numpy as np
import torch
from torch import Tensor

from hgrn.ops import addresses
from hgrn.ops.cpu import launch, layer, linear, scan, threads
from hgrn.ops.cpu.language import (
    Kernel,
    enter,
    enter_parallel,
    helper,
    load,
    load_index,
    store_index,
)


@helper
def _differs(token, count, x, copy):
    """Whether two rows of numbers are different; NaN is the same as NaN."""
    different = 0
    for j in range(count):
        a = load(token, x, j, 0)
        b = load(token, copy, j, 1)
        different += a != b and (a == a or b == b)
    return different > 0


@Kernel("watched watches changed calls count parallel threads")
def _sequence(call):
    """Runs `count` calls: rows of (kernel, block, whether on all threads). Run by one thread.

    Before, it compares `watches` tensors with copies: rows of (tensor, copy, size). Where one has changed it says so and runs nothing.
    """
    for k in range(call.watches):
        row = call.watched + 24 * k
        if _differs(call.token, load_index(row, 2), load_index(row, 0), load_index(row, 1)):
            store_index(call.changed, 0, 1)
            return
    for k in range(call.count):
        row = call.calls + 24 * k
        kernel = load_index(row, 0)
        block = load_index(row, 1)
        store_index(block, 1, 0)  # no task of it is taken
        if load_index(row, 2) != 0 and call.parallel != 0:
            enter_parallel(call.parallel, kernel, block, call.threads)
        else:
            enter(kernel, block)


class Program(addresses.HoldsAddresses):
    """Calls that are appended in order, and then run together.

    All tensors are float32 on the CPU (states and weights of norms too), with rows of sequences first; outputs are given,
    `[N, ...]` and contiguous. The addresses of weights are taken when a call is appended: changes of their values are seen,
    other storage in their place is not. What is computed from the values of parameters (bounds, angles) is computed then too, so
    these are given to `watch`.

    Raises:
        ValueError: a tensor is missing, of another shape, or not such memory; of whatever appends a call.
    """

    def __init__(self):
        self._launches: list[launch.Launch] = []
        self._kept: list[Tensor] = []
        self._watched: list[tuple[Tensor, Tensor]] = []
        self._made_for = None
        self._launch = None
        self._changed = np.zeros(1, dtype=np.int64)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        *,
        scale: Tensor | None = None,
        add: Tensor | None = None,
    ) -> None:
        """`y = x weight^T + bias + add`; `add` may be y. With `scale` `[O]` the weight is int8, and row o counts `scale[o]` times."""
        (rows, out), width = y.shape, x.shape[-1]
        _check(x=(x, (rows, width)), weight=(weight, (out, width)))
        optional = dict(bias=(bias, (out,)), scale=(scale, (out,)), add=(add, (rows, out)))
        _check(**{name: pair for name, pair in optional.items() if pair[0] is not None})
        kernel = linear.linear if scale is None else linear.int8_linear
        self._append(launch.linear_launch(kernel, x, weight, bias, y, add, scale))

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, y: Tensor) -> None:
        """`y = LayerNorm(x)`."""
        _check(weight=(weight, x.shape[-1:]), bias=(bias, x.shape[-1:]), y=(y, x.shape))
        self._append(
            launch.rows_launch(
                layer.norm,
                "identity",
                x,
                {"x": x},
                {"y": y},
                scale=weight,
                shift=bias,
                eps=x.new_full((), eps),
            )
        )

    def gated_norm(
        self, x, gate, weight, bias, eps: float, y, *, activation: str, gate_first: bool
    ) -> None:
        """As `hgrn.ops.gated_norm`."""
        _check(
            gate=(gate, x.shape),
            weight=(weight, x.shape[-1:]),
            bias=(bias, x.shape[-1:]),
            y=(y, x.shape),
        )
        mean = x.new_empty(x.shape[0])
        inverse = x.new_empty(x.shape[0])
        scratch = x.new_empty(x.shape)
        self._append(
            launch.rows_launch(
                layer.gated_norm,
                activation,
                x,
                {"x": x, "z": gate},
                {"y": y},
                gate_first=gate_first,
                scale=weight,
                shift=bias,
                eps=x.new_full((), eps),
                mean=mean,
                inverse=inverse,
                scratch=scratch,
            )
        )

    def gated_unit(self, x: Tensor, y: Tensor, *, activation: str) -> None:
        """As `hgrn.ops.gated_unit`."""
        _check(x=(x, (len(y), 2 * y.shape[-1])))
        self._append(launch.rows_launch(layer.gated_unit, activation, y, {"x": x}, {"y": y}))

    def hgru_step(
        self,
        candidate,
        forget,
        lower_bound: Tensor | None,
        theta: Tensor | None,
        state: Tensor,
        h: Tensor,
    ) -> None:
        """One position of `hgrn.ops.hgru_scan`: `state` `[N, C]` becomes the state after it, and h too."""
        channels = forget.shape[-1:]
        width = channels if theta is None else (2 * channels[0],)
        _check(
            candidate=(candidate, (len(state), *width)),
            forget=(forget, (len(state), *channels)),
            h=(h, candidate.shape),
            state=(state, candidate.shape),
        )
        optional = dict(lower_bound=(lower_bound, channels), theta=(theta, channels))
        _check(**{name: pair for name, pair in optional.items() if pair[0] is not None})
        candidate, forget, h = (x[:, None, None] for x in (candidate, forget, h))
        plan = launch.ScanPlan(candidate, channels[0], None, None, False)
        self._append(
            plan.launch(
                scan.hgru_scan,
                {"candidate": candidate, "forget": forget},
                {"h": h},
                room=plan.room(lower_bound),
                **plan.turn(theta),
                state=state,
                decay=0,
            )
        )

    def watch(self, x: Tensor) -> None:
        """Has `run` stop where the values of x, contiguous float32, are no longer what they are now."""
        self._watched.append((x.detach(), x.detach().clone()))

    def run(self) -> bool:
        """Runs all calls; not by two threads at once. Returns whether it has: False where a watched tensor has changed."""
        made_for = threads.count(), threads.parallel_address()
        if made_for != self._made_for:
            self._launch = self._sequence(*made_for)
            self._made_for = made_for
        self._launch.run()
        return not self._changed[0]

    def _sequence(self, count: int, parallel: int) -> launch.Launch:
        shared = (threads.is_shared(call.block, call.work) for call in self._launches)
        calls = [
            (call.kernel, call.block.ctypes.data, both)
            for call, both in zip(self._launches, shared)
        ]
        watched = [
            (*(addresses.address(x, torch.float32) for x in pair), pair[0].numel())
            for pair in self._watched
        ]
        calls, watched = (np.array(rows, dtype=np.int64) for rows in (calls, watched))
        block = _sequence.block(
            1,
            calls=calls.ctypes.data,
            count=len(calls),
            watched=watched.ctypes.data,
            watches=len(watched),
            changed=self._changed.ctypes.data,
            threads=count,
            parallel=parallel if count > 1 else 0,
        )
        return launch.Launch(_sequence.address("float32", 0), block, 0, (calls, watched))

    def _append(self, call: launch.Launch) -> None:
        self._launches.append(call)
        # A parameter may be given other memory, so it does not keep that at which the addresses point.
        self._kept.extend(x.detach() for x in call.tensors if isinstance(x, Tensor))


def _check(**tensors: tuple[Tensor | None, tuple[int, ...]]) -> None:
    for name, (x, shape) in tensors.items():
        if x is None or x.shape != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)}, got {None if x is None else tuple(x.shape)}"
            )
