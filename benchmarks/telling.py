"""What a person sees of a run: what is being measured now, and at the end a table."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.rows import Cells, Row
from hgrn.progress import Bar, OnProgress

_WIDTH = 180  # characters of a table that is not printed on a terminal
_WORDS = ("what", "by", "shape", "how", "note", "model", "run", "split")


@contextmanager
def telling(title: str) -> Iterator[OnProgress]:
    """Say what is measured inside: with a bar on a terminal, on a line of its own elsewhere."""
    with Bar(title) as bar:
        if bar.is_shown:
            # What runs first may take long, so the title does not wait for its end.
            bar(0)
        else:
            print(f"measuring {title}", file=sys.stderr, flush=True)
        yield bar


def show_origin(where: Cells) -> None:
    """Print the machine and the versions that all numbers below belong to."""
    print(
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads; "
        f"torch {where['torch']}, numba {where['numba']}, transformers {where['transformers']}; "
        f"commit {where['commit']}",
        flush=True,
    )


def show_rows(title: str, rows: Sequence[Row]) -> None:
    """Print what a person wants to see of timings."""
    show(
        title,
        {
            "what": [row.name for row in rows],
            "by": [row.peer for row in rows],
            "shape": [row.shape for row in rows],
            "how": [f"{row.dtype} {row.kind}" for row in rows],
            "ms": [_number(row.median_ms, ".4g") for row in rows],
            "10 to 90 %": [_range(row) for row in rows],
            "limit / time": [_number(row.ratio, ".2f") for row in rows],
            "tokens/s": [_number(row.tokens_per_s, ",.0f") for row in rows],
            "parameters": [_number(row.parameters, ",") for row in rows],
            "MB": [_number(row.memory_mb, ",.4g") for row in rows],
            "note": [row.note for row in rows],
        },
    )


def show(title: str, columns: Mapping[str, Sequence[str]]) -> None:
    """Print a table of these columns, without those that are empty."""
    table = Table(title=title, title_justify="left")
    filled = {heading: cells for heading, cells in columns.items() if any(cells)}
    for heading in filled:
        justify = "left" if heading in _WORDS else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    for cells in zip(*filled.values()):
        table.add_row(*map(escape, cells))
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    console.print(table)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _range(row: Row) -> str:
    if row.p10_ms is None:
        return ""
    return f"{row.p10_ms:.3g} to {row.p90_ms:.3g}"
