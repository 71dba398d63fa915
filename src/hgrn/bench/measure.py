"""Timing: all that is compared runs in turn, round after round, so that what else the machine does hits all alike."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

# Given a title, returns what takes (done, total) as the work goes on.
Tell = Callable[[str], Callable[[int, int], None]]
_LONG = 5.0  # seconds without a collection of garbage


@dataclass(frozen=True)
class Times:
    """What one thing took, in milliseconds: median, 10 % and 90 % quantiles of `repeats` calls.

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
        """Of one of the `parts` equal parts that each call did."""
        return replace(self, median=self.median / parts, p10=self.p10 / parts, p90=self.p90 / parts)


def round_robin(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    cap_s: float | None = None,
    on_call: Callable[[int, int], None] | None = None,
) -> dict[str, Times]:
    """Calls every function once to warm up, then all of them in turn, `repeats` times.

    cap_s: a function that has run for so many seconds is left out of further rounds, but never of the first.
    on_call gets (calls done, calls in all).
    """
    readings = {name: [] for name in functions}
    capped = set()
    done = 0
    total = len(functions) * (repeats + 1)

    def report(calls: int, skipped: int = 0) -> None:
        nonlocal done, total
        done = done + calls
        total = total - skipped
        if on_call is not None:
            on_call(done, total)

    def call(function: Callable[[], object]) -> float:
        began = time.perf_counter()
        function()
        seconds = time.perf_counter() - began
        report(1)
        return seconds

    for function in functions.values():
        call(function)
    collects = gc.isenabled()
    gc.disable()  # or a collection would fall upon whichever is running
    try:
        began = time.perf_counter()
        for _ in range(repeats):
            if (
                time.perf_counter() - began > _LONG
            ):  # models that leave cycles behind would fill the memory
                gc.collect()  # not in every round: what is fast would be measured with cold caches
                began = time.perf_counter()
            for name, function in functions.items():
                if cap_s is not None and sum(readings[name]) >= cap_s:
                    capped.add(name)
                    report(0, skipped=1)
                else:
                    readings[name].append(call(function))
    finally:
        if collects:
            gc.enable()
    return {name: Times.of(seconds, name in capped) for name, seconds in readings.items()}


def resident_bytes(field: str) -> int:
    """Resident memory of this process on Linux, bytes: "VmRSS" is now, "VmHWM" the most that ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
