"""The GPU engine: every kernel against the reference loop, in every dtype, with and without split time.

On a GPU, or in Triton's interpreter, which has to be asked for before anything imports Triton: test_triton_processes.py does.
"""

import os
from types import SimpleNamespace

import pytest
import torch

from hgrn.ops import reference
from hgrn.ops.arguments import Scan
from tests.ops.cases import CASES, make
from tests.tolerances import assert_close

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run in Triton's interpreter by test_triton_processes.py", allow_module_level=True)
engine = pytest.importorskip("hgrn.ops.triton.launch", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Every pair of: real or complex, mask, reverse, packed, initial state, lower bound, several tiles.
CHOSEN = {
    name: CASES[name]
    for name in (
        "real",
        "complex",
        "one step",
        "two steps, no bound",
        "65 steps, mask, reverse",
        "packed, empty",
        "packed, empty, complex",
        "packed, mask, reverse",
        "packed, all empty",
        "real, no state, no bound",
        "no time",
    )
} | {
    "130 steps, extreme, real": make(
        steps=130, channels=3, batch=1, extreme=True, complex_state=False, mask=True
    ),
    "70 steps, extreme": make(steps=70, channels=3, batch=1, extreme=True),
    "33 channels": make(steps=3, channels=33, batch=1),
}
cases = pytest.mark.parametrize("case", CHOSEN.values(), ids=CHOSEN.keys())


@pytest.fixture(autouse=True)
def small_tiles(request, monkeypatch):
    """In the interpreter, which is slow: short cases take several tiles and blocks all the same."""
    if DEVICE == "cpu" and "real_tiles" not in request.fixturenames:
        tile = engine.Tile(rows=4, slots=4, block=8, vector=2, threads=32, stages=1, registers=None)
        monkeypatch.setattr(engine, "tile_of", lambda *_: tile)


@pytest.fixture
def real_tiles():
    """Those that the GPU would have."""


def canonical(case, dtype) -> Scan:
    """A case as an engine takes it: `[O, T, I, C]`, here with one inner index."""
    candidate, forget, bound, theta, state = (
        None if x is None else x.detach().to(DEVICE) for x in case.inputs(dtype)
    )
    mask = case.options.get("mask")
    cu_seqlens = case.options.get("cu_seqlens")
    return Scan(
        candidate.unsqueeze(2),
        forget.unsqueeze(2),
        bound,
        theta,
        None if state is None else state.unsqueeze(1),
        None if cu_seqlens is None else cu_seqlens.to(DEVICE),
        None if mask is None else mask.unsqueeze(2).to(DEVICE),
        case.options.get("reverse", False),
    )


def through_reference(function, scan, weights):
    """Outputs, and gradients of their weighted sum, in float64."""
    leaves = [None if x is None else x.double().requires_grad_() for x in scan[:5]]
    outputs = function(Scan(*leaves, *scan[5:]))
    total = sum((out * weight.double()).sum() for out, weight in zip(outputs, weights))
    grads = iter(
        torch.autograd.grad(total, [x for x in leaves if x is not None], materialize_grads=True)
    )
    return outputs, [None if x is None else next(grads) for x in leaves]


def check(found, expected, dtype):
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if other is not None:
            assert_close(one, other, dtype, name=f"tensor {number}")


def check_all(case, dtype):
    scan = canonical(case, dtype)
    generator = torch.Generator(DEVICE).manual_seed(1)

    def like(x):
        return torch.randn(x.shape, generator=generator, device=DEVICE).to(x.dtype)

    h, final = engine.hgru_scan(scan)
    weights = like(h), like(final)
    expected, grads = through_reference(reference.hgru_scan, scan, weights)
    assert h.dtype == dtype
    check((h, final), expected, dtype)
    check(engine.hgru_scan_backward(scan, h, *weights), grads, dtype)

    alone = scan._replace(initial_state=None)
    wide = Scan(*(None if x is None else x.double() for x in alone[:5]), *alone[5:])
    check(engine.hgru_carry(alone), reference.hgru_carry(wide), dtype)

    log_f = torch.nn.functional.logsigmoid(scan.gate)
    scan = scan._replace(gate=log_f, lower_bound=None)
    h, final = engine.gated_scan(scan)
    expected, (grad_x, grad_gate, _, *others) = through_reference(
        reference.gated_scan, scan, weights
    )
    check((h, final), expected, dtype)
    grads = [grad_x, grad_gate, *others]
    check(engine.gated_scan_backward(scan, h, *weights), grads, dtype)


@cases
def test_float64(case):
    check_all(case, torch.float64)


@pytest.mark.parametrize(
    "case",
    [make(), make(steps=530, channels=3, batch=1, mask=True, reverse=True)],
    ids=["5 steps", "two tiles"],
)
def test_with_the_tiles_of_the_gpu(case, real_tiles):
    check_all(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["real", "complex", "packed, mask, reverse", "70 steps, extreme"])
def test_other_dtypes(name, dtype):
    check_all(CHOSEN[name], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "name", ["130 steps, extreme, real", "70 steps, extreme", "packed", "mask, reverse"]
)
def test_split_time(name, dtype, monkeypatch):
    more = {
        "packed": make(lengths=[40, 0, 70, 3], mask=True),
        "mask, reverse": make(steps=65, batch=1, mask=True, reverse=True),
    }
    case = (CHOSEN | more)[name]
    monkeypatch.setattr(engine, "_SHORTEST", 1)
    monkeypatch.setattr(
        engine, "_chip", lambda _: SimpleNamespace(multi_processor_count=1000, warp_size=32)
    )
    split = engine._Scan._split
    parts = []
    monkeypatch.setattr(engine._Scan, "_split", lambda self: parts.append(split(self)) or parts[-1])
    check_all(case, dtype)
    assert min(parts)[0] > 1


def test_strides_and_inner_axes():
    """Rows of a grid are read where they are: inner axes, and a last axis that is a slice of another tensor's."""
    torch.manual_seed(0)
    wide = torch.randn(2, 4, 3, 20, dtype=torch.float64, device=DEVICE)
    bound = torch.rand(5).double().to(DEVICE)
    theta = torch.randn(5).double().to(DEVICE)
    scan = Scan(wide[..., 2:12], wide[..., 12:17], bound, theta, None, None, None, False)
    h, final = engine.hgru_scan(scan)
    weights = torch.randn_like(h), torch.randn_like(final)
    expected, grads = through_reference(reference.hgru_scan, scan, weights)
    check((h, final), expected, torch.float64)
    check(engine.hgru_scan_backward(scan, h, *weights), grads, torch.float64)


def test_padding_is_ignored_and_nan_is_not():
    """What is masked has no part in any result, not even as NaN; a NaN elsewhere is in its channel from there on."""
    scan = canonical(make(steps=21, channels=3, mask=True), torch.float32)
    hidden = ~scan.mask[..., None]
    weights = torch.randn_like(scan.x), torch.randn_like(scan.initial_state)

    def results(fill):
        filled = scan._replace(
            x=scan.x.masked_fill(hidden, fill), gate=scan.gate.masked_fill(hidden, fill)
        )
        h, final = engine.hgru_scan(filled)
        return (
            h,
            final,
            *engine.hgru_scan_backward(filled, h, *weights),
            *engine.hgru_carry(filled._replace(initial_state=None)),
        )

    for clean, dirty in zip(results(0), results(float("nan")), strict=True):
        assert torch.equal(clean, dirty)

    first = int(scan.mask[0, 9:, 0].nonzero()[0]) + 9
    scan.gate[0, first, 0, 1] = float("nan")
    expected = torch.zeros_like(scan.x, dtype=torch.bool)
    expected[0, first:, 0, 1::3] = True  # the real and the imaginary part of channel 1
    assert torch.equal(engine.hgru_scan(scan)[0].isnan(), expected)


def test_rotation_does_not_drift():
    """Cosine and sine of 1, rounded to float32, turn by 2.4e-8 too much a step: 3.6e-5 here, were it not undone."""
    steps = 1500
    closed = torch.zeros(1, steps, 1, 2, device=DEVICE)
    open_gate = torch.full((1, steps, 1, 1), 60.0, device=DEVICE)
    theta = torch.ones(1, device=DEVICE)
    state = torch.tensor([[[1.0, 0.0]]], device=DEVICE)
    h, _ = engine.hgru_scan(Scan(closed, open_gate, None, theta, state, None, None, False))
    angle = torch.arange(1, steps + 1, dtype=torch.float64, device=DEVICE)
    assert_close(h[0, :, 0], torch.stack([angle.cos(), angle.sin()], -1), torch.float32)


def test_kernels_are_not_compiled_for_each_length():
    def flags(steps):
        return engine._Scan(
            torch.empty(1, steps, 1, 8, device=DEVICE), 8, None, None, None, False
        ).flags

    assert flags(300) == flags(3001)
