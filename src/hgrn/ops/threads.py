"""Runs a kernel's tasks on the threads of PyTorch itself; safe under fork and under concurrent callers.

PyTorch's threads belong to the OpenMP runtime that it has loaded, and after each of its operations they wait for the next one by
spinning for some milliseconds. Other threads would have to wait for a core meanwhile, so kernels are handed to the same ones.
Where that runtime cannot be called (it is not GNU's or LLVM's, or this process was forked, which its threads do not survive) a
pool of Python's takes its place. None of Numba's own threading layers is safe under both, so the kernels are not parallel themselves.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import numpy as np
import torch

_SERIAL = 1 << 14  # elements that one thread has done before another one has begun
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False
_pool: ThreadPoolExecutor | None = None


def _after_fork() -> None:
    """In a forked child no thread of the parent exists."""
    global _forked, _pool
    _forked, _pool = True, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _gomp_parallel():
    """The function with which compiled OpenMP code enters a parallel region, of the runtime that PyTorch calls; or None."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        library = Path(torch.__file__).parent / "lib" / name
        if library.exists() and torch.backends.openmp.is_available():
            try:
                function = ctypes.CDLL(str(library)).GOMP_parallel  # looked up in the library and what it depends on
            except (OSError, AttributeError):
                continue
            function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
            return function
    return None


def _executor(threads: int) -> ThreadPoolExecutor:
    global _pool
    if _pool is None or _pool._max_workers < threads:
        _pool = ThreadPoolExecutor(threads, thread_name_prefix="hgrn")
    return _pool


def is_shared(block: np.ndarray, work: int) -> bool:
    """Whether so much work is worth more than one thread."""
    return work > _SERIAL and block[0] > 1


def parallel_address() -> int:
    """Where the runtime's `GOMP_parallel` is, for compiled code that enters parallel regions itself; 0 if it cannot."""
    function = None if _forked else _gomp_parallel()
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value


def run(kernel: int, block: np.ndarray, work: int) -> None:
    """Calls the C function at address `kernel` with `block` until its tasks are done, on `torch.get_num_threads()` threads.

    Every thread takes tasks until none is left. `work` is the number of elements in all; little is done by the caller alone.
    """
    threads, address = torch.get_num_threads(), block.ctypes.data
    if threads == 1 or not is_shared(block, work):
        _KERNEL(kernel)(address)
    elif not _forked and (parallel := _gomp_parallel()) is not None:
        parallel(kernel, address, threads, 0)
    else:
        function = _KERNEL(kernel)
        wait([_executor(threads).submit(function, address) for _ in range(threads)])
