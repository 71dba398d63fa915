"""Locks for the caches on disk, and paths that a user gives."""

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
    """Hold a lock file; the system releases it when the process ends, however it ends.

    If the file system has no locks, the existence of a file beside it is the lock. That file names
    the process that made it, and others take it over when that process is gone. Raises OSError if
    neither can be made.
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
    """The path, with ~ for the user's home.

    setting: what the message calls it. Raises UserError for an empty path, and without a home.
    """
    if not text.strip():
        raise UserError(f"{setting} is an empty path; name a folder, or leave it out")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # pathlib has no error of its own for a user without a home
        raise UserError(
            f"{text}: this user has no home folder; set {setting} to a path without ~"
        ) from None


def _acquire(lock: FileLock | SoftFileLock) -> None:
    """Wait for a lock; after `PATIENCE` seconds log for whom."""
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        logger.info(
            "waiting for another process that prepares the same data; it holds %s", lock.lock_file
        )
        lock.acquire()
