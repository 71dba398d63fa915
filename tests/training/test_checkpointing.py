import errno
import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import get_args

import pytest
import torch

from hgrn.errors import UserError
from hgrn.source import commit
from hgrn.training import checkpointing, manifests
from hgrn.training.checkpointing import SavePoint
from hgrn.training.loop import train
from hgrn.training.manifests import damage, find_checkpoint, latest_valid, steps_saved
from hgrn.training.runfolder import check_free
from hgrn.training.runlog import read_rows
from tests.training.tiny_runs import tiny_recipe, tiny_text


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with the run of the tiny recipe: checkpoints at 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("finished")
    train(tiny_recipe(folder, training__keep=3), folder / "run")
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(finished / "run", tmp_path / "run")


def resume(finished, run, **overrides):
    return train(tiny_recipe(finished, training__keep=3, **overrides), run, resume=True)


def newest(run):
    return steps_saved(run)[-1][1]


def test_a_save_passes_its_points_in_order(tmp_path, monkeypatch):
    passed = []
    monkeypatch.setattr(checkpointing, "reached", passed.append)
    train(tiny_recipe(tmp_path, training__keep=1), tmp_path / "run")
    first = [point for point in get_args(SavePoint) if point != "old checkpoint hidden"]
    assert passed == first + 2 * list(get_args(SavePoint))


def test_the_newest_are_kept(tmp_path):
    train(tiny_recipe(tmp_path, training__save_every=2, training__keep=2), tmp_path / "two")
    assert [step for step, _ in steps_saved(tmp_path / "two")] == [10, 12]
    train(tiny_recipe(tmp_path, training__save_every=2, training__keep=None), tmp_path / "all")
    assert [step for step, _ in steps_saved(tmp_path / "all")] == [2, 4, 6, 8, 10, 12]
    assert not list((tmp_path / "two" / "checkpoints").glob(".*"))


def test_the_manifest_names_every_file_but_the_card(run):
    manifest = json.loads((newest(run) / "manifest.json").read_text())
    files = {file.name for file in newest(run).iterdir()} - {"manifest.json", "README.md"}
    assert {row["name"] for row in manifest["files"]} == files
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "recipe.yaml",
        "rank-0.pt",
    } <= files
    assert damage(newest(run)) is None


def test_the_card_tells_of_the_run_and_may_be_edited(run):
    card = newest(run) / "README.md"
    manifest = json.loads((newest(run) / "manifest.json").read_text())
    rows = [
        row["bits_per_byte"] for row in read_rows(run / "log.jsonl") if row["kind"] == "validation"
    ]
    text = card.read_text()
    assert f"- code: hgrn at {commit()}" in text
    assert "- recipe: tiny (recipe.yaml), after step 12 of 12\n" in text
    assert f"; tokenizer bytes, fingerprint {manifest['data']}\n" in text
    assert (
        f"- bits per byte: {min(rows):.4f} on the validation split at step "
        f"{4 + 4 * rows.index(min(rows))}" in text
    )
    card.write_text("my own words")
    assert damage(newest(run)) is None


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name, spoil, reason",
    [
        ("model.safetensors", truncate, "model.safetensors has .* bytes instead of"),
        ("model.safetensors", flip_a_bit, "checksum of model.safetensors"),
        ("rank-0.pt", flip_a_bit, "checksum of rank-0.pt"),
        ("rank-0.pt", Path.unlink, "rank-0.pt is missing"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", truncate, "manifest.json is not one that hgrn wrote"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_by_name_and_replaced(
    finished, run, name, spoil, reason
):
    bad = newest(run)
    spoil(bad / name)
    good, passed_over = latest_valid(run)
    assert good.name == "step-000008"
    assert [path for path, _ in passed_over] == [bad]
    events = []
    recipe = tiny_recipe(finished, training__keep=3)
    outcome = train(recipe, run, resume=True, on_event=events.append)
    (event,) = [event for event in events if event["kind"] == "passed over"]
    assert event["path"] == str(bad) and re.search(reason, event["reason"])
    assert outcome.checkpoint == bad and damage(bad) is None
    original = json.loads(
        (finished / "run" / "checkpoints" / bad.name / "manifest.json").read_text()
    )
    weights = [row for row in original["files"] if row["name"] == "model.safetensors"]
    assert weights[0] in json.loads((bad / "manifest.json").read_text())["files"]


def test_a_run_without_a_whole_checkpoint_is_not_started_anew(finished, run):
    for _, folder in steps_saved(run):
        truncate(folder / "config.json")
    with pytest.raises(
        UserError, match="(?s)no checkpoint .* whole.*step-000012: config.json has.*step-000004"
    ):
        resume(finished, run)
    assert len(steps_saved(run)) == 3


def test_what_a_killed_save_has_left_is_no_checkpoint_and_goes_away(finished, run):
    hidden = newest(run).rename(run / "checkpoints" / ".saving-step-000012")
    (run / "checkpoints" / "notes").mkdir()
    assert [step for step, _ in steps_saved(run)] == [4, 8]
    resume(finished, run)
    assert not hidden.exists() and len(steps_saved(run)) == 3


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"optimizer__lr": 1e-3}, "optimizer.lr: 0.01 in the checkpoint, 0.001 now"),
        ({"model__hidden_size": 4}, "model.hidden_size: 8 in the checkpoint, 4 now"),
        ({"training__seed": 2}, "training.seed"),
        ({"batch__state": "carry"}, "batch.state: 'reset' in the checkpoint, 'carry' now"),
        ({"training__precision": "bf16"}, "training.precision"),
    ],
)
def test_another_recipe_is_refused(finished, run, overrides, message):
    with pytest.raises(UserError, match=f"(?s)trained with another recipe.*{message}"):
        resume(finished, run, **overrides)


