"""Locks, folders and paths on systems that can do less than Linux with a local disk."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from hgrn.data import disk
from hgrn.data.disk import locked, user_path
from hgrn.data.tokens import prepare
from hgrn.errors import UserError

fcntl = pytest.importorskip("fcntl")


def refuse(number: int):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


def overlaps(path) -> bool:
    """Whether two of four threads were inside of the lock at once."""
    inside = []
    most = []

    def hold():
        with locked(path):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 4
    return max(most) > 1


def test_one_holds_the_lock(tmp_path):
    assert not overlaps(tmp_path / "entry.lock")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_one_holds_the_lock_where_the_file_system_has_none(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    assert not overlaps(tmp_path / "entry.lock")
    assert not overlaps(tmp_path / "entry.lock")  # nothing is left that keeps others out


def test_text_is_prepared_where_the_file_system_has_no_locks(tmp_path, monkeypatch, make_data):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    (tmp_path / "a.txt").write_bytes(b"abc")
    assert prepare(make_data([tmp_path / "a.txt"]), "train").read(0, 3).tolist() == [97, 98, 99]


def test_a_lock_of_a_process_that_died_without_system_locks_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    program = (
        "import errno, fcntl, os, sys\nfrom pathlib import Path\n"
        "from hgrn.data.disk import locked\n"
        "def flock(*_): raise OSError(errno.ENOSYS, 'no')\nfcntl.flock = flock\n"
        "with locked(Path(sys.argv[1])): os._exit(7)\n"
    )
    died = subprocess.run([sys.executable, "-c", program, tmp_path / "entry.lock"])
    assert died.returncode == 7 and (tmp_path / "entry.owner.lock").exists()
    began = time.monotonic()
    with locked(tmp_path / "entry.lock"):
        assert time.monotonic() - began < disk.PATIENCE


def test_other_errors_of_a_lock_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), locked(tmp_path / "entry.lock"):
        pass


def test_waiting_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(disk, "PATIENCE", 0.01)
    caplog.set_level("INFO")
    assert not overlaps(tmp_path / "entry.lock")
    assert (
        "waiting for another process that prepares the same data; it holds "
        f"{tmp_path / 'entry.lock'}" in caplog.text
    )


def test_a_system_without_fcntl_and_pread(tmp_path):
    """What Windows lacks."""
    (tmp_path / "a.txt").write_text("hello")
    program = (
        "import os, sys, warnings\nsys.modules['fcntl'] = None\ndel os.pread\n"
        "warnings.simplefilter('ignore')\n"
        "from hgrn.data.text import TextData, TextSplit\nfrom hgrn.data.tokens import prepare\n"
        "data = TextData(files=[sys.argv[1]], splits={'train': TextSplit()}, cache=sys.argv[2])\n"
        "for _ in range(2): print(bytes(prepare(data, 'train').read(0, 5).tolist()).decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.txt", tmp_path / "cache"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["hello", "hello"], done.stderr


def test_paths_that_lead_nowhere(monkeypatch):
    for empty in ("", " "):
        with pytest.raises(UserError, match="data.cache is an empty path"):
            user_path(empty, "data.cache")
    with pytest.raises(
        UserError, match="~nobody-of-this-name/x: this user has no home folder; set data.cache"
    ):
        user_path("~nobody-of-this-name/x", "data.cache")


def test_a_user_without_a_home_is_told_what_to_set(tmp_path, monkeypatch, make_data):
    pwd = pytest.importorskip("pwd")

    def nobody(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    (tmp_path / "a.txt").write_bytes(b"abc")
    with pytest.raises(UserError, match="no home folder; set XDG_CACHE_HOME or data.cache"):
        prepare(make_data([tmp_path / "a.txt"], cache=None), "train")
