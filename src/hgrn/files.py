"""Write files and folders whole or not at all, with one clear error if the disk refuses.

`whole_file` and `whole_folder` write a draft under another name beside the place, and rename it
when all of it is on disk. If the system refuses anything (a full disk, no permission, a name that
is too long), they raise a `UserError` that names the file, the reason and the remedy, whichever
library was writing. They then remove the draft, and what stood in the place before stays.
"""

import errno
import hashlib
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hgrn.errors import UserError

_REMEDIES = {
    errno.ENOSPC: "make room there, or give another place",
    errno.EDQUOT: "your quota there is used up: make room, or give another place",
    errno.EFBIG: "the file system or `ulimit -f` allows no file of that size: give another place",
    errno.EROFS: "give a place that can be written",
    errno.EACCES: "ask for the permission, or give another place",
    errno.EPERM: "ask for the permission, or give another place",
    errno.EIO: "the disk or the connection to it fails: give another place",
    errno.ENAMETOOLONG: "give a shorter name",
}
# The answers of a file system that cannot flush. Nothing can wait for such a disk, so nothing does.
_NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
# The answers of a file system without locks (Lustre without -o flock, some NFS and FUSE).
NO_LOCKS = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_NO_FOLDER_FSYNC = _NO_FSYNC | {errno.EACCES, errno.EPERM, errno.EISDIR}
# A name may have 255 bytes; a draft's name adds up to 65 to the name of its place.
_LONGEST = 190
# Numbers the drafts of this process, so that two threads never share one.
_numbers = itertools.count()


@contextmanager
def whole_file(path: str | os.PathLike, remedy: str = "", durable: bool = True) -> Iterator[Path]:
    """Yield the name of an empty draft to write, which replaces `path` when the block ends.

    The draft has the suffix of `path`, and the permissions of a new file (the umask). remedy: the
    advice in the error (default: one that fits the reason). durable=False does not wait for the
    disk. After an error inside the block, the draft is removed and an old file stays as it was.

    Raises UserError if the system refuses anything.
    """
    path = Path(path)
    with writing(path, remedy):
        draft = _draft(path, path.suffix)
        try:
            with open(draft, "xb") as file:
                mode = os.fstat(file.fileno()).st_mode
            yield draft
            _give_mode(draft, mode)
            if durable:
                sync(draft)
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


@contextmanager
def whole_folder(path: str | os.PathLike, remedy: str = "", durable: bool = True) -> Iterator[Path]:
    """Yield a new empty folder to fill, which becomes `path` when the block ends.

    `path` must be missing, or an empty folder; the folders above it are made. Arguments,
    permissions and errors are those of `whole_file`.
    """
    path = Path(path)
    with writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(path, "")
        draft.mkdir()
        try:
            yield draft
            finish_folder(draft, durable)
            # Not every system renames over a folder, even an empty one.
            if path.is_dir():
                path.rmdir()
            os.replace(draft, path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        if durable:
            sync(path.parent)


@contextmanager
def writing(
    path: str | os.PathLike,
    remedy: str = "",
    needs: Callable[[], int] | None = None,
    draft: Path | None = None,
) -> Iterator[None]:
    """Raise a UserError if the system refuses anything inside the block, which writes `path`.

    remedy: replaces the usual advice for the reason. needs: returns how many bytes there are to
    write; called only if the disk is full. draft: a file or folder that the caller removes after an
    error, so its room counts as free. Other errors pass unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Some libraries in Rust raise plain Exception, so no narrower class would do.
        refused = refusal(error)
        if refused is None:
            raise
        usual = _REMEDIES.get(refused.errno or 0, "give another place")
        room = _room(path, needs, draft) if refused.errno == errno.ENOSPC else ""
        raise UserError(
            f"{path} cannot be written: {refused.strerror}{room}; {remedy or usual}"
        ) from error


@contextmanager
def reading(
    path: str | os.PathLike, remedy: str = "make it readable, or give another one"
) -> Iterator[None]:
    """Raise a UserError if the system refuses anything inside the block, which reads `path`.

    FileNotFoundError passes unchanged, because callers often know what a missing file means.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror}; {remedy}"
        ) from error


