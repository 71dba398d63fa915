"""Results: one row a measured thing, where and with what it was measured, and CSV files that are whole or absent."""

import csv
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from hgrn.bench.measure import Times
from hgrn.files import reading, whole_file, writing
from hgrn.source import commit

_WITH = ("torch", "numba", "transformers")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured thing; None is a cell that does not apply.

    name: what was done. peer: by what. kind: "kernel" (results written into given memory) or "op" (results allocated).
    median_ms, p10_ms, p90_ms: of `repeats` calls. bytes, flops: the least traffic, the arithmetic of a call. limit_ms:
    the time that the limit named in `note` allows; ratio = limit_ms / median_ms, 1 at the limit. tokens_per_s,
    parameters: of models. memory_mb: the most that was in use above the start, in 10^6 bytes.
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
        cls, times: Times, *, limit_ms: float | None = None, note: str = "", **cells
    ) -> "Row":
        """A row with the times, and with its ratio where it has a limit."""
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

    @property
    def text(self) -> dict[str, str]:
        """The cells as they stand in a CSV file."""
        return {field.name: _cell(getattr(self, field.name)) for field in fields(self)}


def _cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def environment() -> dict[str, str]:
    """Where, with what and when: the cells that all rows of a file share."""
    import torch

    versions = {package: version(package) for package in _WITH}
    return {
        "cpu": _cpu_model(),
        "cores": str(_cores()),
        "threads": str(torch.get_num_threads()),
        **versions,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_csv(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Writes rows of equal columns; whoever reads `path` finds all of the old file or all of the new one.

    Raises UserError if the folder cannot be written.
    """
    rows = list(rows)
    remedy = "give a folder that can be with --out FOLDER"
    with writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, remedy) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none if there is no file."""
    try:
        with reading(path), open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []
