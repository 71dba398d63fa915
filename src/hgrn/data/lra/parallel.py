"""Work shared out over processes, its results in order whatever their number."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

from hgrn.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


LARGEST = 1024  # processes; each has a Python of its own


def default_processes() -> int:
    """As many as there are cores for this process."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(cores, LARGEST)


@contextmanager
def ordered_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], processes: int | None
) -> Iterator[Iterator[Result]]:
    """`map(function, tasks)` by so many processes (None: one a core), whose end is that of the context.

    function must be importable, and tasks may be endless: only a few are taken ahead.
    """
    count = default_processes() if processes is None else processes
    if not 1 <= count <= LARGEST:
        raise UserError(f"processes must be at least 1 and at most {LARGEST}; got {count}")
    if count == 1:
        yield map(function, tasks)
        return
    # A forked child of a process with threads can hang on a lock that no thread of its own holds.
    with (
        multiprocessing.get_context("spawn").Pool(count) as pool,
        closing(_ahead(pool, function, tasks, count)) as results,
    ):
        yield results


def _ahead(
    pool, function: Callable[[Task], Result], tasks: Iterable[Task], count: int
) -> Iterator[Result]:
    waiting = []
    for task in tasks:
        waiting.append(pool.apply_async(function, (task,)))
        if len(waiting) > 2 * count:
            yield waiting.pop(0).get()
    for result in waiting:
        yield result.get()
