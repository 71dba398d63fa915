"""The contract of the ops, for every engine: axes, boundaries, masks, states, dtypes and errors."""

from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hgrn.ops import available_engines, gated_scan, hgru_carry, hgru_scan
from hgrn.ops.packing import lengths_to_cu_seqlens, lengths_to_mask, sequence_ids
from tests.ops.cases import CASES, make
from tests.tolerances import assert_close

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def by_definition(case):
    """h and final state, one scalar recurrence at a time, in Python.

    This oracle shares nothing with the package.
    """
    candidate = case.candidate
    forget = case.forget
    cu = case.options.get("cu_seqlens")
    width = forget.shape[-1]
    steps = forget.shape[1]
    theta = torch.zeros(width, dtype=torch.float64) if case.theta is None else case.theta
    turn = torch.polar(torch.ones_like(theta), theta)
    gamma = 0 if case.lower_bound is None else case.lower_bound
    bounds = (
        [(b, 0, steps) for b in range(forget.shape[0])]
        if cu is None
        else ([(0, a, b) for a, b in zip(cu.tolist(), cu.tolist()[1:])])
    )
    parts = candidate if case.theta is None else torch.complex(*candidate.chunk(2, -1))
    h = torch.zeros_like(parts)
    finals = []
    for n, (row, a, b) in enumerate(bounds):
        start = torch.zeros(candidate.shape[-1], dtype=torch.float64)
        start = start if case.initial_state is None else case.initial_state[n]
        state = start if case.theta is None else torch.complex(*start.chunk(2, -1))
        for t in reversed(range(a, b)) if case.options.get("reverse") else range(a, b):
            if "mask" not in case.options or case.options["mask"][row, t]:
                gate = gamma + (1 - gamma) / (1 + torch.exp(-forget[row, t]))
                x = candidate[row, t]
                x = x / (1 + torch.exp(-x))
                x = x if case.theta is None else torch.complex(*x.chunk(2, -1))
                state = gate * (state if case.theta is None else turn * state) + (1 - gate) * x
            h[row, t] = state
        finals.append(state)
    final = torch.stack(finals)
    return (
        (h, final)
        if case.theta is None
        else (torch.cat([h.real, h.imag], -1), torch.cat([final.real, final.imag], -1))
    )


@cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scan_is_its_definition(case, dtype, engine):
    expected_h, expected_final = by_definition(case)
    with torch.no_grad():
        h, final = hgru_scan(*case.inputs(dtype), **case.options, engine=engine)
    assert h.dtype == dtype and final.dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    assert_close(h, expected_h, name="h")
    assert_close(final, expected_final, dtype, name="final state")


@cases
def test_gated_scan_is_the_same_recurrence(case, engine):
    gamma = 0 if case.lower_bound is None else case.lower_bound
    keep = gamma + (1 - gamma) * torch.sigmoid(case.forget)
    write = (1 - gamma) * torch.sigmoid(-case.forget)
    write = write if case.theta is None else torch.cat([write, write], -1)
    x = write * torch.nn.functional.silu(case.candidate)
    h, final = gated_scan(
        x, keep.log(), case.initial_state, theta=case.theta, **case.options, engine=engine
    )
    expected_h, expected_final = by_definition(case)
    assert_close(h, expected_h, name="h")
    assert_close(final, expected_final, name="final state")


@cases
def test_carry_joins_stretches(case, engine):
    """decay, end state and the number of positions that count give the scan's final state."""
    *gates, initial = case.tensors
    decay, end = hgru_carry(*gates, **case.options, engine=engine)
    _, final = by_definition(case)
    if initial is None:
        initial = torch.zeros_like(final)
    mask = case.options.get("mask", torch.ones(case.forget.shape[:2], dtype=torch.bool))
    if "cu_seqlens" in case.options:
        cu = case.options["cu_seqlens"].tolist()
        count = torch.tensor([mask[0, a:b].sum().item() for a, b in pairwise(cu)])
    else:
        count = mask.sum(1)
    if case.theta is None:
        joined = decay * initial + end
    else:
        angle = count[:, None].double() * case.theta
        turned = torch.polar(decay, angle) * torch.complex(*initial.chunk(2, -1))
        joined = torch.cat([turned.real, turned.imag], -1) + end
    assert_close(joined, final)


