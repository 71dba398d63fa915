"""Where a run tells how it goes: rows in a file, TensorBoard, and the terminal.

The loop emits events, plain dictionaries with `kind` and `step`. The kinds are "data" (it is being
prepared), "passed over" and "resumed", "start", "finished" (nothing is left to do), "train",
"validation", "saved" and "interrupted". `RunLog` keeps the rows of training and validation;
`Console` shows what a person wants to see.
"""

import io
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from hgrn.errors import pasted
from hgrn.files import reading, whole_file, writing
from hgrn.progress import Bar
from hgrn.training.recipe import Recipe, leaves, recipe_to_yaml

ROWS = ("train", "validation")
# They say how a row was measured, and make no curves.
_NO_CURVES = ("kind", "step", "read_tokens", "split_tokens")
# What TensorBoard shows beside the settings of runs.
_COMPARED = ("train/loss", "validation/bits_per_byte", "validation/accuracy")
_REMEDY = "make room or mend it, and go on with --resume: the checkpoints are whole"


class RunLog:
    """`log.jsonl`, one row a line as soon as it is known, and the same numbers for TensorBoard."""

    def __init__(self, run: Path, step: int, recipe: Recipe | None = None):
        """Go on after `step`: rows of later steps, which a killed run has left, are dropped.

        TensorBoard shows the recipe too. Raises UserError, here and for each row, if the files
        cannot be written.
        """
        self._path = run / "log.jsonl"
        # The rows are written again whole, because a kill may have cut the last one.
        kept = [row for row in read_rows(self._path) if row["step"] <= step]
        with whole_file(self._path) as draft:
            draft.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        with writing(self._path, _REMEDY):
            self._rows = _Appended(self._path, "ab")
        self._board = EventFile(run / "tensorboard", purge_step=step + 1 if step else None)
        if recipe is not None:
            self._show(recipe, step)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] not in ROWS:
            return
        with writing(self._path, _REMEDY):
            self._rows.write(json.dumps(event).encode() + b"\n")
        kind = event["kind"]
        step = event["step"]
        scalars = {f"{kind}/{name}": event[name] for name in event if name not in _NO_CURVES}
        self._board.add(scalars, step)

    def _show(self, recipe: Recipe, step: int) -> None:
        """Write the recipe as a text, and as hyperparameters by which TensorBoard sorts runs."""
        from torch.utils.tensorboard.summary import hparams, text

        lines = recipe_to_yaml(recipe).splitlines()
        # Four spaces make code in Markdown.
        shown = "\n".join(f"    {line}" for line in lines)
        self._board.add_summary(text("recipe", shown), step)
        # TensorBoard takes numbers and texts only.
        settings = leaves(recipe.model_dump(mode="json"))
        plain = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in settings.items()
        }
        definition, values, _ = hparams(plain, dict.fromkeys(_COMPARED, 0.0))
        self._board.add_summary(definition)
        self._board.add_summary(values)

    def close(self) -> None:
        self._rows.close()
        self._board.close()


class EventFile:
    """The scalars of a run in TensorBoard's own format.

    torch's SummaryWriter writes in a thread, where an error of the disk is a traceback that reaches
    nobody. This class writes at once.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        """purge_step: TensorBoard drops rows from this step on in older files of the folder,
        because these steps are taken again."""
        from tensorboard.compat.proto.event_pb2 import (
            SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
        )

        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        with writing(folder, _REMEDY):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = _Appended(self._path, "ab")
        self._write(file_version="brain.Event:2", step=purge_step or 0)
        if purge_step is not None:
            self._write(session_log=SessionLog(status=SessionLog.START), step=purge_step)

    def add(self, scalars: dict[str, float], step: int) -> None:
        """Write numbers of a step by their tags. Raises UserError if they cannot be written."""
        from tensorboard.compat.proto.summary_pb2 import (
            Summary,  # pyright: ignore[reportAttributeAccessIssue]
        )

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self.add_summary(Summary(value=values), step)

    def add_summary(self, summary: Any, step: int = 0) -> None:
        """Write a `Summary` of TensorBoard. Raises UserError if it cannot be written."""
        self._write(summary=summary, step=step)

    def close(self) -> None:
        self._file.close()

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import (
            Event,  # pyright: ignore[reportAttributeAccessIssue]
        )
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = Event(wall_time=time.time(), **event).SerializeToString()
        with writing(self._path, _REMEDY):
            RecordWriter(self._file).write(record)


class _Appended(io.FileIO):
    """A file without a buffer: what is written is with the system, or an OSError says that it is
    not."""

    def write(self, data: bytes) -> int:
        """Write all of `data`; the system may take it in pieces."""
        left = memoryview(data)
        while left:
            left = left[super().write(left) :]
        return len(data)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl, none without a file; lines that `RunLog` did not write are skipped.

    A kill or a power cut may have spoiled the last line, and an editor any line. Raises UserError
    if the file cannot be read.
    """
    try:
        with reading(path):
            lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [row for line in lines if (row := _row(line)) is not None]


