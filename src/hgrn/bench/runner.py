"""Runs benchmarks by name: measures, prints a table, writes the CSV file and draws."""

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from hgrn.bench import decoding, lengths, limits, plots, quality, scans, start, training
from hgrn.bench.results import Row, environment, write_csv
from hgrn.errors import UserError

_MEASURED = {
    "limits": limits.measure,
    "scan": scans.measure,
    "train": training.measure,
    "decode": decoding.measure,
    "length": lengths.measure,
    "start": start.measure,
}
NAMES = (*_MEASURED, "quality")
_WIDTH = 180  # characters of a table that is not printed on a terminal


def run(names: Sequence[str], out: Path, pictures: Path, *, quick: bool = False) -> None:
    """Runs the named benchmarks (none named: all but `quality`, which takes about two hours) and tells standard output.

    out gets `<name>.csv`, pictures the plots. quick takes small shapes and few repeats: to see that everything works,
    not to quote. Raises UserError for an unknown name, a kernel that disagrees with the reference, or a folder that
    cannot be written.
    """
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            raise UserError(
                f"no benchmark is called {name!r}; {f'did you mean {near[0]}?' if near else 'choose from '}"
                f"{'' if near else ', '.join(NAMES)}"
            )
    where = environment()
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    console.print(
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads; torch {where['torch']}, "
        f"numba {where['numba']}, transformers {where['transformers']}; commit {where['commit']}",
        highlight=False,
        soft_wrap=True,
    )
    written = []
    with Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bars:

        def tell(title: str) -> Callable[[int, int], None]:
            task = bars.add_task(title, total=None)

            def update(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total, visible=done < total)

            return update

        for name in dict.fromkeys(names or _MEASURED):
            path = out / f"{name}.csv"
            if name == "quality":
                rows = quality.run(path, where, tell, quality.QUICK if quick else quality.FULL)
                console.print(_quality_table(rows))
            else:
                measured = _MEASURED[name](quick, tell)
                rows = [row.text | where for row in measured]
                console.print(_table(name, measured))
                write_csv(path, rows)
            written += [path, *plots.draw(name, rows, pictures)]
    console.print("written: " + ", ".join(map(str, written)), highlight=False, soft_wrap=True)


def _table(title: str, rows: list[Row]) -> Table:
    """What a person wants to see of the rows, without the columns that are empty."""
    columns = {
        "what": [row.name for row in rows],
        "by": [row.peer for row in rows],
        "shape": [escape(row.shape) for row in rows],
        "how": [f"{row.dtype} {row.kind}" for row in rows],
        "ms": [_number(row.median_ms, ".4g") for row in rows],
        "10 to 90 %": [
            (row.median_ms and f"{row.p10_ms:.3g} to {row.p90_ms:.3g}") or "" for row in rows
        ],
        "limit / time": [_number(row.ratio, ".2f") for row in rows],
        "tokens/s": [_number(row.tokens_per_s, ",.0f") for row in rows],
        "parameters": [_number(row.parameters, ",") for row in rows],
        "MB": [_number(row.memory_mb, ",.4g") for row in rows],
        "note": [escape(row.note) for row in rows],
    }
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    table = Table(title=title, title_justify="left")
    for heading in columns:
        words = heading in ("what", "by", "shape", "how", "note")
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    for cells in zip(*columns.values()):
        table.add_row(*cells)
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _quality_table(rows: list[dict[str, str]]) -> Table:
    """The last reading of every run."""
    table = Table(title="quality", title_justify="left")
    for heading in (
        "model",
        "run",
        "learning rate",
        "seconds",
        "steps",
        "tokens",
        "parameters",
        "split",
        "bits per byte",
    ):
        table.add_column(
            heading, justify="right" if heading not in ("model", "run", "split") else "left"
        )
    last = {(row["model"], row["run"], row["lr"]): row for row in rows}
    for row in last.values():
        table.add_row(
            *(
                row[key]
                for key in (
                    "model",
                    "run",
                    "lr",
                    "seconds",
                    "steps",
                    "tokens",
                    "parameters",
                    "split",
                    "bits_per_byte",
                )
            )
        )
    return table
