"""Files that are whole or absent, and what is said when the system refuses one."""

import errno
import os
import resource
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from hgrn import files
from hgrn.cli import main
from hgrn.errors import ToldElsewhere, UserError
from hgrn.files import reading, refusal, whole_file, whole_folder, writing

REFUSED = (
    "ENOSPC",
    "EDQUOT",
    "EFBIG",
    "EROFS",
    "EIO",
    "EACCES",
    "EPERM",
    "ENAMETOOLONG",
    "ENOTDIR",
    "EMFILE",
)


def refuse(name):
    number = getattr(errno, name)
    raise OSError(number, os.strerror(number))


@contextmanager
def no_file_beyond(size):
    """Lets no file of this process grow beyond so many bytes.

    Only around what is tested: what pytest itself writes may go into a file that is larger.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as draft:
        assert draft.suffix == ".txt" and draft.parent == tmp_path
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_appears_whole_and_takes_an_empty_ones_place(tmp_path):
    (tmp_path / "made").mkdir()
    for place in (tmp_path / "made", tmp_path / "above" / "made"):
        with whole_folder(place) as draft:
            (draft / "inside").mkdir()
            (draft / "inside" / "b").write_text("b")
            assert not (place / "inside").exists()
        assert (place / "inside" / "b").read_text() == "b" and os.listdir(place.parent).count(
            "made"
        ) == 1
        assert not [name for name in os.listdir(place.parent) if name.startswith(".")]


@pytest.mark.parametrize("kind", [whole_file, whole_folder])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_other_errors_pass_and_leave_nothing(tmp_path, kind, error):
    with pytest.raises(error), kind(tmp_path / "a"):
        raise error
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", [whole_file, whole_folder])
@pytest.mark.parametrize("name", REFUSED)
def test_every_refusal_is_a_user_error_and_leaves_the_old_file(tmp_path, kind, name):
    path = tmp_path / "a"
    if kind is whole_file:
        path.write_text("old")
    with pytest.raises(UserError) as told, kind(path) as draft:
        if kind is whole_folder:
            (draft / "half").write_text("half")
        refuse(name)
    assert str(told.value).startswith(
        f"{path} cannot be written: {os.strerror(getattr(errno, name))}"
    )
    assert "; " in str(told.value) and os.listdir(tmp_path) == (["a"] if kind is whole_file else [])
    assert kind is whole_folder or path.read_text() == "old"


def test_a_full_disk_is_told_with_its_numbers(tmp_path):
    with (
        pytest.raises(
            UserError,
            match=r"No space left on device \(it needs about 1.5 MB, and .+ are free\); tidy up",
        ),
        writing(tmp_path / "a", "tidy up", needs=lambda: 1_500_000),
    ):
        refuse("ENOSPC")


def save_tokenizer(path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={chr(256 + n) * 30: n for n in range(2000)}, merges=[])).save(
        str(path)
    )


def save_state(path):
    with open(path, "wb") as file:
        torch.save({"a": torch.zeros(30_000)}, file)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_file({"a": torch.zeros(30_000)}, path),
        save_state,
        lambda path: torch.save({"a": torch.zeros(30_000)}, path),
        save_tokenizer,
        lambda path: path.write_bytes(bytes(100_000)),
    ],
    ids=["safetensors", "torch.save", "torch.save by name", "tokenizers", "python"],
)
def test_every_library_is_understood(tmp_path, write):
    reason = "(File too large|not all of it could be written)"
    refused = pytest.raises(UserError, match=f"a cannot be written: {reason}")
    with refused, no_file_beyond(20_000), whole_file(tmp_path / "a") as draft:
        write(draft)
    assert not os.listdir(tmp_path)


def test_errors_of_ours_are_no_refusals():
    assert refusal(RuntimeError("shape mismatch")) is None
    assert refusal(KeyError("a")) is None
    assert refusal(BrokenPipeError(errno.EPIPE, "gone")) is None
    assert refusal(Exception("Permission denied (os error 13)")).errno == errno.EACCES


def test_files_get_the_permissions_of_new_files(tmp_path):
    """safetensors makes its own private."""
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            with whole_folder(tmp_path / f"{mask}") as draft:
                save_file({"a": torch.zeros(3)}, draft / "a")
            with whole_file(tmp_path / "b") as draft:
                save_file({"a": torch.zeros(3)}, draft)
        finally:
            os.umask(before)
        for path in (tmp_path / f"{mask}" / "a", tmp_path / "b"):
            assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("name", ["EINVAL", "EACCES", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_that_flushes_no_folders(tmp_path, monkeypatch, name):
    flush = os.fsync

    def picky(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refuse(name)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", picky)
    with whole_folder(tmp_path / "a") as draft:
        (draft / "b").write_text("b")
    assert (tmp_path / "a" / "b").read_text() == "b"


def test_a_flush_that_fails_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse("EIO"))
    refused = pytest.raises(UserError, match="Input/output error")
    with refused, whole_file(tmp_path / "a") as draft:
        draft.write_text("a")
    assert not os.listdir(tmp_path)


def test_what_a_killed_process_has_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    gone = tmp_path / f".a.part-{process.pid}-0"
    alive = tmp_path / f".a.part-{os.getpid()}-999999"
    gone.mkdir()
    for path in (gone / "big", alive):
        path.write_text("half")
    with whole_file(tmp_path / "a") as draft:
        draft.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == [alive.name, "a"]


def test_names_of_any_length(tmp_path):
    for name in ("x" * 255, "ä" * 127, "x" * 250 + ".txt"):
        with whole_file(tmp_path / name) as draft:
            draft.write_text("a")
        assert (tmp_path / name).read_text() == "a"
    for kind in (whole_file, whole_folder):
        refused = pytest.raises(UserError, match="File name too long; give a shorter name")
        with refused, kind(tmp_path / ("x" * 256)):
            pass


def test_what_cannot_be_read_is_named():
    message = "a cannot be read: Permission denied; make it readable"
    with pytest.raises(UserError, match=message), reading("a"):
        refuse("EACCES")
    with pytest.raises(FileNotFoundError), reading("a"):
        raise FileNotFoundError(errno.ENOENT, "no such file")


def test_a_user_without_a_home(monkeypatch):
    from pathlib import Path

    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(UserError, match="~/x: the home folder is not known"):
        files.expanded("~/x")


@pytest.mark.parametrize(
    "error, line",
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            "hgrn: error: a/b: Permission denied\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "hgrn: error: No space left on device\n",
        ),
        (Exception("Permission denied (os error 13)"), "hgrn: error: Permission denied\n"),
        (ToldElsewhere("another rank says it"), ""),
    ],
)
def test_the_command_line_has_one_line_for_what_is_refused(monkeypatch, capsys, error, line):
    def doctor(arguments):
        raise error

    monkeypatch.setattr("hgrn.cli.doctor.run", doctor)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == line


def test_the_command_line_hides_no_bug(monkeypatch):
    def doctor(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("hgrn.cli.doctor.run", doctor)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="/dev/full is a full disk, and is not here"
)
def test_output_into_a_full_disk():
    program = (
        "from hgrn.cli import doctor, main; doctor.run = print; raise SystemExit(main(['doctor']))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True
        )
    said = "hgrn: error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)