def test_bookkeeping_may_change(finished, run):
    overrides = {
        "name": "other",
        "training__save_every": 5,
        "training__log_every": 1,
        "training__eval_tokens": 50,
    }
    assert resume(finished, run, **overrides).step == 12


def test_another_recipe_is_refused_before_the_first_checkpoint_too(finished, run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="training.seed"):
        resume(finished, run, training__seed=2)


def test_other_data_under_the_same_name_is_refused(finished, run, tmp_path):
    recipe = tiny_recipe(tmp_path, text=tiny_text(seed=1), training__keep=3)
    with pytest.raises(UserError, match="trained on other data"):
        train(recipe, run, resume=True)


def test_the_same_data_in_another_place_is_not(tmp_path):
    recipe = tiny_recipe(tmp_path / "there", training__steps=4, schedule__name="constant")
    train(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "there")
    moved = tiny_recipe(tmp_path / "here", training__steps=6, schedule__name="constant")
    assert train(moved, tmp_path / "run", resume=True).step == 6


def test_a_checkpoint_without_optimizer_state_is_refused(finished, run):
    for _, folder in steps_saved(run):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"] = [row for row in manifest["files"] if row["name"] != "rank-0.pt"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / "rank-0.pt").unlink()
    with pytest.raises(UserError, match="no optimizer state"):
        resume(finished, run)


def test_the_state_is_read_without_unpickling_code(run):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"progress": Evil()}, newest(run) / "rank-0.pt")
    with pytest.raises(UserError, match="rank-0.pt .* refused"):
        checkpointing.load_state(newest(run), 0)


def test_find_checkpoint(run, tmp_path):
    assert find_checkpoint(run) == find_checkpoint(newest(run)) == newest(run)
    truncate(newest(run) / "model.safetensors")
    assert find_checkpoint(run).name == "step-000008"
    with pytest.raises(UserError, match="is damaged: model.safetensors has"):
        find_checkpoint(newest(run))
    with pytest.raises(UserError, match="no checkpoint folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a saved model"):
        find_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert find_checkpoint(tmp_path) == tmp_path


def test_inference_takes_the_checksum_of_what_it_loads_alone(run):
    def flip(file):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    flip(newest(run) / "rank-0.pt")
    assert damage(newest(run)) == "the checksum of rank-0.pt does not match"
    assert find_checkpoint(run, for_inference=True) == newest(run)
    truncate(newest(run) / "rank-0.pt")
    assert "rank-0.pt has" in damage(newest(run), for_inference=True)
    assert find_checkpoint(run, for_inference=True).name == "step-000008"
    flip(run / "checkpoints" / "step-000008" / "model.safetensors")
    with pytest.raises(UserError, match="the checksum of model.safetensors does not match"):
        find_checkpoint(run / "checkpoints" / "step-000008", for_inference=True)