@pytest.mark.parametrize("reverse", [False, True])
def test_step_equals_chunks_equals_full(reverse, engine):
    case = make(steps=65, channels=5, mask=True, reverse=reverse)
    candidate, forget, *channel, state = case.inputs(torch.float32)
    h, final = hgru_scan(candidate, forget, *channel, state, **case.options, engine=engine)
    for size in (1, 7, 64):
        pieces = []
        s = state
        starts = range(0, 65, size)
        for a in reversed(starts) if reverse else starts:
            cut = slice(a, a + size)
            part, s = hgru_scan(
                candidate[:, cut],
                forget[:, cut],
                *channel,
                s,
                reverse=reverse,
                mask=case.options["mask"][:, cut],
                engine=engine,
            )
            pieces.append(part)
        assert_close(torch.cat(pieces[::-1] if reverse else pieces, 1), h)
        assert_close(s, final)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_equals_separate_with_gradients(reverse, engine):
    lengths = [5, 0, 1, 9]
    case = make(lengths=lengths, channels=4, reverse=reverse, mask=True)
    mask = case.options.pop("mask")
    inputs = case.inputs(torch.float64)
    h, final = hgru_scan(*inputs, mask=mask, **case.options, engine=engine)
    weights = torch.randn_like(h), torch.randn_like(final)
    packed = torch.autograd.grad([h, final], inputs, weights)
    separate_h = []
    separate_final = []
    separate = [torch.zeros_like(g) for g in packed]
    cu = [0, 5, 5, 6, 15]
    for n, (a, b) in enumerate(pairwise(cu)):
        own = [inputs[0][:, a:b], inputs[1][:, a:b], inputs[2], inputs[3], inputs[4][n : n + 1]]
        h_n, final_n = hgru_scan(*own, mask=mask[:, a:b], reverse=reverse, engine=engine)
        grads = torch.autograd.grad(
            [h_n, final_n],
            inputs,
            [weights[0][:, a:b], weights[1][n : n + 1]],
            materialize_grads=True,
        )
        separate = [total + grad for total, grad in zip(separate, grads)]
        separate_h.append(h_n)
        separate_final.append(final_n)
    assert_close(h, torch.cat(separate_h, 1))
    assert_close(final, torch.cat(separate_final))
    for one, other in zip(packed, separate):
        assert_close(one, other)


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padded_equals_plain(side, engine):
    """With theta = 1: a gate of 1 alone would still rotate the state at every pad."""
    case = make(steps=6, channels=4, extreme=True, batch=1)
    candidate, forget, *rest = case.inputs(torch.float64)
    places = {"left": range(3, 9), "right": range(6), "middle": (0, 1, 2, 6, 7, 8)}[side]
    index = torch.tensor(list(places))
    mask = torch.zeros(1, 9, dtype=torch.bool).index_fill(1, index, True)
    junk = torch.full((1, 9, 1), 7.0, dtype=torch.float64)
    padded = [junk.expand(-1, -1, x.shape[-1]).index_copy(1, index, x) for x in (candidate, forget)]
    h, final = hgru_scan(candidate, forget, *rest, engine=engine)
    padded_h, padded_final = hgru_scan(*padded, *rest, mask=mask, engine=engine)
    assert torch.equal(padded_h[:, index], h) and torch.equal(padded_final, final)


def test_held_state_is_exact(engine):
    case = make(steps=4, channels=3, batch=1)
    mask = torch.tensor([[True, False, False, True]])
    h, _ = hgru_scan(*case.inputs(torch.float32), mask=mask, engine=engine)
    assert (
        torch.equal(h[:, 0], h[:, 1])
        and torch.equal(h[:, 0], h[:, 2])
        and not torch.equal(h[:, 0], h[:, 3])
    )


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -2])
def test_any_axis_can_be_time(dim, engine):
    x = torch.randn(2, 3, 4, 5, 12, dtype=torch.float64, requires_grad=True)
    gate = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    bound = torch.rand(6, dtype=torch.float64)
    theta = torch.randn(6, dtype=torch.float64)
    state_shape = list(x.shape)
    del state_shape[dim]
    initial = torch.randn(state_shape, dtype=torch.float64)
    mask = torch.rand(2, 3, 4, 5) > 0.3
    h, final = hgru_scan(x, gate, bound, theta, initial, dim=dim, mask=mask, engine=engine)
    positive = dim % 5
    to_front = (*(a for a in range(4) if a != positive), positive)
    flat = [
        t.permute(*to_front, *range(4, t.ndim)).reshape(-1, x.shape[dim], *t.shape[4:])
        for t in (x, gate, mask)
    ]
    expected_h, expected_final = hgru_scan(
        flat[0], flat[1], bound, theta, initial.reshape(-1, 12), mask=flat[2], engine=engine
    )
    assert_close(h.permute(*to_front, 4).reshape(expected_h.shape), expected_h)
    assert final.shape == initial.shape
    assert_close(final.reshape(-1, 12), expected_final)
    (grad,) = torch.autograd.grad(h.square().sum(), x)
    (expected,) = torch.autograd.grad(expected_h.square().sum(), x)
    assert_close(grad, expected)


