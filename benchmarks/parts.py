"""A benchmark of timings as a list of parts, each of which is measured and written on its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.rows import Cells, Results, Row
from benchmarks.telling import telling
from hgrn.progress import OnProgress

# Rows with other values here come from another machine, and cannot stand beside those of this one.
_MACHINE = ("cpu", "threads")


@dataclass(frozen=True)
class Part:
    """Rows that are compared with each other, so that one loop measures them.

    title: what a person reads meanwhile. owns: whether a row of the file belongs to this part.
    measure: makes the rows; raises UserError if a kernel disagrees with the reference.
    """

    title: str
    owns: Callable[[Row], bool]
    measure: Callable[[OnProgress], Sequence[Row]]


def measure_parts(parts: Sequence[Part], results: Results, again: bool = False) -> list[Row]:
    """Measure the parts that have no rows yet, and write each when it is done; all rows.

    Rows that belong to no part, or come from another machine, are removed first; with `again` all.
    """

    def is_stale(cells: Cells) -> bool:
        row = Row.read(cells)
        moved = any(cells[name] != results.where[name] for name in _MACHINE)
        return again or moved or not any(part.owns(row) for part in parts)

    results.forget(is_stale)
    for part in parts:
        if any(part.owns(Row.read(cells)) for cells in results.rows()):
            print(f"{part.title}: measured before", flush=True)
            continue
        with telling(part.title) as tell:
            rows = part.measure(tell)
        results.add(*(row.text for row in rows))
    return [Row.read(cells) for cells in results.rows()]