def refusal(error: BaseException) -> OSError | None:
    """The system's error behind an error of a library that writes files; None for other errors.

    safetensors and tokenizers have its number in their text only. `torch.save` replaces it by an
    error of its own when it finds that part of a file is missing. Let it write into an open file:
    then the system's error is kept as the context.
    """
    # The reader of our output is gone; no file is involved.
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, OSError):
        return error if error.errno is not None else OSError(0, str(error))
    if told := re.search(r"([^:]*) \(os error (\d+)\)", str(error)):
        return OSError(int(told[2]), told[1].strip())
    if isinstance(error, RuntimeError) and re.search(
        "inline_container|PytorchStreamWriter", str(error)
    ):
        behind = error.__context__
        if isinstance(behind, OSError) and behind.errno is not None:
            return behind
        return OSError(errno.EIO, "not all of it could be written")
    return None


def finish_folder(folder: Path, durable: bool = True) -> None:
    """Give all files in a new folder the permissions of new files, and put the folder on disk."""
    # Some writers make their files private. Only a new file shows what the umask allows.
    probe = folder / f".mode-{os.getpid()}"
    with open(probe, "xb") as file:
        mode = os.fstat(file.fileno()).st_mode
    probe.unlink()
    folders = [folder]
    for entry in folder.rglob("*"):
        if entry.is_dir():
            folders.append(entry)
        elif entry.is_file():
            _give_mode(entry, mode)
            if durable:
                sync(entry)
    for each in reversed(folders) if durable else ():
        sync(each)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on disk.

    Returns at once if the file system cannot tell.
    """
    is_folder = path.is_dir()
    refused = _NO_FOLDER_FSYNC if is_folder else _NO_FSYNC
    try:
        # Windows flushes only files that are open for writing, and opens no folders.
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in refused:
            raise


def is_running(pid: int) -> bool:
    """Whether a process of this number may live on this host; True if that is not known."""
    # On Windows, os.kill would end the process.
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def expanded(path: str | os.PathLike) -> Path:
    """`path` with ~ replaced by the user's home. Raises UserError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: the home folder is not known; write the path out, or set HOME"
        ) from error


def amount(size: float) -> str:
    """A number of bytes as a person says it, such as "1.5 GB"."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = 0
    while size >= 1000 and power < len(units) - 1:
        size /= 1000
        power += 1
    return f"{size:.{0 if power == 0 else 1}f} {units[power]}"


def _draft(path: Path, suffix: str) -> Path:
    """A new name beside `path`, for a draft of it; also removes the drafts of killed processes."""
    encoded = os.fsencode(path.name)
    stem = path.name if len(encoded) <= _LONGEST else hashlib.sha256(encoded).hexdigest()[:16]
    start = f".{stem}.part-"
    # Drafts of dead processes take the room that this one needs.
    with suppress(FileNotFoundError):
        for name in os.listdir(path.parent):
            number = re.match(r"\d+", name.removeprefix(start)) if name.startswith(start) else None
            if number and not is_running(int(number[0])):
                remove(path.parent / name)
    return path.with_name(f"{start}{os.getpid()}-{next(_numbers)}{suffix}")


def is_draft(name: str) -> bool:
    """Whether `whole_file` or `whole_folder` gives such a name to a draft."""
    return re.match(r"\..*\.part-\d+-\d+", name) is not None


def remove(path: Path) -> None:
    """Remove a file or a whole folder, as far as it can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _give_mode(file: Path, mode: int) -> None:
    if file.stat().st_mode != mode:
        # Some file systems have no permissions.
        with suppress(OSError):
            file.chmod(mode & 0o7777)


def _room(path: str | os.PathLike, needs: Callable[[], int] | None, draft: Path | None) -> str:
    """The words for how much a full disk has free, and how much is needed if that is known."""
    places = [place for place in Path(path).absolute().parents if place.is_dir()]
    room = shutil.disk_usage(places[0]).free
    if draft is not None:
        room += sum(file.stat().st_size for file in draft.rglob("*") if file.is_file())
    free = f"{amount(room)} are free"
    return f" ({free})" if needs is None else f" (it needs about {amount(needs())}, and {free})"
