"""Rows and files: every column is there, and each change leaves a whole file."""

import os

import pytest

from benchmarks.machine import ENVIRONMENT
from benchmarks.parts import Part, measure_parts
from benchmarks.rows import TIMING, TIMING_KEY, Results, Row, read_csv, write_csv
from hgrn.cli.speed import Times
from hgrn.errors import UserError

COLUMNS = [
    *("name", "peer", "shape", "dtype", "kind", "median_ms", "p10_ms", "p90_ms", "repeats"),
    *("bytes", "flops", "limit_ms", "ratio", "tokens_per_s", "parameters", "memory_mb", "note"),
    *("cpu", "cores", "threads", "torch", "numba", "transformers", "commit", "date"),
]


def test_the_columns_are_those_of_the_published_files():
    assert [*TIMING, *ENVIRONMENT] == COLUMNS and set(TIMING_KEY) < set(TIMING)


def test_a_row_comes_back_from_the_file(tmp_path):
    row = Row.timed(
        Times(2.0, 1.5, 3.0, 7),
        limit_ms=1.0,
        name="scan, real",
        shape="[8, 2]",
        bytes=96,
        note='says "x"',
    )
    results = Results(tmp_path / "new" / "a.csv")
    results.add(row.text)
    (read,) = read_csv(tmp_path / "new" / "a.csv")
    assert list(read) == COLUMNS and Row.read(read) == row
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
    write_csv(path, ["a"], [{"a": "1"}])

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="no space left.*--out"):
        write_csv(path, ["a"], [{"a": "2"}])
    assert read_csv(path) == [{"a": "1"}]
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_file_that_is_not_there_has_no_rows(tmp_path):
    assert read_csv(tmp_path / "a.csv") == []


def named(name, median=1.0):
    return Row(name=name, median_ms=median).text


def test_a_row_replaces_the_one_with_its_key(tmp_path):
    results = Results(tmp_path / "a.csv")
    results.add(named("x"), named("y"))
    results.add(named("x", 2.0))
    assert [(row["name"], row["median_ms"]) for row in results.rows()] == [("y", "1"), ("x", "2")]
    assert results.has(name="x", median_ms="2") and not results.has(name="x", median_ms="1")
    assert results.forget(lambda row: row["name"] == "y") == 1 and len(results.rows()) == 1


def test_two_processes_may_add_to_one_file(tmp_path):
    first, second = (Results(tmp_path / "a.csv") for _ in range(2))
    first.add(named("x"))
    second.add(named("y"))
    assert [row["name"] for row in first.rows()] == ["x", "y"]


def test_a_file_with_other_columns_is_refused(tmp_path):
    write_csv(tmp_path / "a.csv", ["name"], [{"name": "x"}])
    with pytest.raises(UserError, match="other columns.*--out"):
        Results(tmp_path / "a.csv")


def part(name, measured):
    def measure(tell):
        measured.append(name)
        return [Row(name=name, median_ms=1.0)]

    return Part(name, lambda row: row.name == name, measure)


def test_parts_are_written_as_they_come_and_a_stopped_run_goes_on(tmp_path):
    results = Results(tmp_path / "a.csv")
    measured = []

    def stop(tell):
        raise KeyboardInterrupt

    stopped = Part("second", lambda row: row.name == "second", stop)
    with pytest.raises(KeyboardInterrupt):
        measure_parts([part("first", measured), stopped], results)
    assert [row["name"] for row in results.rows()] == ["first"]
    parts = [part(name, measured) for name in ("first", "second")]
    assert [row.name for row in measure_parts(parts, results)] == ["first", "second"]
    assert measured == ["first", "second"]
    measure_parts(parts, results, again=True)
    assert measured == ["first", "second"] * 2


def test_rows_of_another_machine_or_of_no_part_are_measured_anew(tmp_path):
    elsewhere = Results(tmp_path / "a.csv")
    elsewhere.where = elsewhere.where | {"cpu": "another"}
    elsewhere.add(named("first"))
    results = Results(tmp_path / "a.csv")
    results.add(named("old"))
    measured = []
    assert len(measure_parts([part("first", measured)], results)) == len(measured) == 1
