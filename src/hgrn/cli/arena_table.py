"""Make one table of all runs of the Long Range Arena: how often each is right on its test split,
beside the paper's number and what guessing gives."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from hgrn.cli.inference import load_classifier
from hgrn.errors import UserError, pasted
from hgrn.files import reading, whole_file
from hgrn.recipes import shipped
from hgrn.training.manifests import Manifest, find_checkpoint, steps_saved
from hgrn.training.recipe import ArenaRecipe, Recipe, leaves, load_recipe, recipe_from_yaml
from hgrn.training.runlog import read_rows
from hgrn.training.tasks import open_examples
from hgrn.training.tasks.classification import evaluate

NAME = "arena.md"

_HEAD = """\
# Long Range Arena

Accuracy on the whole test split of the newest checkpoint of each run, with Wilson's 95 % interval.
"Paper" is the number that the recipe aims at; it holds for the release's data and the whole
training. Guessing gets the random share by any class, and the majority share by always answering
the most frequent class of this test split.

| task | data | paper | ours | 95 % interval | examples | random | majority | steps | training \
| command | commit |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One run of the arena.

    task: the name of its recipe. data: where its files are. paper: a percentage, None if the recipe
    has none; all other shares are in [0, 1]. steps and of_steps: taken, and planned. seconds: spent
    in steps. command: trains the same again. commit: as the model card says.
    """

    task: str
    data: str
    paper: float | None
    accuracy: float
    interval: tuple[float, float]
    examples: int
    random: float
    majority: float
    steps: int
    of_steps: int
    seconds: float
    command: str
    commit: str


def arena_table(
    folder: Path,
    out: Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Row], list[str]]:
    """Evaluate every run of the arena in or below `folder`, and write the table to `out`.

    Runs of other tasks, and those that have saved nothing yet, are left out. out: `arena.md` in
    `folder` by default. on_progress gets (recipe's name, examples answered, examples in all).

    Returns the rows, and a line for each run that has none because its data cannot be read, or is
    not what it was trained on. Raises UserError if no run can be evaluated, if a checkpoint is
    damaged, and if `out` cannot be written.
    """
    runs = _runs(folder)
    if not runs:
        raise UserError(
            f"{folder} holds no run of task long-range-arena that has saved a checkpoint; train "
            "one with: hgrn train lra/listops"
        )
    rows = []
    absent = []
    for run in runs:
        try:
            rows.append(_evaluated(run, on_progress))
        except _Absent as reason:
            absent.append(f"left out: {run}: {reason}")
    if not rows:
        raise UserError("no run can be evaluated:\n  " + "\n  ".join(absent))
    # Runs of one recipe stand together, whatever their folders are called.
    rows.sort(key=lambda row: (row.task, row.command))

    lines = [_line(row) for row in rows] + [f"\n{line}" for line in absent]
    with whole_file(out or folder / NAME, "give another file") as draft:
        draft.write_text(_HEAD + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return rows, absent


class _Absent(Exception):
    """Why a run has no row."""


def _runs(folder: Path) -> list[Path]:
    """The runs of the arena in or below a folder that have saved a checkpoint."""
    with reading(folder):
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: give one with runs in it")
        # Recipes are not parsed yet: those of other tasks may be unreadable for this version.
        return [
            file.parent
            for file in sorted(folder.rglob("recipe.yaml"))
            if steps_saved(file.parent)
            and b"task: long-range-arena" in file.read_bytes().splitlines()
        ]


def _evaluated(run: Path, on_progress: Callable[[str, int, int], None] | None) -> Row:
    """The row of a run. Raises _Absent if its data is not there."""
    checkpoint = find_checkpoint(run, for_inference=True)
    model, _ = load_classifier(checkpoint)
    recipe = recipe_from_yaml(checkpoint / "recipe.yaml")
    assert isinstance(recipe, ArenaRecipe)
    # A checkpoint knows the data that it was trained on by its fingerprint.
    manifest = Manifest.read(checkpoint)
    try:
        examples = open_examples(recipe, "test")
    except UserError as error:
        raise _Absent(" ".join(str(error).split())) from error
    if examples.fingerprint != manifest.data:
        raise _Absent(f"{recipe.data.path} holds other data than it was trained on")

    def tell(done: int) -> None:
        if on_progress is not None:
            on_progress(recipe.name, done, examples.size)

    result = evaluate(model, examples.batches, tell)
    # A log may go on behind the checkpoint, by steps that were lost.
    times = [
        row.get("elapsed", 0.0)
        for row in read_rows(run / "log.jsonl")
        if row["kind"] == "train" and row["step"] <= manifest.step
    ]
    return Row(
        task=recipe.name,
        data=recipe.data.path,
        paper=None if recipe.target is None else recipe.target.value,
        accuracy=result.accuracy,
        interval=result.interval,
        examples=result.examples,
        random=1 / len(examples.classes),
        majority=int(result.confusion.sum(1).max()) / result.examples,
        steps=manifest.step,
        of_steps=recipe.training.steps,
        seconds=max(times, default=0.0),
        command=command(recipe, run / "recipe.yaml"),
        commit=_commit(checkpoint),
    )


def command(recipe: Recipe, file: Path) -> str:
    """The command that trains `recipe` again.

    It names the shipped recipe of the same name, with what differs as overrides; or `file`, where
    the recipe is saved, if none fits.
    """
    for name in shipped():
        known = load_recipe(name) if name.startswith("lra/") else None
        if known is None or known.name != recipe.name or type(known) is not type(recipe):
            continue
        before, after = (
            leaves(each.model_dump(mode="json", exclude={"target"})) for each in (known, recipe)
        )
        changed = {key: value for key, value in after.items() if value != before.get(key)}
        # No override can take a field away.
        if before.keys() <= after.keys():
            words = {
                f"--{key}": value if isinstance(value, str) else json.dumps(value)
                for key, value in changed.items()
            }
            return pasted("hgrn", "train", name, *chain.from_iterable(words.items()))
    return pasted("hgrn", "train", file)


def _commit(checkpoint: Path) -> str:
    """The commit that the model card names; anyone may have edited or removed the card."""
    card = checkpoint / "README.md"
    with reading(card):
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.search(r"^- code: hgrn at (.+)$", text, re.MULTILINE)
    return found[1] if found else "not recorded"


def _line(row: Row) -> str:
    """A row of the table, in Markdown."""
    low, high = row.interval
    steps = f"{row.steps:,}" if row.steps == row.of_steps else f"{row.steps:,} of {row.of_steps:,}"
    cells = [
        row.task,
        row.data,
        "-" if row.paper is None else f"{row.paper:.2f}%",
        f"{row.accuracy:.2%}",
        f"{low:.2%} to {high:.2%}",
        f"{row.examples:,}",
        f"{row.random:.2%}",
        f"{row.majority:.2%}",
        steps,
        f"{row.seconds:,.0f} s",
        f"`{row.command}`",
        row.commit,
    ]
    # A bar would end the cell.
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
