import json
import os
import socket

import pytest

from hgrn.errors import UserError
from hgrn.training.loop import train
from hgrn.training.runfolder import check_free, locked
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
        with pytest.raises(
            UserError, match=f"in use by process {os.getpid()} on host {socket.gethostname()}"
        ):
            with locked(tmp_path):
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
    with pytest.raises(UserError, match="on host elsewhere.*remove"):
        with locked(tmp_path):
            pass
    assert held.exists()


def test_an_unreadable_lock_is_the_users_to_remove(tmp_path):
    (tmp_path / "run.lock").write_text("")
    with pytest.raises(UserError, match="run.lock is not readable: .*remove it"):
        with locked(tmp_path):
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
            seen.append((tmp_path / "other" / "run.lock").exists()) if event["kind"] == "train" else None
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
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}


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
