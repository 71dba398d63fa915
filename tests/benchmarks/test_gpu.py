"""`python -m benchmarks gpu` without a GPU: in Triton's interpreter, and what it refuses."""

import os
import subprocess
import sys

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import models, scans, steps
from benchmarks.gpu.report import table
from benchmarks.gpu.session import Session
from benchmarks.rows import IMAGES, RESULTS, Results, Row, read_csv
from hgrn import ops
from hgrn.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def session(tmp_path) -> Session:
    return Session(Results(tmp_path / "gpu.csv"), rehearse=True, minutes=1)


@pytest.mark.slow
def test_a_rehearsal_runs_to_its_end(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-m", "benchmarks", "gpu", "--rehearse", "--out", str(tmp_path)]
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
        (["--rehearse", "--out", str(RESULTS)], "1", "a rehearsal's numbers mean nothing"),
        (["--rehearse", "--out", str(RESULTS / "below")], "1", "give another folder"),
        (["--rehearse", "--plots", str(IMAGES)], "1", "--plots"),
        (["--rehearse"], "0", "start it with TRITON_INTERPRET=1"),
        ([], "1", "no kernel would run on the GPU"),
        (["--rehearse", "--minutes", "0"], "1", "--minutes must be above 0"),
    ],
)
def test_refusals(arguments, interpret, message, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    with pytest.raises(SystemExit) as stopped:
        main(["gpu", *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_names_the_rehearsal(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit):
        main(["gpu"])
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
        with pytest.raises(UserError, match=scans.PARTS[wrong]):
            scans.compare("hgru_scan", dtype, found, given.expected())


def test_what_is_wrong_of_ours_is_a_failure_and_has_no_time(session, monkeypatch):
    right = ops.hgru_scan

    def wrong(*inputs, engine=None):
        return tuple(part * (1 if engine is None else 1.1) for part in right(*inputs))

    monkeypatch.setattr(ops, "hgru_scan", wrong)
    scans.run(session, time=True)
    assert len(session.failures) == 7
    assert all("differs from the reference" in failure for failure in session.failures)
    assert not [row for row in session.rows if row.ratio is not None]
    targets = scans.targets(session.rows, rehearse=True)
    assert targets and all(found is None for _, found in targets.values())
    printed = table(session.rows, session.failures, rehearse=True)
    assert "WRONG" in printed and "open" in printed


def test_what_fails_of_a_peer_is_named_and_no_failure(session):
    with session.guarded(name="scan", peer="flash-linear-attention"):
        raise RuntimeError("it asks for a GPU")
    assert not session.failures
    assert session.rows[0].note == "left out: RuntimeError: it asks for a GPU"


def test_an_error_of_our_model_is_a_failure(session, monkeypatch):
    monkeypatch.setitem(models.PEERS, "hgrn", lambda size: torch.nn.Linear(1, 1))
    steps.train(session, models.TINY, {"hgrn"}, compiled=False)
    assert len(session.failures) == 1 and "TypeError" in session.failures[0]


def test_a_model_that_is_wrong_is_not_measured(session, monkeypatch):
    right = models.loss_of

    def wrong(model, ids):
        return right(model, ids) * (1 if model.dtype == torch.float64 else 1.01)

    monkeypatch.setattr(models, "loss_of", wrong)
    passed = models.passing(session)
    assert "hgrn" not in passed and len(session.failures) == 2
    assert "the loss" in session.failures[0]
    steps.train(session, models.TINY, passed - {"Transformer"}, compiled=False)
    assert not [row for row in session.rows if row.tokens_per_s is not None]


def test_what_there_was_no_time_for_is_named_and_tried_again(tmp_path):
    results = Results(tmp_path / "gpu.csv")
    late = Session(results, rehearse=True, minutes=0)
    scans.run(late, time=False)
    steps.decode(late, models.TINY, set(models.PEERS))
    names = [row.name for row in late.rows if "--minutes" in row.note]
    assert {"hgru_scan real", "hgru_scan complex", "decoding step"} <= set(names)
    assert not Session(results, rehearse=True, minutes=1).rows


def test_what_has_a_row_is_skipped_and_a_failure_of_ours_is_tried_again(tmp_path):
    results = Results(tmp_path / "gpu.csv")
    results.add(Row(name="a", median_ms=1.0).text, Row(name="b", note="left out: wrong").text)
    results.add(Row(name="c", peer="other", note="left out: not installed").text)
    session = Session(results, rehearse=True, minutes=1)
    assert [name for name in "abc" if session.skips(name=name)] == ["a", "c"]
    assert not Session(results, rehearse=True, minutes=1, again=True).rows


def test_targets_are_found_in_the_rows():
    shape = str(list(scans.TINY))
    name = "hgru_scan real forward"
    scan = Row(name=name, shape=shape, dtype="float32", kind="kernel", ratio=0.9)
    rates = {"hgrn": 300.0, "flash-linear-attention": 200.0}
    trained = [
        Row(name="training step, eager", peer=peer, shape="tiny, T=12, B=1", tokens_per_s=rate)
        for peer, rate in rates.items()
    ]
    assert scans.targets([scan], True)[f"forward real {shape} float32, of the copy"] == (0.7, 0.9)
    (found,) = steps.targets(trained, True).values()
    assert found == (1.3, 1.5)


@pytest.mark.parametrize("size", models.SIZES, ids=lambda size: size.name)
def test_models_have_about_equally_many_parameters(size):
    with torch.device("meta"):
        ours, other = (
            models.parameters(build(size)) for build in (models.ours, models.transformer)
        )
    assert abs(other / ours - 1) < 0.03