def test_check_free_sees_the_run(run):
    with pytest.raises(UserError, match="already holds a run, saved up to step 12: add --resume"):
        check_free(run, resume=False)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json", "rank-0.pt"])
def test_a_checkpoint_that_may_not_be_read_is_neither_damaged_nor_passed_over(
    finished, run, monkeypatch, name
):
    """It would be replaced when the run gets there again."""
    opening = Path.open

    def guarded(self, *arguments, **named):
        if self.name == name and self.parent == newest(run):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opening(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", guarded)
    for read in (damage, find_checkpoint):
        with pytest.raises(
            UserError, match=f"{name} cannot be read: Permission denied; make it readable"
        ):
            read(newest(run))
    with pytest.raises(UserError, match=f"{name} cannot be read: Permission denied"):
        resume(finished, run)


def test_a_checkpoint_on_a_failing_disk_is_damaged(run, monkeypatch):
    def failing(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifests, "_sha256", failing)
    assert damage(newest(run)) == "a file cannot be read: Input/output error"


def test_checkpoints_that_may_not_be_listed_are_not_missing(run, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(manifests.os, "listdir", refuse)
    with pytest.raises(UserError, match="checkpoints cannot be read: Permission denied"):
        steps_saved(run)


def test_the_order_of_checkpoints_is_that_of_their_steps(run):
    """Whatever a coarse or turned-back clock says."""
    for age, (_, folder) in enumerate(steps_saved(run)):
        os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    assert [step for step, _ in steps_saved(run)] == [4, 8, 12] and latest_valid(run)[0] == newest(
        run
    )


def test_all_files_have_the_permissions_of_new_files(run):
    assert {stat.S_IMODE(file.stat().st_mode) for file in newest(run).iterdir()} == {
        stat.S_IMODE((run / "recipe.yaml").stat().st_mode)
    }


def written_again(checkpoint: Path, state: object) -> None:
    """Other contents of rank-0.pt behind a manifest that holds."""
    file = checkpoint / "rank-0.pt"
    if isinstance(state, bytes):
        file.write_bytes(state)
    else:
        torch.save(state, file)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for row in manifest["files"]:
        if row["name"] == "rank-0.pt":
            row["size"] = file.stat().st_size
            row["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive", bytes(5000)])
def test_a_state_that_cannot_be_read(finished, run, content):
    written_again(newest(run), content)
    with pytest.raises(UserError, match="rank-0.pt (is damaged|holds more than tensors)"):
        resume(finished, run)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: 5,
        lambda state: {},
        lambda state: state | {"progress": {"steps": 4}},
        lambda state: state | {"progress": None},
        lambda state: state | {"optimizer": {}},
        lambda state: state | {"optimizer": [1]},
        lambda state: state | {"task": None},
        lambda state: state | {"rng": {"cpu": torch.zeros(3)}},
        lambda state: state | {"rng": {"cpu": torch.zeros(3, dtype=torch.uint8)}},
    ],
)
def test_a_state_of_something_else(finished, run, change):
    state = torch.load(newest(run) / "rank-0.pt", weights_only=True)
    written_again(newest(run), change(state))
    with pytest.raises(UserError, match="does not hold the state of (a|this) run"):
        resume(finished, run)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "", 5, None])
def test_a_manifest_names_files_of_its_own_folder(run, name):
    manifest = json.loads((newest(run) / "manifest.json").read_text())
    manifest["files"].append({"name": name, "size": 0, "sha256": ""})
    (newest(run) / "manifest.json").write_text(json.dumps(manifest))
    assert damage(newest(run)) == "manifest.json is not one that hgrn wrote"


def test_a_manifest_that_is_nested_too_deeply(run):
    (newest(run) / "manifest.json").write_text("[" * 100_000)
    assert damage(newest(run)) == "manifest.json is not one that hgrn wrote"
