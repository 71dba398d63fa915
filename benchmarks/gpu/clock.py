"""What a run shares: the device and its clock, the time that is left, the rows, the gates and the targets."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch

from hgrn.bench.measure import Times
from hgrn.bench.results import Row
from hgrn.ops import engines, layers

OURS = "hgrn"


_ASKS = layers._asks_for_operator


@contextmanager
def interpreted(on: bool) -> Iterator[None]:
    """Whether CPU tensors run as a GPU's do, for a rehearsal: scans by Triton, the operations around them by PyTorch."""
    engine = mock.patch.dict(engines.ENGINE_OF_DEVICE, cpu="triton" if on else "numba")
    around = mock.patch.object(layers, "_asks_for_operator", _as_on_a_gpu if on else _ASKS)
    with engine, around:
        yield


def _as_on_a_gpu(engine: str | None, x: torch.Tensor) -> None:
    return None


class Bench:
    """rows: what was measured or left out. failures: what of ours is wrong. targets: name -> (wanted, found or None)."""

    def __init__(self, rehearse: bool, minutes: float):
        self.rehearse, self.device = rehearse, "cpu" if rehearse else "cuda"
        self.ends = time.monotonic() + 60 * minutes
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self.targets: dict[str, tuple[float, float | None]] = {}
        self._flush = torch.empty(
            1 << (10 if rehearse else 28), dtype=torch.uint8, device=self.device
        )  # beyond any L2
        self._stream = None if rehearse else torch.cuda.Stream()

    def stream(self):
        """One stream for all, not the default one: a graph captures a backward pass on the stream of its forward."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def target(self, name: str, wanted: float) -> None:
        self.targets[name] = (wanted, None)

    def reached(self, name: str, found: float) -> None:
        if name in self.targets:
            self.targets[name] = (self.targets[name][0], found)

    def left_out(self, reason: str, **cells) -> None:
        row = Row(note=f"left out: {reason}", **cells)
        print(f"{row.name} | {row.peer} | {row.shape} | {row.dtype} | {row.note}", flush=True)
        self.rows.append(row)

    def late(self, needs: float = 0, **cells) -> bool:
        """Whether not even `needs` seconds are left; what is skipped for it is named."""
        if time.monotonic() + needs < self.ends:
            return False
        self.left_out("the time of --minutes was used up", **cells)
        return True

    @contextmanager
    def guarded(self, **cells) -> Iterator[None]:
        """What is raised inside leaves a row without numbers; where it is ours it is a failure too."""
        try:
            yield
        except Exception as error:  # the other rows are still wanted, whatever this one met
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            self.left_out(reason, **cells)
            if cells.get("peer", OURS) == OURS:
                self.failures.append(
                    f"{cells['name']} {cells.get('shape', '')} {cells.get('dtype', '')}: {reason}"
                )

    def add(self, row: Row) -> Row:
        rate = "" if row.tokens_per_s is None else f", {row.tokens_per_s:.4g} tokens/s"
        share = "" if row.ratio is None else f", {row.ratio:.2f} of the copy"
        place = f"{row.name} | {row.peer} | {row.shape} | {row.dtype} | {row.kind}"
        print(f"{place}: {row.median_ms:.4g} ms{share}{rate}", flush=True)
        self.rows.append(row)
        return row

    def wait(self) -> None:
        if not self.rehearse:
            torch.cuda.synchronize()

    def first(self, function: Callable[[], object], **cells):
        """Calls what may have to be compiled or tuned first, with that time in a row of its own; returns what it returned."""
        self.wait()
        began = time.perf_counter()
        result = function()
        self.wait()
        seconds = time.perf_counter() - began
        name = f"{cells.pop('name')}: first call"
        self.rows.append(
            Row.timed(Times.of([seconds]), name=name, note="compiling and tuning included", **cells)
        )
        return result

    def capture(self, function: Callable[[], object]) -> Callable[[], object]:
        """The function, which has run before, as a CUDA graph: replayed into the same memory. In a rehearsal itself."""
        if self.rehearse:
            return function
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = function()

        def replay():
            graph.replay()
            return result

        return replay

    def time(self, functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
        """All in turn, each with a cold L2, by CUDA events; in a rehearsal once by wall time."""
        for function in functions.values():
            for _ in range(0 if self.rehearse else 3):
                function()
        readings = {name: [] for name in functions}
        for _ in range(1 if self.rehearse else repeats):
            for name, function in functions.items():
                self._flush.zero_()  # while it runs, the host is already at the call
                readings[name].append(self._once(function))
        return {name: Times.of(seconds) for name, seconds in readings.items()}

    def _once(self, function: Callable[[], object]) -> float:
        if self.rehearse:
            began = time.perf_counter()
            function()
            return time.perf_counter() - began
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def forget(self) -> None:
        """Gives memory back to the device and starts a new count of its peak."""
        if not self.rehearse:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_mb(self) -> float | None:
        return None if self.rehearse else torch.cuda.max_memory_allocated() / 1e6


def label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
