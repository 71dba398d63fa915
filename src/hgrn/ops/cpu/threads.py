"""Runs the tasks of a kernel on PyTorch's own threads, safely under forks and many callers.

PyTorch's threads belong to the OpenMP runtime that it has loaded. After each operation of PyTorch
they wait for the next one by spinning for some milliseconds, and threads of our own would have to
wait for a free core meanwhile. So we hand kernels to the same threads. Where we cannot call that
runtime (it is neither GNU's nor LLVM's), and in a forked child, a pool of Python threads takes its
place. Kernels are not parallel themselves, because none of Numba's threading layers is safe under
both.

Forks: GNU's runtime keeps its threads for the next parallel operation. In a forked child they do
not exist, but the runtime would wait for them forever, also in PyTorch's own operations (the cosine
of 128 angles is one). So before a fork we tell the runtime to end the threads that it keeps for the
caller. Parent and child each start new ones when they need them. LLVM's runtime takes care of this
itself.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import numpy as np
import torch

# Up to this many elements one thread is done before a second one has started.
_SERIAL = 1 << 14
# The most threads we ask for. Common systems cannot start more, and the runtime then ends the
# process.
_MOST = 1024
_PAUSE_HARD = 2  # OpenMP's `omp_pause_hard`
# The C function at an address. Kernels never move, so each address is wrapped once.
_function = cache(ctypes.CFUNCTYPE(None, ctypes.c_void_p))
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
        # The runtime still counts on threads that are gone; with one thread nothing asks for them.
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


@cache
def _openmp() -> ctypes.CDLL | None:
    """PyTorch's library, which leads to the functions of its OpenMP runtime; None without one."""
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
    """How compiled code enters a parallel region of PyTorch's runtime; None if we cannot."""
    function = getattr(_openmp(), "GOMP_parallel", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
    return function


@cache
def _omp_pause():
    """`omp_pause_resource_all` of GNU's runtime; None where a fork needs no pause.

    Before GCC 9 there is no such function, and ours reports that it failed.
    """
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
    """Whether a block has several tasks, and so many elements that a second thread pays."""
    return work > _SERIAL and block[0] > 1


def parallel_address() -> int:
    """Address of `GOMP_parallel`, for compiled code that enters parallel regions itself, or 0."""
    return 0 if _forked else _gomp_address()


@cache
def _gomp_address() -> int:
    function = _gomp_parallel()
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


def count() -> int:
    """How many threads kernels run on: `torch.get_num_threads()`, but at most `_MOST`."""
    return min(torch.get_num_threads(), _MOST)


def run(kernel: int, block: np.ndarray, work: int) -> None:
    """Runs a kernel on `count()` threads. Each of them takes tasks until none is left.

    Args:
        kernel: address of a C function of one pointer.
        block: the block of integers that it is called with.
        work: how many elements there are in all. Little work is done by the caller alone.
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
