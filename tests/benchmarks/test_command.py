"""`hgrn bench` from the command line, at small sizes."""

import pytest

from hgrn import memory
from hgrn.bench import scans
from hgrn.bench.results import read_csv
from hgrn.cli import main


@pytest.fixture(autouse=True)
def ordinary_memory(monkeypatch):
    """The command's setting of the allocator would stay for all later tests."""
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: True)


def test_limits_and_scan(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scans, "QUICK_SHAPES", {"base": (2, 16, 32), "long": (1, 64, 16)})
    monkeypatch.setattr(scans, "QUICK_PEER_SHAPE", (1, 16, 16))
    assert main(["bench", "limits", "scan", "--quick", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "freed memory is kept" in printed and str(
        tmp_path / "out" / "scan.csv"
    ) in printed.replace("\n", "")
    rows = read_csv(tmp_path / "out" / "scan.csv")
    assert {
        "name",
        "peer",
        "shape",
        "dtype",
        "kind",
        "median_ms",
        "p10_ms",
        "p90_ms",
        "ratio",
        "commit",
        "date",
    } <= set(rows[0])
    ours = [row for row in rows if row["ratio"]]
    assert len(ours) == 2 * len(scans.CASES) * 2 and {row["kind"] for row in ours} == {
        "kernel",
        "op",
    }
    assert all(
        float(row["p10_ms"]) <= float(row["median_ms"]) <= float(row["p90_ms"]) for row in ours
    )
    peers = [row for row in rows if row["shape"].startswith("peers")]
    assert {"hgrn hgru_scan", "hgrn gated_scan", "PyTorch loop", "JAX lax.scan"} <= {
        row["peer"] for row in peers
    }
    assert all(row["median_ms"] or row["note"] == "not installed" for row in peers)
    assert {row["name"] for row in read_csv(tmp_path / "out" / "limits.csv")} >= {"matrix product"}
    assert (tmp_path / "out" / "bench_scan_limits.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "decode", "length", "start", "quality"])
def test_the_others(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plots = tmp_path / "plots"
    assert main(["bench", name, "--quick", "--out", str(tmp_path), "--plots", str(plots)]) == 0
    assert read_csv(tmp_path / f"{name}.csv") and (
        name == "start" or list(plots.glob("bench_*.png"))
    )


def test_an_unknown_name_is_refused(capsys):
    assert main(["bench", "scans"]) == 2
    assert "did you mean scan?" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["bench", "limits", "--quick", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err
