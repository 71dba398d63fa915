"""How many CPU threads a run computes on."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hgrn.errors import UserError

_PLENTY = 1024  # threads that a recipe may ask for on any machine, however few processors it has


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Inside, PyTorch computes on `count` CPU threads; None leaves their number alone.

    Raises UserError if the machine cannot run so many. PyTorch would find out in the middle of its
    work and end the process.
    """
    if count is None:
        yield
        return
    _check(count)
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(count: int) -> None:
    processors = os.cpu_count() or 1
    most = max(_PLENTY, 4 * processors)
    remedy = (
        f"this machine has {processors} processors, and more threads than that only wait; null "
        "leaves the choice to PyTorch"
    )
    if count > most:
        raise UserError(f"training.threads must be at most {most}, got {count}; {remedy}")
    started = _started(count - 1)  # beside the one that asks
    if started < count - 1:
        raise UserError(
            f"training.threads = {count}, but the system lets this process start only {started} "
            f"more; {remedy}"
        )


def _started(count: int) -> int:
    """How many of `count` threads the system lets this process have at once, found by starting
    them."""
    end = threading.Event()
    threads = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:  # can't start new thread
        pass
    finally:
        end.set()
        for thread in threads:
            thread.join()
    return len(threads)
