"""A small thread pool for kernels that release the interpreter lock: safe under fork and under concurrent callers.

None of Numba's own threading layers is both, so the kernels are not parallel themselves.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_pool: ThreadPoolExecutor | None = None


def _executor(threads: int) -> ThreadPoolExecutor:
    global _pool
    if _pool is None or _pool._max_workers < threads:
        _pool = ThreadPoolExecutor(threads, thread_name_prefix="hgrn")
    return _pool


def _forget_pool() -> None:
    """In a forked child the pool's threads do not exist, so it makes its own when it needs one."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run(kernel: Callable[[int, int], None], tasks: int, work: int, grain: int = 1 << 19) -> None:
    """Calls `kernel(first, last)` on ranges that cover `range(tasks)`, on up to `torch.get_num_threads()` threads.

    `work` is the number of elements in all. Each thread gets `grain` of them at least, about a millisecond of work: after
    an operation of PyTorch its own threads spin for some milliseconds, and a thread of ours has to wait for a core.
    """
    threads = min(torch.get_num_threads(), tasks, max(1, work // grain))
    if threads == 1:
        kernel(0, tasks)
        return
    cuts = [tasks * k // threads for k in range(threads + 1)]
    others = [_executor(threads - 1).submit(kernel, a, b) for a, b in zip(cuts[1:-1], cuts[2:])]
    kernel(cuts[0], cuts[1])
    wait(others)
    for other in others:
        other.result()
