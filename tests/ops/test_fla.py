"""`gla_scan` by flash-linear-attention: what is passed on to it, and what it is not asked for."""

from types import SimpleNamespace

import pytest
import torch

from hgrn.ops import fla, gla, gla_scan
from hgrn.ops.gla_arguments import GlaScan, checked
from tests.ops.test_gla import CASES
from tests.tolerances import assert_close


def chunk_gla(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens):
    """A stand-in with the arguments of theirs (fla/ops/gla/chunk.py), by our reference."""
    assert output_final_state
    assert cu_seqlens is None or cu_seqlens.dtype == torch.int64
    return gla_scan(q * scale, k, v, g, initial_state, cu_seqlens=cu_seqlens, engine="reference")


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(fla, "_package", lambda: SimpleNamespace(chunk_gla=chunk_gla))


def scan_of(name: str, dtype: torch.dtype = torch.float32) -> GlaScan:
    tensors, options = CASES[name].inputs(dtype)
    initial = tensors[4] if len(tensors) == 5 else None
    return checked(*tensors[:4], initial, options.get("cu_seqlens"), options.get("mask"))


@pytest.mark.parametrize("name", ["plain", "no state", "several chunks"])
def test_what_is_passed_on(name, installed):
    scan = scan_of(name)
    assert fla.why_not(scan) is None
    # As on a GPU, where no engine of ours has a kernel.
    found = gla._without_kernel(scan, None, "cuda")
    expected = gla._without_kernel(scan, None, "cpu")
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_what_it_is_not_asked_for(installed, caplog):
    caplog.set_level("INFO", logger="hgrn")
    assert "no float64" in fla.why_not(scan_of("plain", torch.float64))
    assert "at least one position" in fla.why_not(scan_of("no time"))
    assert "no empty sequences" in fla.why_not(scan_of("packed"))
    seen = []

    def inside(x):
        seen.append(fla.why_not(scan_of("plain")))
        return x.sum()

    torch.func.grad(inside)(torch.ones(2))
    assert "no torch.func" in seen[0]
    fla.tell.cache_clear()
    for _ in range(2):
        gla._without_kernel(scan_of("plain", torch.float64), None, "cuda")
    assert [record.message for record in caplog.records] == [
        "gla_scan is computed as products of matrices: flash-linear-attention has no float64"
    ]


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(fla, "_package", lambda: "flash-linear-attention is not there")
    assert fla.why_not(scan_of("plain")) == "flash-linear-attention is not there"
    # A named engine is never another library.
    monkeypatch.setattr(fla, "why_not", lambda scan: pytest.fail("was asked"))
    gla._without_kernel(scan_of("plain"), "triton", "cuda")
