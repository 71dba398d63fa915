"""Runs a kernel's tasks on the threads of PyTorch itself; safe under fork and under concurrent callers.

PyTorch's threads belong to the OpenMP runtime that it has loaded, and after each of its operations they wait for the next one by
spinning for some milliseconds. Other threads would have to wait for a core meanwhile, so kernels are handed to the same ones.
Where that runtime cannot be called (it is not GNU's or LLVM's), and in a forked child, a pool of Python's takes its place. None of
Numba's own threading layers is safe under both, so the kernels are not parallel themselves.

Forks: GNU's runtime keeps its threads for the next parallel operation. In a forked child they do not exist, but the runtime would
wait for them for ever, also in PyTorch's own operations (the cosine of 128 angles is one). So before a fork the runtime is told to
end the threads that it keeps for the caller; parent and child each start new ones when they need them. LLVM's runtime sees to this
itself.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import numpy as np
import torch

_SERIAL = 1 << 14  # elements that one thread has done before another one has begun
_MOST = 1024  # threads; of more the systems that we know cannot start all, and the runtime then ends the process
_PAUSE_HARD = 2  # omp_pause_hard
_function = cache(
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)
)  # the C function at an address; kernels stay where they are
_forked = False
_paused = False
_pool: ThreadPoolExecutor | None = None


def _before_fork() -> None:
    global _paused
    pause = _omp_pause()
    _paused = pause is None or pause(_PAUSE_HARD) == 0


def _after_fork() -> None:
    """In a forked child no thread of the parent exists."""
    global _forked, _pool
    _forked = True
    _pool = None
    if not _paused:
        torch.set_num_threads(1)  # so that nothing asks for the threads that are gone


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


@cache
def _openmp() -> ctypes.CDLL | None:
    """PyTorch's library, in which the functions of its OpenMP runtime can be looked up; or None if it has none."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        library = Path(torch.__file__).parent / "lib" / name
        if library.exists() and torch.backends.openmp.is_available():
            try:
                return ctypes.CDLL(str(library))
            except OSError:
                continue
    return None


@cache
def _gomp_parallel():
    """The function with which compiled OpenMP code enters a parallel region, of the runtime that PyTorch calls; or None."""
    function = getattr(_openmp(), "GOMP_parallel", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
    return function


@cache
def _omp_pause():
    """`omp_pause_resource_all` of GNU's runtime (GCC 9 and later); None where a fork needs none."""
    library = _openmp()
    if not torch.backends.openmp.is_available() or hasattr(library, "__kmpc_fork_call"):
        return None
    return getattr(library, "omp_pause_resource_all", lambda kind: -1)


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
    return 0 if _forked else _gomp_address()


@cache
def _gomp_address() -> int:
    function = _gomp_parallel()
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value


def count() -> int:
    """On how many threads kernels run: `torch.get_num_threads()`, within reason."""
    return min(torch.get_num_threads(), _MOST)


def run(kernel: int, block: np.ndarray, work: int) -> None:
    """Calls the C function at address `kernel` with `block` until its tasks are done, on `count()` threads.

    Every thread takes tasks until none is left. `work` is the number of elements in all; little is done by the caller alone.
    """
    threads = count()
    address = block.ctypes.data
    if threads == 1 or not is_shared(block, work):
        _function(kernel)(address)
    elif not _forked and (parallel := _gomp_parallel()) is not None:
        parallel(kernel, address, threads, 0)
    else:
        function = _function(kernel)
        wait([_executor(threads).submit(function, address) for _ in range(threads)])
