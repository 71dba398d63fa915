"""What the caches on disk need of a file system: locks, and a user's paths."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from hgrn.errors import UserError
from hgrn.files import NO_LOCKS

PATIENCE = 10  # seconds of waiting for a lock before a word about it

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file; the system lets go of it when the process ends, however it ends.

    Where the file system has no locks, the existence of a file beside it is the lock: it names the
    process that made it, and is taken over when that process is gone. Raises OSError where neither
    can be made.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        _acquire(lock)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lock = SoftFileLock(path.with_suffix(".owner" + path.suffix))
        _acquire(lock)
    try:
        yield
    finally:
        lock.release()


def user_path(text: str, setting: str) -> Path:
    """The path, with ~ for the user's home. Raises UserError, which names the setting, without one."""
    if not text.strip():
        raise UserError(f"{setting} is an empty path; name a folder, or leave it out")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the only word of pathlib for a user without a home
        raise UserError(
            f"{text}: this user has no home folder; set {setting} to a path without ~"
        ) from None


def _acquire(lock: FileLock | SoftFileLock) -> None:
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        logger.info(
            "waiting for another process that prepares the same data; it holds %s", lock.lock_file
        )
        lock.acquire()