def part_of_split(row: Mapping[str, Any]) -> str | None:
    """Which part of the split a validation has read, in words; None if all of it."""
    if "read_tokens" not in row:
        return None
    return f"the first {row['read_tokens']:,} of {row['split_tokens']:,} tokens"


def _row(line: bytes) -> dict[str, Any] | None:
    """The row in a line if `RunLog` wrote it: a kind, a step, and numbers by their names."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.get("kind") not in ROWS:
        return None
    if type(row.get("step")) is not int or row["step"] < 0:
        return None
    numbers = [value for name, value in row.items() if name not in ("kind", "step")]
    return row if all(type(value) in (int, float) for value in numbers) else None


class Console:
    """Shows events to a person: a progress bar on a terminal, else a line for each. A context
    manager.

    bar: None chooses the bar if `stream` (standard output) is a terminal.
    """

    def __init__(self, bar: bool | None = None, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._bar = Bar("step", self._stream, keep=True, shown=bar)
        self._steps = 0
        self._is_gone = False

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.__exit__(*exception)

    def __call__(self, event: dict[str, Any]) -> None:
        if self._bar.is_shown and event["kind"] == "start":
            self._steps = event["steps"]
            self._bar(event["step"], self._steps)
        if self._bar.is_shown and event["kind"] == "train":
            self._bar(event["step"], self._steps, _numbers(event))
        elif line := self._line(event):
            self._say(line)

    def _say(self, line: str) -> None:
        try:
            if self._bar.is_shown:
                self._bar.print(line)
            elif not self._is_gone:
                print(line, file=self._stream, flush=True)
        except OSError:
            # Nobody reads any more, as with `| head`, or a disk is full. The run goes on.
            self._is_gone = True

    def _line(self, event: dict[str, Any]) -> str | None:
        """What a person reads of an event; None for an event that only other listeners need."""
        match event["kind"]:
            case "start":
                shared = f" by {event['processes']} processes" if event["processes"] > 1 else ""
                return (
                    f"training {event['name']} on {event['device']}{shared}: "
                    f"{event['parameters']:,} parameters, {event['steps']:,} steps, "
                    f"{event['size']:,} {event['unit']} to learn from"
                )
            case "finished" if event["can_be_longer"]:
                return (
                    f"all {event['step']:,} steps are taken already; with more training.steps the "
                    "run goes on"
                )
            case "finished":
                start = pasted("--model.weights", Path(event["path"]))
                return (
                    f"all {event['step']:,} steps are taken already; its cosine ends here, so "
                    f"train on in a new run that starts from these weights: {start}"
                )
            case "passed over":
                return f"passed over {event['path']}: {event['reason']}"
            case "resumed":
                return f"resumed at step {event['step']} from {event['path']}"
            case "train":
                return (
                    f"step {event['step']}: {_numbers(event)}, {_duration(event['time_left'])} left"
                )
            case "validation":
                part = part_of_split(event)
                told = f"validation {_measured(event)}" + (f" ({part})" if part else "")
                return f"step {event['step']}: {told}"
            case "interrupted":
                return f"stopped at step {event['step']}; saved as {event['path']}"
        return None


def _numbers(event: dict[str, Any]) -> str:
    """The loss, metrics and speed of a training row."""
    (speed,) = [
        f"{value:,.0f} {name.removesuffix('_per_s')}/s"
        for name, value in event.items()
        if name.endswith("_per_s")
    ]
    return ", ".join(filter(None, [f"loss {event['loss']:.4f}", _measured(event), speed]))


def _measured(event: dict[str, Any]) -> str:
    """The metrics of a row in words."""
    said = {"bits_per_byte": "{:.4f} bits per byte", "accuracy": "accuracy {:.2%}"}
    return ", ".join(form.format(event[name]) for name, form in said.items() if name in event)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
