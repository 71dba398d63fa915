"""A step of a model as a list of kernel calls that is made once and run many times.

At a batch of one a step computes so little that a hundred calls of PyTorch can take longer than the
computation. The calls of a program follow each other in compiled code, and read the weights where
the model has them.
"""

import numpy as np
import torch
from torch import Tensor

from hgrn.ops import addresses
from hgrn.ops.arguments import Scan
from hgrn.ops.cpu import layer, linear, threads
from hgrn.ops.cpu.gla_plans import hgrn2_launch
from hgrn.ops.cpu.language import Kernel, enter, enter_parallel, helper, restart
from hgrn.ops.cpu.plans import Launch, ScanPlan, linear_launch, rows_launch
from hgrn.ops.cpu.scan import scan_forward


@helper
def _differ(width, x, copy):
    """Whether two rows of numbers differ. NaN is the same as NaN."""
    different = 0
    for j in range(width):
        a = x[j]
        b = copy[j]
        # A sum without a branch, so that the loop becomes vector code. NaN differs from itself.
        different += a != b and (a == a or b == b)
    return different > 0


@Kernel(numbers="width", tensors="x copy", integers="changed")
def _watch(call, task):
    """Sets `changed` where x is no longer equal to its copy."""
    if _differ(call.width, call.x, call.copy):
        call.changed[0] = 1


@Kernel(numbers="count watches parallel threads", integers="calls changed")
def _sequence(call, task):
    """Makes `count` calls in order: rows of (kernel, block, whether on all threads). One task.

    The first `watches` of them may set `changed`, and then no other call is made.
    """
    for k in range(call.count):
        if k == call.watches and call.changed[0] != 0:
            return
        row = call.calls + 3 * k
        kernel = row[0]
        block = row[1]
        restart(block)
        # Without OpenMP's function we are the only thread.
        if row[2] != 0 and call.parallel != 0:
            enter_parallel(call.parallel, kernel, block, call.threads)
        else:
            enter(kernel, block)


