"""Rows and files: every column is there, and a file is the old one or the new one."""

import os

import pytest

from hgrn.bench.measure import Times
from hgrn.bench.results import Row, environment, read_csv, write_csv
from hgrn.errors import UserError

COLUMNS = [
    "name",
    "peer",
    "shape",
    "dtype",
    "kind",
    "median_ms",
    "p10_ms",
    "p90_ms",
    "repeats",
    "bytes",
    "flops",
    "limit_ms",
    "ratio",
    "tokens_per_s",
    "parameters",
    "memory_mb",
    "note",
    "cpu",
    "cores",
    "threads",
    "torch",
    "numba",
    "transformers",
    "commit",
    "date",
]


def test_a_row_comes_back_from_the_file(tmp_path):
    row = Row.timed(
        Times(2.0, 1.5, 3.0, 7),
        limit_ms=1.0,
        name="scan, real",
        shape="[8, 2]",
        bytes=96,
        note='says "x"',
    )
    write_csv(tmp_path / "new" / "a.csv", [row.text | environment()])
    (read,) = read_csv(tmp_path / "new" / "a.csv")
    assert list(read) == COLUMNS
    assert read["name"] == "scan, real" and read["note"] == 'says "x"' and read["shape"] == "[8, 2]"
    assert (float(read["median_ms"]), float(read["ratio"]), read["repeats"], read["bytes"]) == (
        2.0,
        0.5,
        "7",
        "96",
    )
    assert (
        read["tokens_per_s"] == ""
        and read["cpu"]
        and int(read["cores"]) >= 1
        and read["date"].endswith("+00:00")
    )


def test_a_row_whose_time_was_used_up_says_so():
    assert "stopped early" in Row.timed(Times(1, 1, 1, 1, capped=True), name="x").note


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    write_csv(path, [{"a": "1"}])

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="no space left.*--out"):
        write_csv(path, [{"a": "2"}])
    assert read_csv(path) == [{"a": "1"}]
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_file_that_is_not_there_has_no_rows(tmp_path):
    assert read_csv(tmp_path / "a.csv") == []
