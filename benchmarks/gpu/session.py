"""What a GPU run shares: the device and its clock, the time that is left, rows, and failures."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch

from benchmarks.rows import Cells, Results, Row
from hgrn.cli.speed import Function, Name, Times, round_robin
from hgrn.ops import engines

OURS = "hgrn"
_LEFT_OUT = "left out: "
_LATE = "the time of --minutes was used up"
_BEYOND_CACHES = 1 << 28  # bytes that no L2 cache holds


@contextmanager
def interpreted(on: bool) -> Iterator[None]:
    """Inside, tensors on the CPU run as a GPU's do: scans by Triton, the rest by PyTorch.

    Tiles are small, because the interpreter takes each element of a tile on its own.
    """
    with ExitStack() as patches:
        name = "triton" if on else "numba"
        patches.enter_context(mock.patch.dict(engines.ENGINE_OF_DEVICE, cpu=name))
        if on:
            from hgrn.ops.triton import plan

            tile = plan.Tile(
                rows=4, slots=4, block=8, vector=2, threads=32, stages=1, registers=None
            )
            patches.enter_context(mock.patch.object(plan, "tile_of", lambda *_: tile))
        yield


class Session:
    """One run on one device.

    results: the file with every row, measured or left out. failures: what of ours is wrong.
    """

    def __init__(self, results: Results, rehearse: bool, minutes: float, again: bool = False):
        """Rows are kept for a run that goes on, but for those that are to be tried once more."""
        self.results = results
        self.rehearse = rehearse
        self.device = "cpu" if rehearse else "cuda"
        self.failures: list[str] = []
        self._ends = time.monotonic() + 60 * minutes
        size = 1 << 10 if rehearse else _BEYOND_CACHES
        self._flush = torch.empty(size, dtype=torch.uint8, device=self.device)
        self._stream = None if rehearse else torch.cuda.Stream()
        results.forget(lambda row: again or self._is_stale(row))

    def _is_stale(self, row: Cells) -> bool:
        """Whether a row is of another device, came too late, or is a failure of ours."""
        # A failure may be mended since, so it is tried again.
        moved = row.get("gpu") != self.results.where.get("gpu")
        failed = row["peer"] == OURS and not row["median_ms"]
        return moved or failed or row["note"] == _LEFT_OUT + _LATE

    @property
    def rows(self) -> list[Row]:
        """All rows so far, those of earlier runs that this one goes on from included."""
        return [Row.read(cells) for cells in self.results.rows()]

    def stream(self) -> AbstractContextManager:
        """One stream for everything, and not the default one.

        A graph captures a backward pass on the stream of its forward.
        """
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def skips(self, needs: float = 0, **cells: Any) -> bool:
        """Whether there is a row already, or not even `needs` seconds are left for one.

        What is skipped for want of time is named.
        """
        if self.results.has(**cells):
            return True
        if time.monotonic() + needs < self._ends:
            return False
        self.leave_out(_LATE, **cells)
        return True

    def leave_out(self, reason: str, **cells: Any) -> None:
        """A row without numbers that says why."""
        row = Row(note=_LEFT_OUT + reason, **cells)
        print(f"{row.name} | {row.peer} | {row.shape} | {row.dtype} | {row.note}", flush=True)
        self.results.add(row.text)

    @contextmanager
    def guarded(self, **cells: Any) -> Iterator[None]:
        """Turn an error inside into a row without numbers; one of ours is a failure as well."""
        try:
            yield
        except Exception as error:  # the other rows are still wanted, whatever this one met
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            self.leave_out(reason, **cells)
            if cells.get("peer", OURS) == OURS:
                what = f"{cells['name']} {cells.get('shape', '')} {cells.get('dtype', '')}"
                self.failures.append(f"{what}: {reason}")

    def add(self, row: Row) -> None:
        """Print a measured row and write it."""
        rate = "" if row.tokens_per_s is None else f", {row.tokens_per_s:.4g} tokens/s"
        share = "" if row.ratio is None else f", {row.ratio:.2f} of the copy"
        place = f"{row.name} | {row.peer} | {row.shape} | {row.dtype} | {row.kind}"
        print(f"{place}: {row.median_ms:.4g} ms{share}{rate}", flush=True)
        self.results.add(row.text)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if not self.rehearse:
            torch.cuda.synchronize()

    def first(self, function: Callable[[], Any], **cells: Any) -> Any:
        """Call what may have to be compiled first, and return its result.

        That time gets a row of its own.
        """
        # Work that is under way must not count.
        self.wait()
        began = time.perf_counter()
        result = function()
        self.wait()
        times = Times.of([time.perf_counter() - began])
        name = f"{cells.pop('name')}: first call"
        row = Row.timed(times, name=name, note="compiling and tuning included", **cells)
        self.results.add(row.text)
        return result

    def capture(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """A function that has run before, as a CUDA graph that replays into the same memory.

        In a rehearsal, the function itself.
        """
        if self.rehearse:
            return function
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = function()

        def replay() -> Any:
            graph.replay()
            return result

        return replay

    def time(self, functions: Mapping[Name, Function], repeats: int) -> dict[Name, Times]:
        """All in turn, each with a cold L2, by CUDA events; in a rehearsal once, by wall time."""
        if self.rehearse:
            return round_robin(functions, 1, warm_ups=0)
        return round_robin(functions, repeats, warm_ups=3, clock=self._clock)

    def _clock(self, function: Function) -> float:
        # While this runs on the device, the host is already at the call. So launches are not timed.
        self._flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def forget_memory(self) -> None:
        """Give memory back to the device, and start a new count of its peak."""
        if not self.rehearse:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_mb(self) -> float | None:
        """The most memory of the device since `forget_memory`, in 10^6 bytes."""
        return None if self.rehearse else torch.cuda.max_memory_allocated() / 1e6