class Program(addresses.HoldsAddresses):
    """A list of kernel calls. Each method but `run` appends one; `run` makes them all, in order.

    All tensors are float32 on the CPU, states and weights of norms too, with sequences along the
    first axis. The caller gives the outputs, `[N, ...]` and contiguous.

    A call keeps the addresses of the tensors it was made with. So changed values of a weight are
    seen, but another storage in its place is not. Bounds and angles are different: what the kernels
    need of them is computed when the call is appended, so they must be given to `watch`.

    Raises:
        ValueError: from any method that appends a call, where a tensor is missing, has another
            shape, or does not lie in plain float32 memory of the CPU.
    """

    def __init__(self):
        self._launches: list[Launch] = []
        self._kept: list[Tensor] = []
        self._watches: list[Launch] = []
        self._changed = np.zeros(1, dtype=np.int64)
        self._made_for = None
        self._whole: Launch

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
        """`y = x weight^T + bias + add`.

        Args:
            x: `[N, I]`. weight: `[O, I]`. bias: `[O]` or None. y: `[N, O]`.
            scale: `[O]` for an int8 weight, whose row o then counts `scale[o]` times.
            add: `[N, O]`; it may be y.
        """
        rows, out = y.shape
        width = x.shape[-1]
        _check(x=(x, (rows, width)), weight=(weight, (out, width)))
        _check_given(bias=(bias, (out,)), scale=(scale, (out,)), add=(add, (rows, out)))
        kernel = linear.linear if scale is None else linear.int8_linear
        self._append(linear_launch(kernel, x, weight, bias, y, add, scale))

    def norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        y: Tensor,
        *,
        centred: bool = True,
    ) -> None:
        """`y = LayerNorm(x)`, or if not `centred` `RMSNorm(x)`; x and y `[N, D]`."""
        _check(weight=(weight, x.shape[-1:]), y=(y, x.shape))
        _check_given(bias=(bias, x.shape[-1:]))
        bias = x.new_zeros(x.shape[-1:]) if bias is None else bias
        states = {"weight": weight, "bias": bias, "eps": x.new_full((), eps)}
        launch = rows_launch(layer.norm, x, {"x": x}, {"y": y}, centred=centred, **states)
        self._append(launch)

    def gated_norm(
        self,
        x: Tensor,
        gate: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        y: Tensor,
        *,
        activation: str,
        gate_first: bool,
    ) -> None:
        """Like `hgrn.ops.gated_norm`; x, gate and y `[N, D]`."""
        channels = x.shape[-1:]
        _check(gate=(gate, x.shape), y=(y, x.shape))
        _check(weight=(weight, channels), bias=(bias, channels))
        launch = rows_launch(
            layer.gated_norm,
            x,
            {"x": x, "gate": gate},
            {"y": y},
            activation=activation,
            gate_first=gate_first,
            weight=weight,
            bias=bias,
            eps=x.new_full((), eps),
            # What only a backward or the kernel itself reads.
            mean=x.new_empty(x.shape[0]),
            inverse=x.new_empty(x.shape[0]),
            gated=x.new_empty(x.shape),
        )
        self._append(launch)

    def gated_unit(self, x: Tensor, y: Tensor, *, activation: str) -> None:
        """Like `hgrn.ops.gated_unit`; x `[N, 2 D]`, y `[N, D]`."""
        _check(x=(x, (len(y), 2 * y.shape[-1])))
        self._append(rows_launch(layer.gated_unit, y, {"x": x}, {"y": y}, activation=activation))

    def hgru_step(
        self,
        candidate: Tensor,
        forget: Tensor,
        lower_bound: Tensor | None,
        theta: Tensor | None,
        state: Tensor,
        h: Tensor,
    ) -> None:
        """One position of `hgrn.ops.hgru_scan`.

        Args:
            candidate: `[N, C]`. forget: `[N, D]`. lower_bound, theta: `[D]` or None.
            state: `[N, C]`, which becomes the state after the position.
            h: `[N, C]`, which becomes the same.
        """
        channels = forget.shape[-1:]
        width = channels if theta is None else (2 * channels[0],)
        _check(
            candidate=(candidate, (len(state), *width)),
            forget=(forget, (len(state), *channels)),
            h=(h, candidate.shape),
            state=(state, candidate.shape),
        )
        _check_given(lower_bound=(lower_bound, channels), theta=(theta, channels))
        # The canonical layout `[O, T, I, C]`, with one time step.
        candidate, forget, h = (x[:, None, None] for x in (candidate, forget, h))
        scan = Scan(candidate, forget, lower_bound, theta, None, None, None, False)
        plan = ScanPlan(scan, fused=True)
        self._append(plan.launch(scan_forward, {"h": h}, state=state, decay=0))

    def hgrn2_step(
        self,
        projected: Tensor,
        lower_bound: Tensor | None,
        state: Tensor,
        y: Tensor,
        *,
        scale: float,
        query_act: str,
        candidate_act: str,
    ) -> None:
        """One position of an `HGRN2Mixer` (`hgrn.modules.hgrn2`) from projections to read values.

        Args:
            projected: `[N, 3 D]`: query, forget gate and candidate before their activations.
            lower_bound: `[D]` or None.
            state: `[N, H, K, V]` with D = H K = H V, which becomes the state after the position.
            y: `[N, D]`.
        """
        channels = y.shape[-1:]
        _check(
            projected=(projected, (len(y), 3 * channels[0])),
            state=(state, (len(y), state.shape[1], *(2 * (channels[0] // state.shape[1],)))),
        )
        _check_given(lower_bound=(lower_bound, channels))
        options = {"scale": scale, "query_act": query_act, "candidate_act": candidate_act}
        self._append(hgrn2_launch(projected, lower_bound, state, y, **options))

    def watch(self, x: Tensor) -> None:
        """Makes `run` stop once the values of x, contiguous float32, are other than now."""
        x = x.detach()
        copy = x.clone()
        block = _watch.block(
            1,
            width=x.numel(),
            x=addresses.address(x, torch.float32),
            copy=addresses.address(copy, torch.float32),
            changed=self._changed.ctypes.data,
        )
        self._watches.append(Launch(_watch.address("float32"), block, 0, (x, copy)))

    def run(self) -> bool:
        """Makes all calls; not by two threads at once.

        Returns:
            Whether it has. False where a watched tensor has changed, and then no call was made.
        """
        # A fork or `torch.set_num_threads` since the last run changes how calls must be made.
        made_for = threads.count(), threads.parallel_address()
        if made_for != self._made_for:
            self._whole = self._sequence(*made_for)
            self._made_for = made_for
        self._whole.run()
        return not self._changed[0]

    def _sequence(self, count: int, parallel: int) -> Launch:
        """All calls as one launch, for so many threads and OpenMP's function at that address."""
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
        return Launch(_sequence.address("float32"), block, 0, (calls,))

    def _append(self, call: Launch) -> None:
        self._launches.append(call)
        # A parameter may be given other memory. Then it no longer keeps the memory at our
        # addresses, but a detached tensor does.
        self._kept.extend(x.detach() for x in call.tensors if isinstance(x, Tensor))


def _check(**tensors: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Raises ValueError unless each tensor is there and has its shape."""
    for name, (x, shape) in tensors.items():
        if x is None or x.shape != shape:
            found = None if x is None else tuple(x.shape)
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {found}")


def _check_given(**tensors: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Like `_check`, for tensors that may be None."""
    _check(**{name: pair for name, pair in tensors.items() if pair[0] is not None})
