"""Compiled kernels on disk, one file each; a kernel whose file is not whole is compiled again.

Numba has a cache of its own, an index with files beside it, and believes both. If a file was cut
short, every later process stops there. If two processes wrote one at once, it may hold another
kernel than the index says. So here the name of a file says what was compiled, from which sources
and for which processor, and its first bytes are a hash of that name and of the rest.
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
_PROBE = 1 << 17  # bytes: more than any kernel has
# Folders that a warning has named already.
_said: set[Path | None] = set()


def warn_once(folder: Path | None, problem: str) -> None:
    """Warns that kernels cannot be kept in the folder (None if there is none), once for each."""
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
    """The file of one kernel.

    Args:
        folder: where it lies; the folder need not exist yet.
        name: name of the kernel.
        place: what it runs on: processor, versions of the compiler and of Python.
        sources: a hash of what it was compiled from.
    """

    def __init__(self, folder: Path, name: str, place: str, sources: str):
        self._prefix = f"{name}.{hashlib.sha256(place.encode()).hexdigest()[:12]}."
        self.path = folder / f"{self._prefix}{sources}{_SUFFIX}"

    def load(self) -> bytes | None:
        """What `save` was given. None if there is no file, or if it is not what was written."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        digest = content[:32]
        payload = content[32:]
        return payload if digest == self._digest(payload) else None

    def save(self, payload: bytes) -> None:
        """Writes the file in one piece and deletes those from other sources; warns if it cannot."""
        try:
            _write(self.path, self._digest(payload) + payload)
        except OSError as error:
            # Another process may just have written the same file, and then nothing is lost.
            if self.load() is None:
                warn_once(self.path.parent, error.strerror or str(error))
            return
        for other in self.path.parent.glob(f"{self._prefix}*{_SUFFIX}"):
            if other != self.path:
                with contextlib.suppress(OSError):
                    other.unlink()

    def _digest(self, payload: bytes) -> bytes:
        return hashlib.sha256(self.path.name.encode() + b"\0" + payload).digest()


def _write(path: Path, content: bytes) -> None:
    # Under another name first: whoever reads finds the whole file or none.
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
    """Why no kernel can be written into the folder now; None if one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE))
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None
