import io
import json

import pytest

from hgrn.errors import UserError
from hgrn.training.loop import train
from hgrn.training.runlog import Console, RunLog, part_of_split, read_rows
from tests.training.tiny_runs import tiny_recipe


def test_jsonl_and_tensorboard_tell_the_same(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_recipe(tmp_path), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "log.jsonl")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    for kind, steps in (("train", [3, 6, 9, 12]), ("validation", [4, 8, 12])):
        own = [row for row in rows if row["kind"] == kind]
        assert [row["step"] for row in own] == steps
        scalars = board.Scalars(f"{kind}/bits_per_byte")
        assert [scalar.step for scalar in scalars] == steps
        assert [scalar.value for scalar in scalars] == pytest.approx(
            [row["bits_per_byte"] for row in own], rel=1e-6
        )
    keys = {
        "kind",
        "step",
        "loss",
        "bits_per_byte",
        "lr",
        "grad_norm",
        "epoch",
        "tokens",
        "tokens_per_s",
        "elapsed",
    }
    assert keys <= rows[0].keys()
    assert rows[0]["tokens"] == 3 * 4 * 16


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
    rows = [{"kind": "train", "step": step, "loss": 1.0} for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tr'
    )
    log = RunLog(tmp_path, 2)
    log({"kind": "train", "step": 3, "loss": 0.5})
    log({"kind": "saved", "step": 3, "path": "x"})
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / "log.jsonl")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 0.5),
    ]
    log.close()


def test_no_log_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "log.jsonl") == []


def told(tmp_path, bar):
    stream = io.StringIO()
    with Console(bar=bar, stream=stream) as console:
        train(tiny_recipe(tmp_path), tmp_path / "run", on_event=console)
    return stream.getvalue()


def test_plain_lines(tmp_path):
    lines = told(tmp_path, bar=None).splitlines()
    assert lines[0].startswith("training tiny on cpu: ")
    assert [line.split(":")[0] for line in lines[1:]] == [
        f"step {step}" for step in (3, 4, 6, 8, 9, 12, 12)
    ]
    assert "bits per byte" in lines[1] and "tokens/s" in lines[1] and "left" in lines[1]
    assert lines[-1].startswith("step 12: validation ")


def test_a_validation_of_a_part_says_which(tmp_path):
    stream = io.StringIO()
    recipe = tiny_recipe(tmp_path, training__eval_tokens=20)
    with Console(bar=None, stream=stream) as console:
        outcome = train(recipe, tmp_path / "run", on_event=console)
    last = read_rows(tmp_path / "run" / "log.jsonl")[-1]
    part = f"the first 20 of {last['split_tokens']:,} tokens"
    assert last["kind"] == "validation" and last["read_tokens"] == 20 < last["split_tokens"]
    assert stream.getvalue().splitlines()[-1].endswith(f" bits per byte ({part})")
    assert (
        f" on {part} of the validation split at step "
        in (outcome.checkpoint / "README.md").read_text()
    )
    # A whole split has no part.
    assert part_of_split({"kind": "validation", "step": 1}) is None


def test_the_bar_on_request(tmp_path):
    text = told(tmp_path, bar=True)
    assert "12/12" in text and "bits per byte" in text and "tokens/s" in text
    assert "step 12: validation" in text


def test_tensorboard_shows_the_recipe_and_compares_runs_by_it(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    recipe = tiny_recipe(tmp_path, training__steps=3)
    train(recipe, tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    (shown,) = board.Tensors("recipe/text_summary")
    text = shown.tensor_proto.string_val[0].decode()
    assert all(
        line.strip() in text for line in (tmp_path / "run" / "recipe.yaml").read_text().splitlines()
    )
    found = board.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(found).hparams
    assert values["optimizer.lr"].number_value == recipe.optimizer.lr
    assert (
        values["schedule.name"].string_value == "cosine"
        and values["optimizer.betas"].string_value == "[0.9, 0.95]"
    )


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
def test_a_run_goes_on_when_nobody_can_read_its_lines(tmp_path, error):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    with Console(stream=Gone()) as console:
        assert (
            train(tiny_recipe(tmp_path, training__steps=3), tmp_path / "run", on_event=console).step
            == 3
        )


def test_several_processes_are_named():
    stream = io.StringIO()
    start = {
        "kind": "start",
        "step": 0,
        "name": "tiny",
        "device": "cpu",
        "parameters": 1,
        "steps": 2,
        "size": 3,
        "unit": "tokens",
    }
    with Console(stream=stream) as console:
        console(start | {"processes": 2})
        console(start | {"processes": 1})
    two, one = stream.getvalue().splitlines()
    assert "on cpu by 2 processes: " in two and "on cpu: " in one


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"5",
        b"{}",
        b"null",
        b"NaN",
        b"[]",
        b'"text"',
        b"\0\0\0",
        b"[" * 100_000,
        b"{" * 100_000,
        b"",
        b'{"kind": "train"}',
        b'{"kind": "train", "step": NaN}',
        b'{"kind": "train", "step": true}',
        b'{"kind": "train", "step": "3"}',
        b'{"kind": "saved", "step": 3}',
        b'{"kind": [], "step": 3}',
        b'{"kind": "train", "step": 3, "loss": [1]}',
        b'{"kind": "train", "step": 3, "loss": null}',
        b'{"kind": "train", "step": -1}',
        b"1" * 5000,
    ],
)
def test_a_strange_line_is_passed_over_and_a_run_goes_on(tmp_path, line):
    rows = [{"kind": "train", "step": step, "loss": 1.0} for step in (1, 2)]
    first, second = (json.dumps(row).encode() for row in rows)
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([first, line, second, line]))
    assert read_rows(tmp_path / "log.jsonl") == rows
    RunLog(tmp_path, 2).close()
    assert (tmp_path / "log.jsonl").read_bytes() == first + b"\n" + second + b"\n"


def test_a_log_that_cannot_be_read(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(UserError, match="log.jsonl cannot be read: Is a directory"):
        read_rows(tmp_path / "log.jsonl")


def test_a_resumed_board_drops_the_steps_that_are_taken_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for last, step in ((4, 0), (6, 2)):
        log = RunLog(tmp_path, step)
        for number in range(step + 1, last + 1):
            log({"kind": "train", "step": number, "loss": float(10 * last + number)})
        log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    seen = [(scalar.step, scalar.value) for scalar in board.Scalars("train/loss")]
    assert seen == [(1, 41.0), (2, 42.0), (3, 63.0), (4, 64.0), (5, 65.0), (6, 66.0)]
