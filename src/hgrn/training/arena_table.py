"""A table of runs of the Long Range Arena: how often each is right on its test split, the paper's number, what guessing gives."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from hgrn import recipes
from hgrn.errors import UserError, pasted
from hgrn.files import reading, whole_file
from hgrn.training.manifests import Manifest, steps_saved
from hgrn.training.recipe import ArenaRecipe, Recipe, leaves, load_recipe, recipe_from_yaml
from hgrn.training.runlog import read_rows
from hgrn.training.tasks import open_examples
from hgrn.training.tasks.classification import Examples, evaluate

NAME = "arena.md"
Load = Callable[[Path], tuple[Any, Any, Path]]
Tell = Callable[[str, int, int], None]

_TEXT = """\
# Long Range Arena

Accuracy on the whole test split of the newest checkpoint of each run, with Wilson's 95 % interval. "Paper" is the
number that the recipe aims at, and holds for the release's data and the whole training. Guessing: one class in so many (random),
or always the most frequent one of this test split (majority).

| task | data | paper | ours | 95 % interval | examples | random | majority | steps | training | command | commit |
|---|---|---|---|---|---|---|---|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Row:
    """One run. task: the name of its recipe. data: where its files are. Shares are in [0, 1], but `paper` is a percentage; None if
    the recipe has none.

    steps, of_steps: taken, and planned. seconds: spent in steps. command: trains the same again. commit: as the model card says.
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
    folder: Path | str, load: Load, out: Path | str | None = None, on_progress: Tell | None = None
) -> tuple[list[Row], list[str]]:
    """Evaluate every run of a task of the arena in or below `folder`, and write the table to `out` (default: `arena.md` there).

    Runs of other tasks, and those that have saved nothing yet, are left out. load: `hgrn.inference.load_classifier`. on_progress
    gets (recipe's name, examples answered, examples in all). Returns the rows, and a line for each run that has none because its data
    cannot be read, or is other data than it was trained on. Raises UserError if no run can be evaluated, a checkpoint is damaged, or
    `out` cannot be written.
    """
    folder = Path(folder)
    runs = _runs(folder)
    if not runs:
        raise UserError(
            f"{folder} holds no run of task long-range-arena that has saved a checkpoint; train one with: hgrn train lra/listops"
        )
    rows = []
    absent = []
    for run in runs:
        model, _, checkpoint = load(run)
        recipe = recipe_from_yaml(checkpoint / "recipe.yaml")
        assert isinstance(recipe, ArenaRecipe)
        try:
            examples = open_examples(recipe, "test")
        except UserError as error:
            absent.append(f"left out: {run}: {' '.join(str(error).split())}")
            continue
        if examples.fingerprint != Manifest.read(checkpoint).data:
            absent.append(
                f"left out: {run}: {recipe.data.path} holds other data than it was trained on"
            )
            continue
        rows.append(_row(run, recipe, model, examples, checkpoint, on_progress))
    if not rows:
        raise UserError("no run can be evaluated:\n  " + "\n  ".join(absent))
    rows.sort(key=lambda row: (row.task, row.command))
    file = Path(out) if out is not None else folder / NAME
    text = _TEXT.format(rows="\n".join(map(_line, rows))) + "".join(
        f"\n{line}\n" for line in absent
    )
    with whole_file(file, "give another file") as draft:
        draft.write_text(text, encoding="utf-8")
    return rows, absent


def command(recipe: Recipe, file: Path) -> str:
    """What trains `recipe` again: the shipped one of its name with the overrides that it has, or else `file`, where it is saved."""
    for name in recipes.shipped():
        shipped = load_recipe(name) if name.startswith("lra/") else None
        if shipped is None or shipped.name != recipe.name or type(shipped) is not type(recipe):
            continue
        before, after = (
            leaves(each.model_dump(mode="json", exclude={"target"})) for each in (shipped, recipe)
        )
        changed = {key: value for key, value in after.items() if value != before.get(key)}
        if before.keys() <= after.keys():
            words = {
                key: value if isinstance(value, str) else json.dumps(value)
                for key, value in changed.items()
            }
            return pasted(
                "hgrn",
                "train",
                name,
                *chain.from_iterable((f"--{key}", word) for key, word in words.items()),
            )
    return pasted("hgrn", "train", file)


def _runs(folder: Path) -> list[Path]:
    """The run folders in or below a folder; of recipes that this version cannot read, the arena's alone are an error."""
    with reading(folder):
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: give one with runs in it")
        return [
            file.parent
            for file in sorted(folder.rglob("recipe.yaml"))
            if steps_saved(file.parent)
            and b"task: long-range-arena" in file.read_bytes().splitlines()
        ]


def _row(
    run: Path,
    recipe: ArenaRecipe,
    model: Any,
    examples: Examples,
    checkpoint: Path,
    on_progress: Tell | None,
) -> Row:
    def tell(done: int) -> None:
        if on_progress is not None:
            on_progress(recipe.name, done, examples.size)

    result = evaluate(model, examples.batches, tell)
    step = Manifest.read(checkpoint).step
    rows = read_rows(run / "log.jsonl")
    times = [
        row.get("elapsed", 0.0) for row in rows if row["kind"] == "train" and row["step"] <= step
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
        steps=step,
        of_steps=recipe.training.steps,
        seconds=max(times, default=0.0),
        command=command(recipe, run / "recipe.yaml"),
        commit=_commit(checkpoint),
    )


def _commit(checkpoint: Path) -> str:
    card = checkpoint / "README.md"  # anyone may have edited or removed it
    with reading(card):
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.search(r"^- code: hgrn at (.+)$", text, re.MULTILINE)
    return found[1] if found else "not recorded"


def _line(row: Row) -> str:
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
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
