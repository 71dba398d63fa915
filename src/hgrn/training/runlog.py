"""Where a run tells how it goes: rows in a file, TensorBoard, and the terminal.

The loop emits events, plain dictionaries with `kind` and `step`: "data" (being prepared), "passed over" and
"resumed", "start", "finished" (nothing is left to do), "train", "validation", "saved", "interrupted". `RunLog` keeps
the rows of training and validation, `Console` shows what a person wants to see.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from hgrn.errors import pasted
from hgrn.training.recipe import leaves, recipe_to_yaml
from hgrn.training.specs import Recipe

ROWS = ("train", "validation")
# What TensorBoard shows beside the settings of runs.
_COMPARED = ("train/loss", "validation/bits_per_byte", "validation/accuracy")


class RunLog:
    """`log.jsonl`, one row a line as soon as it is known, and the same numbers for TensorBoard."""

    def __init__(self, run: Path, step: int, recipe: Recipe | None = None):
        """Go on after `step`: rows of later steps, which a killed run has left, are dropped. TensorBoard shows the recipe too."""
        from torch.utils.tensorboard import SummaryWriter

        path = run / "log.jsonl"
        kept = [row for row in read_rows(path) if row["step"] <= step]
        draft = path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(draft, path)
        self._rows = path.open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(run / "tensorboard", purge_step=step + 1 if step else None)
        if recipe is not None:
            self._show(recipe, step)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] not in ROWS:
            return
        self._rows.write(json.dumps(event) + "\n")
        for name, value in event.items():
            if name not in ("kind", "step"):
                self._board.add_scalar(f"{event['kind']}/{name}", value, event["step"])

    def _show(self, recipe: Recipe, step: int) -> None:
        """The recipe as a text, and as hyperparameters by which TensorBoard sorts and filters runs."""
        from torch.utils.tensorboard.summary import hparams

        lines = recipe_to_yaml(recipe).splitlines()
        self._board.add_text("recipe", "\n".join(f"    {line}" for line in lines), step)  # four spaces: code in Markdown
        settings = leaves(recipe.model_dump(mode="json"))
        plain = {key: value if isinstance(value, bool | int | float | str) else json.dumps(value) for key, value in settings.items()}
        definition, values, _ = hparams(plain, dict.fromkeys(_COMPARED, 0.0))
        self._board.file_writer.add_summary(definition)
        self._board.file_writer.add_summary(values)

    def close(self) -> None:
        self._rows.close()
        self._board.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl, up to a line that a kill or a power cut has spoiled; none without a file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Console:
    """Shows events to a person: a progress bar on a terminal, else a line for each. A context manager.

    bar: None chooses the bar if `stream` (standard output) is a terminal.
    """

    def __init__(self, bar: bool | None = None, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._bar = self._stream.isatty() if bar is None else bar
        self._is_gone = False

    def __enter__(self) -> "Console":
        if self._bar:
            from rich import console, progress

            self._progress = progress.Progress(
                progress.TextColumn("step"),
                progress.MofNCompleteColumn(),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[numbers]}"),
                progress.TimeRemainingColumn(),
                console=console.Console(file=self._stream, highlight=False),
                refresh_per_second=4,
            )
            self._task = None
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if self._bar and event["kind"] == "start":
            total, done = event["steps"], event["step"]
            self._task = self._progress.add_task("", total=total, completed=done, numbers="")
        if self._bar and event["kind"] == "train":
            self._progress.update(self._task, completed=event["step"], numbers=_numbers(event))
        elif line := self._line(event):
            self._say(line)

    def _say(self, line: str) -> None:
        try:
            if self._bar:
                self._progress.console.print(line, markup=False, soft_wrap=True)
            elif not self._is_gone:
                print(line, file=self._stream, flush=True)
        except OSError:  # nobody reads any more, as with `| head`, or a disk is full: no reason to end a run
            self._is_gone = True

    def _line(self, event: dict[str, Any]) -> str | None:
        match event["kind"]:
            case "start":
                shared = f" by {event['processes']} processes" if event["processes"] > 1 else ""
                return (
                    f"training {event['name']} on {event['device']}{shared}: {event['parameters']:,} parameters, "
                    f"{event['steps']:,} steps, {event['size']:,} {event['unit']} to learn from"
                )
            case "finished" if event["can_be_longer"]:
                return f"all {event['step']:,} steps are taken already; with more training.steps the run goes on"
            case "finished":
                return (
                    f"all {event['step']:,} steps are taken already; its cosine ends here, so train on in a new run that starts from "
                    f"these weights: {pasted('--model.weights', Path(event['path']))}"
                )
            case "passed over":
                return f"passed over {event['path']}: {event['reason']}"
            case "resumed":
                return f"resumed at step {event['step']} from {event['path']}"
            case "train":
                return f"step {event['step']}: {_numbers(event)}, {_duration(event['time_left'])} left"
            case "validation":
                return f"step {event['step']}: validation {_measured(event)}"
            case "interrupted":
                return f"stopped at step {event['step']}; saved as {event['path']}"
        return None


def _numbers(event: dict[str, Any]) -> str:
    """Loss, figures and speed of a training row."""
    (speed,) = [f"{value:,.0f} {name.removesuffix('_per_s')}/s" for name, value in event.items() if name.endswith("_per_s")]
    return ", ".join(filter(None, [f"loss {event['loss']:.4f}", _measured(event), speed]))


def _measured(event: dict[str, Any]) -> str:
    """The metrics of a row, as people say them."""
    said = {"bits_per_byte": "{:.4f} bits per byte", "accuracy": "accuracy {:.2%}"}
    return ", ".join(form.format(event[name]) for name, form in said.items() if name in event)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
