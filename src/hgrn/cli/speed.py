"""Measure how fast this machine is: its memory, its matrix products, and the scan beside both.

Everything that is compared runs in turn, round after round, so that whatever else the machine does
slows all of it alike.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hgrn.ops import hgru_scan

_LONG = 5.0  # seconds to go without a garbage collection
_MIB = 1 << 20
# The speed check: a product [rows, inputs] x [inputs, outputs] of a model's size, and a scan over
# [batch, time steps, channels] that is too large for a cache.
_PRODUCT = (4096, 512, 1024)
_SCAN = (4, 1024, 1024)
_REPEATS = 100
_SECONDS_EACH = 2.0  # for each of four measurements, so about ten seconds with their warm-up

# A scan counts as fast, or as fair, from these shares of the memory's bandwidth.
_FAST = 0.4
_FAIR = 0.2


Name = TypeVar("Name")
Function = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """How long one thing took, in milliseconds: median, 10 % and 90 % quantiles of `repeats` calls.

    capped: it used up its time and was left out of the later rounds.
    """

    median: float
    p10: float
    p90: float
    repeats: int
    capped: bool = False

    @classmethod
    def of(cls, seconds: list[float], capped: bool = False) -> "Times":
        """The quantiles of single readings in seconds, interpolated linearly."""
        low, middle, high = (float(q) for q in 1e3 * np.quantile(seconds, (0.1, 0.5, 0.9)))
        return cls(middle, low, high, len(seconds), capped)

    def over(self, parts: int) -> "Times":
        """The times of one part, where each call did `parts` equal parts."""
        return replace(self, median=self.median / parts, p10=self.p10 / parts, p90=self.p90 / parts)


def wall_clock(function: Function) -> float:
    """The seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def round_robin(
    functions: Mapping[Name, Function],
    repeats: int,
    *,
    warm_ups: int = 1,
    cap_s: float | None = None,
    clock: Callable[[Function], float] = wall_clock,
    on_call: Callable[[int, int], None] | None = None,
) -> dict[Name, Times]:
    """Warm every function up, then call all of them in turn, `repeats` times.

    warm_ups: untimed calls of each function. cap_s: a function that has run for so many seconds is
    left out of further rounds, but never of the first. clock: calls a function and returns its
    seconds. on_call gets (calls done, calls in all).
    """
    readings: dict[Name, list[float]] = {name: [] for name in functions}
    capped = set()
    done = 0
    total = len(functions) * (repeats + warm_ups)

    def report(calls: int, skipped: int = 0) -> None:
        nonlocal done, total
        done = done + calls
        total = total - skipped
        if on_call is not None:
            on_call(done, total)

    for function in functions.values():
        for _ in range(warm_ups):
            function()
            report(1)
    collects = gc.isenabled()
    # A collection would otherwise be charged to whichever function is running.
    gc.disable()
    try:
        began = time.perf_counter()
        for _ in range(repeats):
            # Models that leave cycles behind would fill the memory. Not in every round, though:
            # a collection empties the caches, and fast functions would be measured without them.
            if time.perf_counter() - began > _LONG:
                gc.collect()
                began = time.perf_counter()
            for name, function in functions.items():
                if cap_s is not None and sum(readings[name]) >= cap_s:
                    capped.add(name)
                    report(0, skipped=1)
                else:
                    readings[name].append(clock(function))
                    report(1)
    finally:
        if collects:
            gc.enable()
    return {name: Times.of(seconds, name in capped) for name, seconds in readings.items()}


class Stream:
    """`torch.add(a, b, out=c)` into memory that is already mapped: three arrays larger than caches.

    Calling it moves `bytes` bytes: it reads two arrays and writes one. `time_of` turns its measured
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


@dataclass(frozen=True)
class Speed:
    """How fast the CPU of this machine is, in float32.

    bandwidth: bytes a second that memory takes and gives. products: floating-point operations a
    second of matrix products. scan, backward: the share of that bandwidth which `hgru_scan`
    reaches, without and with its gradients. of_layer: the time of a scan over the time of the
    matrix products around it, in a layer of the same width.
    """

    bandwidth: float
    products: float
    scan: float
    backward: float
    of_layer: float

    @property
    def verdict(self) -> str:
        """What the numbers mean, in words."""
        share = min(self.scan, self.backward)
        if share >= _FAST:
            return "fast: the scan runs near the speed of memory, so there is little left to gain"
        if share >= _FAIR:
            return "fair: memory allows more; more CPU threads, or fewer other programs, may help"
        return "slow: memory allows several times as much; see above whether engine numba works"


def measure_speed(on_call: Callable[[int, int], None] | None = None) -> Speed:
    """Measure memory, matrix products and the scan on the CPU; takes about ten seconds.

    on_call gets (calls done, calls in all).
    """
    stream = Stream()
    rows, inputs, outputs = _PRODUCT
    x = torch.randn(rows, inputs)
    weight = torch.randn(inputs, outputs)
    y = torch.empty(rows, outputs)

    # The state is complex, so the candidate has two numbers a channel and the forget gate one.
    batch, steps, channels = _SCAN
    candidate = torch.randn(batch, steps, 2 * channels)
    forget = torch.randn(batch, steps, channels)
    theta = torch.rand(channels)
    leaves = (candidate.detach().requires_grad_(), forget.detach().requires_grad_())
    gradient = torch.ones_like(candidate)

    def scan_and_gradients() -> None:
        h, _ = hgru_scan(*leaves, None, theta)
        torch.autograd.grad(h, leaves, gradient)

    functions = {
        "memory": stream,
        "product": lambda: torch.mm(x, weight, out=y),
        "scan": lambda: hgru_scan(candidate, forget, None, theta),
        "backward": scan_and_gradients,
    }
    times = round_robin(functions, _REPEATS, cap_s=_SECONDS_EACH, on_call=on_call)

    # The forward reads candidate and forget, and writes h. The backward reads these three and the
    # gradient of h, and writes two gradients.
    forward = 2 * candidate.nbytes + forget.nbytes
    backward = 4 * candidate.nbytes + 2 * forget.nbytes
    products = 2 * rows * inputs * outputs / times["product"].median * 1e3
    # The maps of a layer: D to 5D (candidate, forget gate, output gate) and 2D back to D.
    layer = 2 * batch * steps * 7 * channels**2 / products * 1e3
    return Speed(
        bandwidth=stream.bytes / times["memory"].median * 1e3,
        products=products,
        scan=stream.time_of(forward, times["memory"]) / times["scan"].median,
        backward=stream.time_of(forward + backward, times["memory"]) / times["backward"].median,
        of_layer=times["scan"].median / layer,
    )
