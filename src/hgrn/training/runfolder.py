"""The folder of a run: who owns it, and that only one process group writes to it.

`run.lock` says who holds the folder: the host, the process, and when the process began. A run holds
`run.lock.guard` as well, from before it judges `run.lock` until it ends. The guard is a lock of the
file system (of `filelock`), which ends with its process. So when two runs find the lock of a dead
one at the same moment, one takes it over, and the other waits and sees. On a file system without
locks the guard is `run.lock.marker`, a file that only one process can make. filelock writes the
owner into it, and takes over the file of a process that has ended.

`hgrn.data.disk` needs one lock only: nobody has to be told who prepares data.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout, UnixFileLock

from hgrn.errors import UserError
from hgrn.files import NO_LOCKS, is_draft, reading, remove, whole_file, writing
from hgrn.training.checkpointing import remove_leftovers
from hgrn.training.manifests import steps_saved
from hgrn.training.peers import Process
from hgrn.training.recipe import Recipe, recipe_to_yaml

LOCK = "run.lock"
GUARD = "run.lock.guard"
MARKER = "run.lock.marker"
_ELSEWHERE = "give another folder for the run"
_PATIENCE = 10.0  # seconds that a process may need to take over a lock
_POLL = 0.05  # seconds between two looks at a lock that is held


def check_free(run: Path, resume: bool) -> None:
    """Raise UserError unless `run` is missing or empty or, to resume, holds a run."""
    _check_name(run)
    with reading(run, _ELSEWHERE):
        if not run.exists():
            return
        if not run.is_dir():
            raise UserError(f"{run} is a file: give a folder for the run")
        entries = [
            entry.name
            for entry in run.iterdir()
            if not (entry.name.startswith(LOCK) or is_draft(entry.name))
        ]
    if not entries:
        return
    if "recipe.yaml" not in entries:
        raise UserError(
            f"{run} is not empty and holds no run ({min(entries)}, ...): give another folder"
        )
    if not resume:
        saved = steps_saved(run)
        at = f", saved up to step {saved[-1][0]}" if saved else ""
        raise UserError(
            f"{run} already holds a run{at}: add --resume to go on, or give another folder"
        )


def _check_name(run: Path) -> None:
    """Raise UserError for a name that cannot be written into logs and model cards."""
    try:
        str(run).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{os.fsencode(run)!r} is not UTF-8: {_ELSEWHERE}") from error


def write_recipe(run: Path, recipe: Recipe) -> None:
    """Put the run's recipe.yaml in place, whole at any moment."""
    with whole_file(run / "recipe.yaml") as draft:
        draft.write_text(recipe_to_yaml(recipe), encoding="utf-8")


@contextmanager
def locked(run: Path) -> Iterator[Callable[[], None]]:
    """Make a run folder if need be, hold its lock, and remove the half-written files of killed
    runs.

    Yields a function that checks the lock. It raises UserError if another run has the folder by
    now, because somebody removed the lock; it puts back a lock that is only gone.

    Raises UserError if the folder cannot be written, or if a live process, or any process on
    another host, holds the lock.
    """
    lock = run / LOCK
    mine = Process.this()

    def write() -> None:
        with whole_file(lock) as draft:
            draft.write_text(json.dumps(asdict(mine)), encoding="utf-8")

    def check() -> None:
        holder = _holder(lock)
        if holder is None:
            with writing(run, _ELSEWHERE):
                run.mkdir(parents=True, exist_ok=True)
            write()
        elif holder != mine:
            raise _in_use(lock, holder)

    with writing(run, _ELSEWHERE):
        run.mkdir(parents=True, exist_ok=True)
    with _guarded(run):
        holder = _holder(lock)
        if holder is not None and not holder.is_gone:
            raise _in_use(lock, holder)
        # Leftovers go before anything is written, because they may fill the disk.
        with writing(run, _ELSEWHERE):
            remove_leftovers(run)
        write()
        try:
            yield check
        finally:
            if _is_ours(lock, mine):
                remove(lock)


@contextmanager
def _guarded(run: Path) -> Iterator[None]:
    """Hold the guard of a run folder; UserError where another process keeps it."""
    guard = FileLock(run / GUARD, fallback_to_soft=False)
    with writing(run, _ELSEWHERE):
        try:
            _acquire(guard, run)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            remove(run / GUARD)
            guard = SoftFileLock(run / MARKER)
            _acquire(guard, run)
    try:
        yield
    finally:
        # The other kinds remove their file themselves. Removing it is safe while it is held, since
        # a process that waits for a removed file starts over.
        if isinstance(guard, UnixFileLock):
            remove(run / GUARD)
        with writing(run):
            guard.release()


def _acquire(guard: BaseFileLock, run: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            guard.acquire(timeout=0)
            return
        except Timeout:
            holder = _holder(run / LOCK)
            if holder is not None and (time.monotonic() > until or not holder.is_gone):
                raise _in_use(run / LOCK, holder) from None
            if time.monotonic() > until:
                raise UserError(
                    f"{run} is in use by another process, which holds {guard.lock_file}: wait for "
                    f"it or {_ELSEWHERE}. If there is no such process, remove that file."
                ) from None
            time.sleep(_POLL)


def _holder(lock: Path) -> Process | None:
    """The process that a lock names; None without a lock. UserError for any other content."""
    try:
        with reading(lock, "if no run writes to its folder now, remove it"):
            return Process.read(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"{lock} is not readable: if no run writes to its folder now, remove it"
        ) from error


def _is_ours(lock: Path, mine: Process) -> bool:
    """Whether the lock still names this process; False if it cannot be read at the end of a run."""
    try:
        return _holder(lock) == mine
    except UserError:
        return False


def _in_use(lock: Path, holder: Process) -> UserError:
    return UserError(
        f"{lock.parent} is in use by process {holder.pid} on host {holder.host}: wait for it or "
        f"{_ELSEWHERE}. If that process is gone, remove {lock} and what else begins with that name."
    )
