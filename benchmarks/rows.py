"""Rows of results, and the CSV files that hold them: written row by row, whole at any moment."""

import csv
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.machine import environment, now
from hgrn.cli.speed import Times
from hgrn.data.disk import locked
from hgrn.errors import UserError
from hgrn.files import reading, whole_file, writing

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
_REMEDY = "give a folder that can be with --out FOLDER"

Cells = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One timed thing; None is a cell that does not apply.

    name: what was done. peer: by what. kind: "kernel" (results go into given memory) or "op"
    (results are allocated). median_ms, p10_ms, p90_ms: of `repeats` calls. bytes, flops: the least
    traffic and the arithmetic of a call. limit_ms: the time that the limit named in `note` allows;
    ratio = limit_ms / median_ms is 1 at the limit. tokens_per_s, parameters: of models. memory_mb:
    the most that was in use above the start, in 10^6 bytes.
    """

    name: str
    peer: str = "hgrn"
    shape: str = ""
    dtype: str = "float32"
    kind: str = "op"
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    repeats: int | None = None
    bytes: int | None = None
    flops: int | None = None
    limit_ms: float | None = None
    ratio: float | None = None
    tokens_per_s: float | None = None
    parameters: int | None = None
    memory_mb: float | None = None
    note: str = ""

    @classmethod
    def timed(
        cls, times: Times, *, limit_ms: float | None = None, note: str = "", **cells: Any
    ) -> "Row":
        """A row with its times, and with its ratio where it has a limit."""
        notes = [note, "stopped early: its time was used up"] if times.capped else [note]
        return cls(
            median_ms=times.median,
            p10_ms=times.p10,
            p90_ms=times.p90,
            repeats=times.repeats,
            limit_ms=limit_ms,
            ratio=None if limit_ms is None else limit_ms / times.median,
            note="; ".join(filter(None, notes)),
            **cells,
        )

    @classmethod
    def read(cls, cells: Cells) -> "Row":
        """The row that `text` wrote into a CSV file."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            cell = cells[field.name]
            if field.type is str:
                values[field.name] = cell
            # An empty cell is None, the default of every number.
            elif cell:
                values[field.name] = int(cell) if field.type == int | None else float(cell)
        return cls(**values)

    @property
    def text(self) -> Cells:
        """The cells as they stand in a CSV file."""
        return {field.name: _cell(getattr(self, field.name)) for field in fields(self)}


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# The cells that say which row of timings it is.
TIMING_KEY = ("name", "peer", "shape", "dtype", "kind")
TIMING = tuple(field.name for field in fields(Row))


class Results:
    """The rows of one CSV file. Each change is on disk when the call returns.

    Several processes may add to one file: every change reads it anew, under a lock.
    """

    def __init__(
        self,
        path: Path,
        columns: Iterable[str] = TIMING,
        key: Iterable[str] = TIMING_KEY,
        where: Cells | None = None,
    ):
        """columns: all but those of `where`. key: the columns that tell rows apart.

        where: what every added row says of its origin, by default `environment()`.

        Raises UserError if another version has written the file.
        """
        self.path = path
        self.where = environment() if where is None else where
        self.columns = [*columns, *self.where]
        self._key = tuple(key)
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
        # The lock lies elsewhere, because results are under version control.
        self._lock = Path(tempfile.gettempdir()) / f"hgrn-benchmarks-{name}.lock"
        found = self.rows()
        if found and list(found[0]) != self.columns:
            raise UserError(
                f"{path} has other columns than this version writes; "
                "move it away, or give another folder with --out"
            )

    def rows(self) -> list[Cells]:
        """All rows as they are in the file now."""
        return read_csv(self.path)

    def has(self, **cells: str) -> bool:
        """Whether a row has these cells."""
        return any(cells.items() <= row.items() for row in self.rows())

    def add(self, *rows: Cells) -> None:
        """Write new rows; a row with an old one's key takes the old one's place at the end."""
        fresh = [row | self.where | {"date": now()} for row in rows]
        keys = {self._key_of(row) for row in fresh}
        # The file is read inside the lock: another process may have added rows since.
        with locked(self._lock):
            kept = [row for row in self.rows() if self._key_of(row) not in keys]
            write_csv(self.path, self.columns, kept + fresh)

    def forget(self, is_stale: Callable[[Cells], bool]) -> int:
        """Remove the rows of which `is_stale` holds; how many there were."""
        with locked(self._lock):
            rows = self.rows()
            kept = [row for row in rows if not is_stale(row)]
            if len(kept) < len(rows):
                write_csv(self.path, self.columns, kept)
        return len(rows) - len(kept)

    def _key_of(self, row: Cells) -> tuple[str, ...]:
        return tuple(row[name] for name in self._key)


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Cells]) -> None:
    """Write a file of which others see all of the old one or all of the new one.

    Raises UserError if the folder cannot be written.
    """
    with writing(path, _REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, _REMEDY) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Cells]:
    """The rows of a file; none if there is no file."""
    try:
        with reading(path, _REMEDY), open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []
