"""The timer: everything that is compared runs in turn, round after round.

Whatever else the machine does in the meantime then slows all of it alike.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

_WITHOUT_COLLECTION = 5.0  # seconds

Name = TypeVar("Name")
Function = Callable[[], object]
# Gets (steps done, steps in all) while something is measured.
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Times:
    """What one thing took in milliseconds: the median and the 10 % and 90 % quantiles.

    repeats: how many calls were timed. capped: it used up its time and missed the later rounds.
    """

    median: float
    p10: float
    p90: float
    repeats: int
    capped: bool = False

    @classmethod
    def of(cls, seconds: list[float], capped: bool = False) -> "Times":
        """From single readings in seconds; quantiles are interpolated linearly."""
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
    tell: Tell | None = None,
) -> dict[Name, Times]:
    """Warm every function up, then call all of them in turn, `repeats` times.

    warm_ups: untimed calls of each function at the start. cap_s: a function that has run for so
    many seconds misses the later rounds, but never the first. clock: calls a function and returns
    its seconds.
    """
    readings: dict[Name, list[float]] = {name: [] for name in functions}
    capped = set()
    done = 0
    total = len(functions) * (repeats + warm_ups)

    def report(calls: int, skipped: int = 0) -> None:
        nonlocal done, total
        done += calls
        total -= skipped
        if tell is not None:
            tell(done, total)

    for function in functions.values():
        for _ in range(warm_ups):
            function()
            report(1)
    # A collection of garbage would fall upon whichever function is running.
    collects = gc.isenabled()
    gc.disable()
    try:
        began = time.perf_counter()
        for _ in range(repeats):
            # Models that leave cycles behind would fill the memory. But a collection in every round
            # would empty the caches, and what is fast would be measured cold.
            if time.perf_counter() - began > _WITHOUT_COLLECTION:
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


def resident_bytes(field: str) -> int:
    """Resident memory of this process on Linux, in bytes.

    field: "VmRSS" is what is resident now, "VmHWM" the most that ever was.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
