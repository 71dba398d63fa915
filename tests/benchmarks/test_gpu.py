"""The script that measures on a GPU, without one: all of it in Triton's interpreter, its refusals, and that its gates close."""

import os
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import models, scans
from benchmarks.gpu.clock import Bench
from benchmarks.gpu.report import table
from hgrn import ops
from hgrn.bench.results import read_csv
from hgrn.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def bench() -> Bench:
    return Bench(rehearse=True, minutes=1)


@pytest.mark.slow
def test_a_rehearsal_runs_to_its_end(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(tmp_path)]
    variables = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "mean nothing" in done.stdout.splitlines()[-1] and "WRONG" not in done.stdout
    rows = read_csv(tmp_path / "gpu.csv")
    measured = {row["name"] for row in rows if row["peer"] == "hgrn" and row["median_ms"]}
    assert measured >= {
        "hgru_scan real forward",
        "hgru_scan real backward",
        "hgru_scan complex forward",
        "hgru_scan complex backward",
        "scan real forward+backward",
        "training step, eager",
        "training step, compiled",
        "training step, compiled: first call",
        "decoding step",
        "decoding step, CUDA graph",
    }
    assert all("mean nothing" in row["gpu"] for row in rows)
    assert {row["peer"] for row in rows if row["note"].startswith("left out")} <= {
        "flash-linear-attention",
        "Transformer",
        *(
            f"{kind}, {how}"
            for kind in ("chunk_hgrn", "fused_recurrent_hgrn")
            for how in ("eager", "compiled")
        ),
    }
    assert (tmp_path / "bench_gpu.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "arguments, interpret, message",
    [
        (["--rehearse", "--out", str(gpu.RESULTS)], "1", "a rehearsal's numbers mean nothing"),
        (["--rehearse", "--out", str(gpu.RESULTS / "below")], "1", "give another folder"),
        (["--rehearse", "--plots", str(gpu.IMAGES)], "1", "--plots"),
        (["--rehearse"], "0", "start it with TRITON_INTERPRET=1"),
        ([], "1", "no kernel would run on the GPU"),
        (["--rehearse", "--minutes", "0"], "1", "--minutes must be above 0"),
    ],
)
def test_refusals(arguments, interpret, message, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    with pytest.raises(SystemExit) as stopped:
        gpu.main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_names_the_rehearsal(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--rehearse runs all of it on a CPU" in capsys.readouterr().err


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("dtype", scans.DTYPES)
def test_the_sampled_channels_are_those_of_the_whole(is_complex, dtype):
    given = scans.Given.draw((2, 30, 70), dtype, "cpu", is_complex)
    h = ops.hgru_scan(*given.inputs)[0]
    grads = torch.autograd.grad(h, given.inputs, given.grad)
    scans.compare("hgru_scan", dtype, (h, *grads), given.expected())
    for wrong in range(1 + len(grads)):
        found = [tensor.clone() for tensor in (h.detach(), *grads)]
        found[wrong][..., -1] += 0.1 * found[wrong].abs().max()
        with pytest.raises(UserError, match=scans._PARTS[wrong]):
            scans.compare("hgru_scan", dtype, found, given.expected())


def test_what_is_wrong_of_ours_is_a_failure_and_has_no_time(bench, monkeypatch):
    right = ops.hgru_scan
    monkeypatch.setattr(
        ops,
        "hgru_scan",
        lambda *inputs, engine=None: tuple(
            part * (1 if engine is None else 1.1) for part in right(*inputs)
        ),
    )
    monkeypatch.setattr(scans, "options", lambda bench: None)
    scans.announce(bench)
    scans.run(bench, check=True, time=True)
    assert len(bench.failures) == 7 and all(
        "differs from the reference" in failure for failure in bench.failures
    )
    assert not [row for row in bench.rows if row.ratio is not None]
    assert all(found is None for _, found in bench.targets.values())
    assert "WRONG" in table(bench) and "open" in table(bench)


def test_what_fails_of_a_peer_is_named_and_no_failure(bench):
    with bench.guarded(name="scan", peer="flash-linear-attention"):
        raise RuntimeError("it asks for a GPU")
    assert not bench.failures and bench.rows[0].note == "left out: RuntimeError: it asks for a GPU"


def test_an_error_of_our_model_is_a_failure(bench, monkeypatch):
    monkeypatch.setitem(models.PEERS, "hgrn", lambda size: torch.nn.Linear(1, 1))
    models.train(bench, models.TINY, {"hgrn"}, False, {})
    assert len(bench.failures) == 1 and "TypeError" in bench.failures[0]


def test_a_model_that_is_wrong_is_not_measured(bench, monkeypatch):
    right = models.loss_of
    monkeypatch.setattr(
        models,
        "loss_of",
        lambda model, ids: right(model, ids) * (1 if model.dtype == torch.float64 else 1.01),
    )
    passed = models.gates(bench)
    assert "hgrn" not in passed and len(bench.failures) == 2 and "the loss" in bench.failures[0]
    models.train(bench, models.TINY, passed - {"Transformer"}, False, {})
    assert not [row for row in bench.rows if row.tokens_per_s is not None]


def test_what_there_was_no_time_for_is_named():
    bench = Bench(rehearse=True, minutes=0)
    scans.run(bench, check=False, time=False)
    models.decode(bench, models.TINY, set(models.PEERS))
    late = [row.name for row in bench.rows if "--minutes" in row.note]
    assert {"hgru_scan real", "hgru_scan complex", "decoding step"} <= set(late)


@pytest.mark.parametrize("size", models.SIZES, ids=lambda size: size.name)
def test_models_have_about_equally_many_parameters(size):
    with torch.device("meta"):
        ours, other = (
            models.parameters(build(size)) for build in (models.ours, models.transformer)
        )
    assert abs(other / ours - 1) < 0.03
