"""`python -m benchmarks` and its command `cpu`, at small sizes."""

import pytest

from benchmarks.__main__ import COMMANDS, main
from benchmarks.cpu import command, scans
from benchmarks.rows import read_csv


@pytest.fixture(autouse=True)
def ordinary_memory(monkeypatch):
    """The command's setting of the allocator would stay for all later tests."""
    monkeypatch.setattr(command, "keep_freed_memory", lambda: True)


def test_limits_and_scan(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scans, "QUICK_SHAPES", {"base": (2, 16, 32), "long": (1, 64, 16)})
    monkeypatch.setattr(scans, "QUICK_PEER_SHAPE", (1, 16, 16))
    assert main(["cpu", "limits", "scan", "--quick", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "freed memory is kept" in printed and str(
        tmp_path / "out" / "scan.csv"
    ) in printed.replace("\n", "")
    rows = read_csv(tmp_path / "out" / "scan.csv")
    columns = "name peer shape dtype kind median_ms p10_ms p90_ms ratio commit date"
    assert set(columns.split()) <= set(rows[0])
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
@pytest.mark.parametrize(
    "name", ["train", "decode", "mixers", "length", "start", "quality", "context"]
)
def test_the_others(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plots = tmp_path / "plots"
    assert main(["cpu", name, "--quick", "--out", str(tmp_path), "--plots", str(plots)]) == 0
    assert read_csv(tmp_path / f"{name}.csv")
    assert name in ("start", "mixers", "context") or list(plots.glob("bench_*.png"))


def test_an_unknown_name_is_refused(capsys):
    assert main(["cpu", "scans"]) == 2
    assert "did you mean scan?" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["cpu", "limits", "--quick", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_what_has_rows_is_not_measured_again_unless_asked(tmp_path, capsys):
    arguments = ["cpu", "limits", "--quick", "--out", str(tmp_path)]
    assert main(arguments) == 0
    first = read_csv(tmp_path / "limits.csv")
    assert main(arguments) == 0
    assert "measured before" in capsys.readouterr().out
    assert read_csv(tmp_path / "limits.csv") == first
    assert main([*arguments, "--again"]) == 0
    again = read_csv(tmp_path / "limits.csv")
    assert len(again) == len(first) and again != first


def test_without_a_command_it_explains_itself(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"python -m benchmarks {name}" in printed for name in COMMANDS)


def test_an_unknown_command_is_refused(capsys):
    assert main(["cpus"]) == 2
    assert "did you mean cpu?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0 and f"python -m benchmarks {name}" in capsys.readouterr().out
