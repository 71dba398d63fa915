"""Gradients of the ops, against finite differences and against the float64 reference."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from hgrn.ops import gated_scan, hgru_carry, hgru_scan
from tests.ops.cases import CASES, make, plain_loop
from tests.tolerances import assert_close

SMALL = {
    name: case
    for name, case in CASES.items()
    if case.candidate.numel() <= 200 and case.candidate.numel() > 0
}
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL.keys())


def given(function, inputs):
    """The function of only those tensors that were given, and these."""
    present = [x is not None for x in inputs]

    def call(*tensors):
        tensors = iter(tensors)
        return function(*(next(tensors) if there else None for there in present))

    return call, [x for x in inputs if x is not None]


@small
def test_scan_gradcheck(case, engine):
    assert gradcheck(
        *given(partial(hgru_scan, **case.options, engine=engine), case.inputs(torch.float64))
    )


@small
def test_carry_gradcheck(case, engine):
    inputs = case.inputs(torch.float64)[:4]
    assert gradcheck(*given(partial(hgru_carry, **case.options, engine=engine), inputs))


def _gated(x, log_f, theta, initial, **options):
    return gated_scan(x, torch.nn.functional.logsigmoid(log_f), initial, theta=theta, **options)


@small
def test_gated_gradcheck_and_second_derivatives(case, engine):
    candidate, forget, _, theta, initial = case.inputs(torch.float64)
    call, inputs = given(
        partial(_gated, **case.options, engine=engine), (candidate, forget, theta, initial)
    )
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["complex", "packed, empty", "packed, mask, reverse"])
def test_scan_second_derivatives(name, engine):
    case = CASES[name]
    assert gradgradcheck(
        *given(partial(hgru_scan, **case.options, engine=engine), case.inputs(torch.float64))
    )


def test_carry_second_derivatives(engine):
    case = make(steps=3, channels=2)
    assert gradgradcheck(*given(partial(hgru_carry, engine=engine), case.inputs(torch.float64)[:4]))


@pytest.mark.parametrize("wanted", range(5))
@pytest.mark.parametrize("loss", ["h", "final", "both"])
def test_each_input_alone(wanted, loss, engine):
    """Every single input that requires a gradient gets the one it gets among all."""
    case = make(steps=7, channels=4, mask=True)
    weights = torch.randn(2, 7, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)

    def total(inputs):
        h, final = hgru_scan(*inputs, **case.options, engine=engine)
        return (loss != "final") * (h * weights[0]).sum() + (loss != "h") * (
            final * weights[1]
        ).sum()

    everything = case.inputs(torch.float64)
    alone = [x.detach().requires_grad_(n == wanted) for n, x in enumerate(everything)]
    (expected,) = torch.autograd.grad(total(everything), [everything[wanted]])
    (found,) = torch.autograd.grad(total(alone), [alone[wanted]])
    assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name", [name for name in CASES if "no time" not in name and "all empty" not in name]
)
def test_against_the_float64_reference(name, dtype, engine):
    """The rounded inputs are exact in float64, so only the computation differs."""
    case = CASES[name]
    inputs = case.inputs(dtype)
    exact = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    h, final = hgru_scan(*inputs, **case.options, engine=engine)
    exact_h, exact_final = plain_loop("hgru_scan")(*exact, **case.options)
    generator = torch.Generator().manual_seed(
        0
    )  # the same draw every time: 130 turning steps come close to the table's limit
    weights = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in (h, final)]
    grads = torch.autograd.grad([h, final], [x for x in inputs if x is not None], weights)
    wide = [w.double() for w in weights]
    expected = torch.autograd.grad(
        [exact_h, exact_final], [x for x in exact if x is not None], wide
    )
    for found, true in zip((h, final, *grads), (exact_h, exact_final, *expected)):
        assert_close(found, true, dtype)


def test_masked_positions_get_no_gradient(engine):
    case = make(steps=20, channels=3, mask=True)
    inputs = case.inputs(torch.float64)
    h, final = hgru_scan(*inputs, **case.options, engine=engine)
    (h.sum() + final.sum()).backward()
    held = ~case.options["mask"]
    assert inputs[0].grad[held].eq(0).all() and inputs[1].grad[held].eq(0).all() and held.any()
    assert inputs[0].grad[~held].ne(0).all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, engine):
    """It gives a backward its saved tensors once."""
    inputs = make(steps=7, channels=4).inputs(torch.float64)

    def total(*tensors):
        h, final = hgru_scan(*tensors, engine=engine)
        return h.sin().sum() + final.sum()

    checkpoint(total, *inputs, use_reentrant=reentrant).backward()
    found = [x.grad for x in inputs]
    for one, other in zip(found, torch.autograd.grad(total(*inputs), inputs), strict=True):
        assert_close(one, other)


def test_truncated_and_whole_backpropagation_through_a_carried_state(engine):
    """A loss on the second chunk reaches the first one through the state, as in one scan."""
    case = make(steps=10, channels=3)
    candidate, forget, *channel, state = case.inputs(torch.float64)
    whole, _ = hgru_scan(candidate, forget, *channel, state, engine=engine)
    (expected,) = torch.autograd.grad(whole[:, 6:].square().sum(), candidate)
    _, middle = hgru_scan(candidate[:, :6], forget[:, :6], *channel, state, engine=engine)
    second, _ = hgru_scan(candidate[:, 6:], forget[:, 6:], *channel, middle, engine=engine)
    (found,) = torch.autograd.grad(second.square().sum(), candidate)
    assert_close(found, expected)
    assert found[:, :6].abs().max() > 0


def test_underflowing_gates_keep_finite_carry_gradients(engine):
    """Gates of 1e-44 multiply to 0; the gradient must not become 0 / 0."""
    candidate = torch.randn(1, 5, 2, requires_grad=True)
    forget = (
        torch.tensor([-200.0, -100.0, 0.0, 3.0, 1.0])
        .reshape(1, 5, 1)
        .repeat(1, 1, 2)
        .requires_grad_()
    )
    decay, end = hgru_carry(candidate, forget, engine=engine)
    grads = torch.autograd.grad(decay.sum() + end.sum(), [candidate, forget])
    exact = [x.detach().double().requires_grad_() for x in (candidate, forget)]
    true = plain_loop("hgru_carry")(*exact)
    for found, expected in zip(grads, torch.autograd.grad(true[0].sum() + true[1].sum(), exact)):
        assert_close(found, expected)
