"""Shares work out over processes; the results come in order, whatever the number of processes."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import Pool
from typing import TypeVar

from hgrn.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

LARGEST = 1024  # processes; each runs its own Python


def default_processes() -> int:
    """One for each core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), LARGEST)
    return min(os.cpu_count() or 1, LARGEST)


@contextmanager
def ordered_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], processes: int | None
) -> Iterator[Iterator[Result]]:
    """`map(function, tasks)` on several processes, which end when this block ends.

    function: must be importable. tasks: may be endless; only a few are taken ahead. processes: None
    takes one for each core; UserError unless it is from 1 to `LARGEST`.
    """
    count = default_processes() if processes is None else processes
    if not 1 <= count <= LARGEST:
        raise UserError(f"processes must be at least 1 and at most {LARGEST}; got {count}")
    if count == 1:
        yield map(function, tasks)
        return
    # Not by fork: the child of a process with threads can hang on a lock that one of them held.
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        yield _ahead(pool, function, tasks, count)


def _ahead(
    pool: Pool, function: Callable[[Task], Result], tasks: Iterable[Task], count: int
) -> Iterator[Result]:
    # `Pool.imap` would take all tasks at once.
    waiting = deque()
    for task in tasks:
        waiting.append(pool.apply_async(function, (task,)))
        if len(waiting) > 2 * count:
            yield waiting.popleft().get()
    while waiting:
        yield waiting.popleft().get()
