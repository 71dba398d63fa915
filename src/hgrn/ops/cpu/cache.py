"""Compiled kernels on disk: a file for each, checked when it is read; what cannot be read or written is compiled in memory.

Numba keeps an index beside its files and believes both. A file that was cut short stops every later process there, and one that two
processes wrote at once may hold another kernel than the index says. Here a file's name says what was compiled from what and for
which processor, and its first bytes are a hash of that name and of the rest.
"""

import contextlib
import hashlib
import os
import tempfile
import uuid
import warnings
from pathlib import Path

REMEDY = "make room there, or set NUMBA_CACHE_DIR to a writable folder"
_SUFFIX = ".kernel"
_PROBE = 1 << 17  # bytes, more than any kernel has


_said: set[Path | None] = set()


def warn_once(folder: Path | None, problem: str) -> None:
    """Says that kernels are not kept, and where that was tried: once for each folder."""
    if folder in _said:
        return
    _said.add(folder)
    where = (
        "no folder for compiled CPU kernels is writable"
        if folder is None
        else f"compiled CPU kernels cannot be kept in {folder}"
    )
    warnings.warn(
        f"{where} ({problem}), so each process compiles them again (some seconds); {REMEDY}",
        stacklevel=2,
    )


class KernelFile:
    """Where one kernel is kept.

    Args:
        folder: may be away.
        name: of the kernel.
        place: what it runs on: processor, versions of the compiler and of Python.
        sources: what it was compiled from. Files of the same name and place from other sources go away when this one is written.
    """

    def __init__(self, folder: Path, name: str, place: str, sources: str):
        self._prefix = f"{name}.{hashlib.sha256(place.encode()).hexdigest()[:12]}."
        self.path = folder / f"{self._prefix}{sources}{_SUFFIX}"

    def load(self) -> bytes | None:
        """What `save` was given; None if it is not there, or is not what was written."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        digest = content[:32]
        payload = content[32:]
        return payload if digest == self._digest(payload) else None

    def save(self, payload: bytes) -> None:
        """Writes the file in one piece; where that fails, says so once."""
        try:
            _write(self.path, self._digest(payload) + payload)
        except OSError as error:
            if self.load() is None:  # and not just written by another process
                warn_once(self.path.parent, error.strerror or str(error))
            return
        for other in self.path.parent.glob(f"{self._prefix}*{_SUFFIX}"):
            if other != self.path:
                with contextlib.suppress(OSError):
                    other.unlink()

    def _digest(self, payload: bytes) -> bytes:
        return hashlib.sha256(self.path.name.encode() + b"\0" + payload).digest()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def problem_of(folder: Path) -> str | None:
    """Why a kernel could not be written into the folder now, or None if it could."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE))
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None
