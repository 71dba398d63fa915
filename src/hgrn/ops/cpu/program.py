"""A step of a model as a list of kernel calls over memory that stays where it is: made once, run many times.

What a step computes at a batch of one is so little that calling PyTorch a hundred times for it can take longer. The calls of a
program follow each other in compiled code, and read their weights where the model has them.
"""

import numpy as np
import torch
from torch import Tensor

from hgrn.ops import addresses
from hgrn.ops.cpu import launch, layer, linear, scan, threads
from hgrn.ops.cpu.language import Kernel, enter, enter_parallel, helper, restart


@helper
def _differ(width, x, copy):
    """Whether two rows of numbers differ. NaN is the same as NaN."""
    different = 0
    for j in range(width):
        a = x[j]
        b = copy[j]
        different += a != b and (a == a or b == b)
    return different > 0


@Kernel(numbers="width", tensors="x copy", integers="changed")
def _watch(call, task):
    """Sets `changed` where x is no longer equal to its copy."""
    if _differ(call.width, call.x, call.copy):
        call.changed[0] = 1


@Kernel(numbers="count watches parallel threads", integers="calls changed")
def _sequence(call, task):
    """Makes `count` calls in order, rows of (kernel, block, whether on all threads). It is one task.

    The first `watches` of them may set `changed`, and then no other call is made.
    """
    for k in range(call.count):
        if k == call.watches and call.changed[0] != 0:
            return
        row = call.calls + 3 * k
        kernel = row[0]
        block = row[1]
        restart(block)
        if row[2] != 0 and call.parallel != 0:
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
        self._watches: list[launch.Launch] = []
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
                weight=weight,
                bias=bias,
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
                {"x": x, "gate": gate},
                {"y": y},
                gate_first=gate_first,
                weight=weight,
                bias=bias,
                eps=x.new_full((), eps),
                mean=mean,
                inverse=inverse,
                gated=scratch,
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
                scan.scan,
                1,
                {"candidate": candidate, "forget": forget},
                {"h": h},
                complement=plan.complement(lower_bound),
                **plan.turn(theta),
                state=state,
                decay=0,
            )
        )

    def watch(self, x: Tensor) -> None:
        """Makes `run` stop where the values of x, contiguous float32, are no longer what they are now."""
        copy = x.detach().clone()
        block = _watch.block(
            1,
            width=x.numel(),
            x=addresses.address(x, torch.float32),
            copy=addresses.address(copy, torch.float32),
            changed=self._changed.ctypes.data,
        )
        self._watches.append(launch.Launch(_watch.address("float32"), block, 0, (x.detach(), copy)))

    def run(self) -> bool:
        """Makes all calls; not by two threads at once.

        Returns:
            Whether it has. False where a watched tensor has changed, and then no call was made.
        """
        made_for = threads.count(), threads.parallel_address()
        if made_for != self._made_for:
            self._launch = self._sequence(*made_for)
            self._made_for = made_for
        self._launch.run()
        return not self._changed[0]

    def _sequence(self, count: int, parallel: int) -> launch.Launch:
        """One call of `_sequence` for so many threads, and for OpenMP's function at that address."""
        calls = np.array(
            [
                (call.kernel, call.block.ctypes.data, threads.is_shared(call.block, call.work))
                for call in (*self._watches, *self._launches)
            ],
            dtype=np.int64,
        )
        block = _sequence.block(
            1,
            calls=calls.ctypes.data,
            count=len(calls),
            watches=len(self._watches),
            changed=self._changed.ctypes.data,
            threads=count,
            parallel=parallel if count > 1 else 0,
        )
        return launch.Launch(_sequence.address("float32"), block, 0, (calls,))

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