class _Copies(TorchDispatchMode):
    """Counts the elements that PyTorch copies or writes outside our operators."""

    def __init__(self):
        super().__init__()
        self.copied = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and func in (
            torch.ops.aten.clone.default,
            torch.ops.aten.copy_.default,
            torch.ops.aten._to_copy.default,
        ):
            self.copied += out.numel()
        return out


@pytest.mark.skipif(
    "numba" not in available_engines("cpu"), reason="the reference loop copies by design"
)
@pytest.mark.parametrize("dim", [1, 2])
def test_neither_axis_of_a_grid_is_copied(dim):
    """Slices of one fused projection, scanned along rows and along columns."""
    fused = torch.randn(2, 6, 7, 3 * 8)
    with _Copies() as copies:
        hgru_scan(fused[..., :16], fused[..., 16:], None, torch.ones(8), dim=dim, engine="numba")
    assert copies.copied == 0
    with _Copies() as copies:
        hgru_scan(
            fused[..., :16].transpose(-1, -2).contiguous().transpose(-1, -2),
            fused[..., 16:],
            None,
            torch.ones(8),
            dim=dim,
            engine="numba",
        )
    assert copies.copied > 0  # the count does see copies: here the channels are not contiguous


@pytest.mark.parametrize("layout", ["slice", "step", "transposed", "expanded"])
def test_strided_inputs(layout, engine):
    base = torch.randn(3, 10, 16, dtype=torch.float64)
    x = {
        "slice": base[:, 2:9, 3:11],
        "step": base[:, ::2, ::2],
        "transposed": base.transpose(1, 2)[:, :, :8],
        "expanded": base[:1, :, :8].expand(4, -1, -1),
    }[layout]
    gate = torch.randn_like(x)
    assert_close(
        hgru_scan(x, gate, engine=engine)[0], hgru_scan(x.contiguous(), gate, engine=engine)[0]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision_is_the_wide_result_rounded_once(dtype, engine):
    case = make(steps=64, channels=16)
    inputs = [x.detach() for x in case.inputs(dtype)]
    h, final = hgru_scan(*inputs, engine=engine)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    wide_h, wide_final = hgru_scan(
        inputs[0].to(wide), inputs[1].to(wide), *inputs[2:], engine=engine
    )
    assert torch.equal(h, wide_h.to(dtype)) and torch.equal(final, wide_final)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_and_spreads_forward_only(dtype, engine):
    x = torch.randn(1, 6, 20, dtype=dtype)
    gate = torch.randn(1, 6, 20, dtype=dtype)
    x[0, 2, 3] = float("nan")
    gate[0, 4, 7] = float("nan")
    h, final = hgru_scan(x, gate, engine=engine)
    expected = torch.zeros(1, 6, 20, dtype=torch.bool)
    expected[0, 2:, 3] = expected[0, 4:, 7] = True
    assert torch.equal(h.isnan(), expected) and torch.equal(final.isnan(), expected[:, -1])


def test_saturated_gates(engine):
    """Pre-activations of +-200: sigmoid is exactly 0 or 1, and nothing overflows on the way."""
    sides = torch.tensor([-200.0, 200.0])
    candidate, forget = torch.meshgrid(sides, sides, indexing="ij")
    h, _ = hgru_scan(
        candidate.reshape(1, 1, 4),
        forget.reshape(1, 1, 4),
        None,
        None,
        torch.full((1, 4), 3.0),
        engine=engine,
    )
    assert torch.allclose(h.flatten(), torch.tensor([0.0, 3.0, 200.0, 3.0]), atol=1e-30)
    x = torch.tensor([[[1.0, 2.0]]])
    h, _ = gated_scan(
        x, torch.tensor([[[-torch.inf, 0.0]]]), torch.full((1, 2), 5.0), engine=engine
    )
    assert h.flatten().tolist() == [1.0, 7.0]


def test_gate_next_to_one_still_writes(engine):
    """At lambda = 1 - 1e-9 the subtraction 1 - lambda would give 0 in float32."""
    forget = torch.full((1, 1, 1), 20.723266)
    h, _ = hgru_scan(torch.full((1, 1, 1), 50.0), forget, engine=engine)
    assert h.item() == pytest.approx(50 / (1 + torch.exp(forget.double()).item()), rel=1e-5)


def test_default_engine_is_the_fastest():
    x = torch.randn(1, 3, 2)
    assert torch.equal(hgru_scan(x, x)[0], hgru_scan(x, x, engine=available_engines("cpu")[0])[0])


def test_packing_helpers():
    lengths = torch.tensor([2, 0, 3])
    cu = lengths_to_cu_seqlens(lengths)
    assert cu.tolist() == [0, 2, 2, 5] and cu.dtype == torch.int32
    assert sequence_ids(cu, 5).tolist() == [0, 0, 2, 2, 2]
    assert lengths_to_mask(lengths, 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


X = torch.randn(1, 4, 6)
GATE = torch.randn(1, 4, 3)
BAD_CALLS = {
    "forget must have shape (1, 4, 3)": lambda: hgru_scan(X, X, None, torch.ones(3)),
    "a complex state needs theta": lambda: hgru_scan(X, GATE),
    "forget must have candidate's dtype": lambda: hgru_scan(X, X.double()),
    "candidate must be float16": lambda: hgru_scan(X.int(), X.int()),
    "candidate must be a tensor, got list": lambda: hgru_scan([1.0], X),
    "lower_bound must have one value per channel": lambda: hgru_scan(X, X, torch.ones(1)),
    "lower_bound must lie in [0, 1], got values from -2 to 1": lambda: hgru_scan(
        X, X, torch.linspace(-2, 1, 6)
    ),
    "theta must have one value per channel, shape (3,)": lambda: hgru_scan(
        X, GATE, None, torch.ones(4)
    ),
    "initial_state must have shape (1, 6)": lambda: hgru_scan(X, X, None, None, torch.ones(2, 6)),
    "mask must be a bool tensor": lambda: hgru_scan(X, X, mask=torch.ones(1, 4)),
    "mask must have the shape of candidate without its channel axis": lambda: hgru_scan(
        X, X, mask=torch.ones(4).bool()
    ),
    "dim must be an axis of candidate": lambda: hgru_scan(X, X, dim=3),
    "dim must be the time axis": lambda: hgru_scan(X, X, dim=-1),
    "needs at least a time and a channel axis": lambda: hgru_scan(X[0, 0], X[0, 0], dim=0),
    "packed sequences need candidate of shape [1, total, channels]": lambda: hgru_scan(
        X.expand(2, 4, 6), X.expand(2, 4, 6), cu_seqlens=torch.tensor([0, 4])
    ),
    "cu_seqlens must be a 1-d int32 or int64 tensor": lambda: hgru_scan(
        X, X, cu_seqlens=torch.tensor([0.0, 4.0])
    ),
    "cu_seqlens must start at 0, never fall": lambda: hgru_scan(
        X, X, cu_seqlens=torch.tensor([0, 3, 2, 4])
    ),
    "end at the number of packed positions (4)": lambda: hgru_scan(
        X, X, cu_seqlens=torch.tensor([0, 3])
    ),
    "engine must be one of": lambda: hgru_scan(X, X, engine="cuda"),
    "engine 'triton' cannot run on cpu": lambda: hgru_scan(X, X, engine="triton"),
    "log_f must have shape (1, 4, 6)": lambda: gated_scan(X, GATE[:, :2]),
    "x must be float16": lambda: gated_scan(X.long(), X.long()),
    "on meta but candidate on cpu": lambda: hgru_carry(X, X, torch.ones(6, device="meta")),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_errors_name_the_argument_and_the_rule(message):
    with pytest.raises((ValueError, TypeError)) as caught:
        BAD_CALLS[message]()
    assert message in str(caught.value)
