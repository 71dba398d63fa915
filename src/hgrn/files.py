"""Files and folders that are whole or not there, and one clear error for a disk that refuses.

What hgrn writes appears under its name when all of it is on disk: `whole_file` and `whole_folder`
write under another name beside it, and rename. Whatever the system refuses meanwhile (a full disk,
no permission, a name that is too long, ...) is a `UserError` that names the file, the reason and
the remedy, from whichever library it comes; nothing half-written is left, and what stood there
before stays.
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
# What the system answers where it cannot flush a folder, or anything; then nothing waits for the disk.
_NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
# What a file system without locks answers (Lustre without -o flock, some NFS and FUSE).
NO_LOCKS = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_NO_FOLDER_FSYNC = _NO_FSYNC | {errno.EACCES, errno.EPERM, errno.EISDIR}
_LONGEST = 190  # bytes of a name that leave room for what a draft's name adds; 255 are allowed
_numbers = itertools.count()  # so that two threads never share a draft


@contextmanager
def whole_file(path: str | os.PathLike, remedy: str = "", durable: bool = True) -> Iterator[Path]:
    """Yield the name of an empty file to write, which becomes `path` when the block ends; an old
    file is replaced whole.

    The name has the suffix of `path`, and the file the permissions that new files have (the umask).
    remedy: what to do if it cannot be written (default: after the reason). durable=False does not
    wait for the disk. After an error inside the block the draft is removed and an old file stays as
    it is.

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
    """Yield a new empty folder to fill, which becomes `path` when the block ends; `path` is
    missing, or an empty folder.

    Folders above it are made. Arguments, permissions and errors are those of `whole_file`.
    """
    path = Path(path)
    with writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(path, "")
        draft.mkdir()
        try:
            yield draft
            finish_folder(draft, durable)
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
    """Raise a UserError for whatever the system refuses inside the block, in which `path` is
    written.

    remedy: what to do, in place of the usual one for the reason. needs: how many bytes there are to
    write, asked for only when the disk is full. draft: what the caller removes after an error, so
    that its room counts as free. Other errors pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # some libraries in Rust raise no kind of their own
        refused = refusal(error)
        if refused is None:
            raise
        usual = _REMEDIES.get(refused.errno, "give another place")
        room = _room(path, needs, draft) if refused.errno == errno.ENOSPC else ""
        raise UserError(
            f"{path} cannot be written: {refused.strerror}{room}; {remedy or usual}"
        ) from error


@contextmanager
def reading(
    path: str | os.PathLike, remedy: str = "make it readable, or give another one"
) -> Iterator[None]:
    """Raise a UserError for whatever the system refuses inside the block, in which `path` is read;
    but let a missing file pass."""
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
    """The error of the system behind an error of any library that writes files; None for every
    other error.

    safetensors and tokenizers keep its number in their text only. `torch.save` puts an error of its
    own in its place, when it finds that not all of a file arrived; write into an open file with it,
    which then says why.
    """
    if isinstance(error, BrokenPipeError):
        return None  # the reader of our output is gone, which no file has to do with
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
    """Give all files in a new folder the permissions of new files (some writers make them private),
    and put it on disk."""
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
    """Wait until a file's content, or a folder's entries, are on disk, where the file system can
    say so."""
    is_folder = path.is_dir()
    refused = _NO_FOLDER_FSYNC if is_folder else _NO_FSYNC
    try:
        # Windows flushes only what is open for writing, and opens no folders.
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in refused:
            raise


def is_running(pid: int) -> bool:
    """Whether a process of this number may live on this host; True where that cannot be asked."""
    if sys.platform == "win32":  # there os.kill ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def expanded(path: str | os.PathLike) -> Path:
    """`path` with ~ replaced by the user's home. UserError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: the home folder is not known; write the path out, or set HOME"
        ) from error


def amount(size: float) -> str:
    """A number of bytes, as people say it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            break
        size /= 1000
    else:
        unit = "TB"
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def _draft(path: Path, suffix: str) -> Path:
    """A new name beside `path`; drafts of `path` whose processes are gone are removed, since they
    take its room."""
    encoded = os.fsencode(path.name)
    stem = path.name if len(encoded) <= _LONGEST else hashlib.sha256(encoded).hexdigest()[:16]
    start = f".{stem}.part-"
    with suppress(FileNotFoundError):
        for name in os.listdir(path.parent):
            number = re.match(r"\d+", name.removeprefix(start)) if name.startswith(start) else None
            if number and not is_running(int(number[0])):
                remove(path.parent / name)
    return path.with_name(f"{start}{os.getpid()}-{next(_numbers)}{suffix}")


def is_draft(name: str) -> bool:
    """Whether a name is one that `whole_file` or `whole_folder` gives to what is not whole yet."""
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
        with suppress(OSError):  # a file system without permissions
            file.chmod(mode & 0o7777)


def _room(path: str | os.PathLike, needs: Callable[[], int] | None, draft: Path | None) -> str:
    """What is free on a full disk, and what would be needed if that is known."""
    places = [place for place in Path(path).absolute().parents if place.is_dir()]
    room = shutil.disk_usage(places[0]).free
    if draft is not None:
        room += sum(file.stat().st_size for file in draft.rglob("*") if file.is_file())
    free = f"{amount(room)} are free"
    return f" ({free})" if needs is None else f" (it needs about {amount(needs())}, and {free})"
