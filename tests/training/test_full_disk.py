"""Runs whose disk is full, or refuses what they write: one error, nothing half-written, and they go
on when there is room."""

import errno
import os
import resource
import subprocess
from typing import get_args

import pytest

from hgrn.errors import UserError
from hgrn.training import checkpointing
from hgrn.training.checkpointing import SavePoint
from hgrn.training.loop import train
from hgrn.training.manifests import damage, latest_valid, steps_saved
from hgrn.training.runlog import RunLog, read_rows
from tests.training.processes import REFUSALS, final_weights
from tests.training.test_processes import results_of
from tests.training.tiny_runs import tiny_recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The last weights of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_recipe(folder), folder / "run")
    return final_weights(folder / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mounting.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounting.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk, leave):
    """Write a file that leaves so many bytes free."""
    with open(disk / "filler", "wb") as file:
        free = os.statvfs(disk)
        file.write(bytes(free.f_bavail * free.f_bsize - leave))


def hidden(run):
    return [name for name in os.listdir(run / "checkpoints") if name.startswith(".")]


@pytest.mark.parametrize("leave", [0, 8_192, 40_960, 81_920])
def test_a_checkpoint_on_a_full_disk(tmp_path, small_disk, whole, leave):
    """Where the disk ends decides which file of the checkpoint is cut."""
    run = small_disk / "run"

    def listen(event):
        if event["kind"] == "saved" and event["step"] == 4:
            fill(small_disk, leave)

    with pytest.raises(UserError) as told:
        train(tiny_recipe(tmp_path), run, on_event=listen)
    message = str(told.value)
    assert "cannot be written: No space left on device" in message and "--resume" in message
    assert "\n" not in message
    if "checkpoints" in message:
        assert "it needs about" in message and "are free" in message
    assert [step for step, _ in steps_saved(run)] == [4] and not hidden(run)
    assert damage(steps_saved(run)[0][1]) is None

    (small_disk / "filler").unlink()
    train(tiny_recipe(tmp_path), run, resume=True)
    assert final_weights(run) == whole


def test_what_a_killed_save_has_left_makes_room_for_the_next_run(tmp_path, small_disk, whole):
    run = small_disk / "run"

    def stop(event):
        if event["kind"] == "saved":
            raise InterruptedError("stands for a kill")

    with pytest.raises(InterruptedError):
        train(tiny_recipe(tmp_path), run, on_event=stop)
    leftover = run / "checkpoints" / ".saving-step-000008"
    leftover.mkdir()
    fill(leftover, leave=0)
    train(tiny_recipe(tmp_path), run, resume=True)
    assert final_weights(run) == whole and not hidden(run)


@pytest.mark.parametrize(
    "point, name",
    [(point, "ENOSPC") for point in get_args(SavePoint)]
    + [("state written", name) for name in ("EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES")],
)
def test_a_refusal_at_any_point_of_a_save(tmp_path, monkeypatch, whole, point, name):
    number = getattr(errno, name)
    passed = []

    def done(reached):
        passed.append(reached)
        if reached == point and passed.count("folder made") == 2 + (
            point == "old checkpoint hidden"
        ):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpointing, "reached", done)
    run = tmp_path / "run"
    with pytest.raises(
        UserError, match=f"step-0000.. cannot be written: {os.strerror(number)}.*--resume"
    ):
        train(tiny_recipe(tmp_path), run)
    assert not [name for name in hidden(run) if name.startswith(".saving")]
    assert latest_valid(run)[0] is not None and not latest_valid(run)[1]
    monkeypatch.undo()
    train(tiny_recipe(tmp_path), run, resume=True)
    assert final_weights(run) == whole


def test_a_log_that_may_not_grow(tmp_path):
    log = RunLog(tmp_path, 0)
    row = {"kind": "train", "step": 1, "loss": 0.5}
    log(row)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    for _ in range(10):
        log(row)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(
            UserError, match="log.jsonl cannot be written: File too large.*--resume"
        ):
            log(row)
        log._rows.close()
        # The rows go well, the events do not.
        log._rows = open(os.devnull, "wb")  # noqa: SIM115
        with pytest.raises(
            UserError, match="tfevents.* cannot be written: File too large.*--resume"
        ):
            for _ in range(10):
                log(row)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.close()
    assert read_rows(tmp_path / "log.jsonl") == 11 * [row]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    return results_of("refusals", tmp_path_factory.mktemp("refusals") / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSALS)
def test_a_rank_that_cannot_write_ends_all_with_one_line(refusals, case):
    ended, said, left = refusals[" ".join(map(str, case))]
    assert ended == [2, 2]
    assert [line.startswith("hgrn: error: ") and "No space left" in line for line in said] == [
        True
    ], said
    assert left == ["step-000004"]
