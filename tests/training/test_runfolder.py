import errno
import json
import os
import socket

import pytest

from hgrn.errors import UserError
from hgrn.training.loop import train
from hgrn.training.runfolder import check_free, locked
from tests.training.test_processes import results_of
from tests.training.tiny_runs import tiny_recipe


def lock(run, **changes):
    """A lock as another run would have left it."""
    run.mkdir(exist_ok=True)
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "born": None} | changes
    (run / "run.lock").write_text(json.dumps(holder))
    return run / "run.lock"


def dead_process():
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    return child


def test_a_lock_names_its_holder_and_goes_away(tmp_path):
    with locked(tmp_path):
        holder = json.loads((tmp_path / "run.lock").read_text())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        with (
            pytest.raises(
                UserError, match=f"in use by process {os.getpid()} on host {socket.gethostname()}"
            ),
            locked(tmp_path),
        ):
            pass
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    lock(tmp_path, pid=dead_process())
    with locked(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_process_that_has_got_the_number_of_the_dead_one_does_not_hold_its_lock(tmp_path):
    lock(tmp_path, born="1")
    with locked(tmp_path):
        pass


def test_the_lock_of_another_host_is_never_removed(tmp_path):
    held = lock(tmp_path, host="elsewhere", pid=dead_process())
    with pytest.raises(UserError, match="on host elsewhere.*remove"), locked(tmp_path):
        pass
    assert held.exists()


def test_an_unreadable_lock_is_the_users_to_remove(tmp_path):
    (tmp_path / "run.lock").write_text("")
    with pytest.raises(UserError, match="run.lock is not readable: .*remove it"), locked(tmp_path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["run.lock"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        train(tiny_recipe(tmp_path), tmp_path / "file" / "run")


def test_train_takes_the_lock_and_leaves_a_locked_folder_alone(tmp_path):
    held = lock(tmp_path / "run", host="elsewhere")
    with pytest.raises(UserError, match="in use"):
        train(tiny_recipe(tmp_path), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == [held]
    seen = []
    train(
        tiny_recipe(tmp_path, training__steps=2),
        tmp_path / "other",
        on_event=lambda event: (
            seen.append((tmp_path / "other" / "run.lock").exists())
            if event["kind"] == "train"
            else None
        ),
    )
    assert seen == [True] and not (tmp_path / "other" / "run.lock").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_nothing_is_written_over_foreign_files(tmp_path, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty and holds no run \(thesis.tex"):
        train(tiny_recipe(tmp_path), tmp_path / "run", resume=resume)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_second_run_does_not_overwrite_the_first(tmp_path):
    train(tiny_recipe(tmp_path, training__steps=2), tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="already holds a run, saved up to step 2: add --resume"):
        train(tiny_recipe(tmp_path), tmp_path / "run")
    assert before == {
        file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()
    }


def test_bad_data_leaves_no_run_folder(tmp_path):
    with pytest.raises(UserError, match="the text has 4 tokens"):
        train(tiny_recipe(tmp_path, text="short"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_and_empty_folders_are_free(tmp_path):
    for resume in (False, True):
        check_free(tmp_path / "missing", resume)
        check_free(tmp_path, resume)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_free(tmp_path / "file", resume=False)


@pytest.mark.parametrize(
    "content",
    [
        b"5",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"\0",
        b"[" * 100_000,
        b'{"host": 1, "pid": 2, "born": null}',
        b'{"host": "HOST", "pid": "2", "born": null}',
        b'{"host": "HOST", "pid": -1, "born": null}',
        b'{"host": "HOST", "pid": 1e99, "born": null}',
        b'{"host": "HOST", "pid": 99999999999, "born": null}',
        b'{"host": "HOST", "pid": true, "born": null}',
        b'{"host": "HOST", "pid": 1, "born": []}',
        b'{"host": "HOST", "pid": 1, "born": null, "more": 1}',
    ],
)
def test_a_lock_of_rubbish_is_the_users_to_remove(tmp_path, content):
    (tmp_path / "run.lock").write_bytes(content.replace(b"HOST", socket.gethostname().encode()))
    with pytest.raises(UserError, match="run.lock is not readable: .*remove it"), locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["run.lock"]


def test_a_lock_that_is_a_folder(tmp_path):
    (tmp_path / "run.lock").mkdir()
    with (
        pytest.raises(UserError, match="run.lock cannot be read: Is a directory; .*remove it"),
        locked(tmp_path),
    ):
        pass


def test_a_lock_that_vanishes_is_put_back(tmp_path):
    with locked(tmp_path) as check:
        for file in tmp_path.iterdir():
            file.unlink()
        check()
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match="in use by process"), locked(tmp_path):
            pass
        (tmp_path / "run.lock").unlink()
    assert not os.listdir(tmp_path)


def test_a_run_stops_before_it_saves_into_a_folder_that_another_one_has_taken(tmp_path):
    def listen(event):
        if event["kind"] == "train" and event["step"] == 6:
            lock(tmp_path / "run", host="elsewhere", pid=7)

    with pytest.raises(UserError, match="in use by process 7 on host elsewhere"):
        train(tiny_recipe(tmp_path), tmp_path / "run", on_event=listen)
    assert (tmp_path / "run" / "run.lock").exists()  # it is not this run's
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-000004"]


@pytest.fixture(scope="module")
def takers(tmp_path_factory):
    return results_of("locks", tmp_path_factory.mktemp("locks"))


@pytest.mark.parametrize("refusal", ["", "ENOSYS", "EOPNOTSUPP"])
def test_two_processes_that_find_a_stale_lock_never_both_hold_the_folder(takers, refusal):
    """The first judges the lock for half a second, in which the second comes."""
    pids, said, left = takers[f"locks {refusal}"]
    assert said.count("holds") == 1, said
    (refused,) = [line for line in said if line != "holds"]
    holder = pids[said.index("holds")]
    assert f"in use by process {holder} on host {socket.gethostname()}" in refused
    assert left == []


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def link(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    assert train(tiny_recipe(tmp_path, training__steps=2), tmp_path / "run").step == 2


@pytest.mark.parametrize("name", ["ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def test_a_file_system_without_locks(tmp_path, monkeypatch, name):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        in_use = f"in use by process {os.getpid()}"
        with locked(tmp_path), pytest.raises(UserError, match=in_use), locked(tmp_path):
            pass
        assert not os.listdir(tmp_path)


def test_names_that_no_log_can_hold(tmp_path):
    with pytest.raises(UserError, match=r"is not UTF-8: give another folder"):
        check_free(tmp_path / "r\udcff", resume=False)
    with pytest.raises(UserError, match="File name too long; give another folder"):
        check_free(tmp_path / ("x" * 256), resume=False)


def test_what_a_kill_has_left_half_written_does_not_make_a_folder_foreign(tmp_path):
    for name in (".recipe.yaml.part-1234-0.yaml", ".run.lock.part-1234-1.lock", "run.lock.guard"):
        (tmp_path / name).write_text("half")
    check_free(tmp_path, resume=True)
