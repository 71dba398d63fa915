"""float16 tensors whose states pass 65504: states are float32, so gradients are right still."""

import pytest
import torch

from hgrn.ops import gated_scan, hgru_carry, hgru_scan
from tests.ops.cases import make
from tests.tolerances import assert_close

KINDS = {
    "real": {"complex_state": False},
    "complex": {},
    "reverse": {"reverse": True},
    "mask": {"mask": True},
    "packed": {"lengths": [3, 0, 6], "batch": 1},
}


def compare(function, inputs, engine):
    """Gradients of the final state, which is small where h was large, against the float64 loop."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    h, final = function(*inputs, engine=engine)
    expected = function(*wide, engine="reference")[1]
    assert not h.isfinite().all() and final.isfinite().all()
    weight = 1e-4  # with which the gradients fit into float16
    grads = torch.autograd.grad(weight * final.sum(), inputs)
    for found, true in zip(grads, torch.autograd.grad(weight * expected.sum(), wide)):
        assert found.isfinite().all()
        assert_close(found, true, torch.float16)


def test_a_closed_gate_behind_an_overflow(engine):
    """The smallest case: NaN in place of 0."""
    x = torch.tensor([6e4, 6e4, 1.0], dtype=torch.float16).view(1, 3, 1).requires_grad_()
    log_f = torch.tensor([0.0, 0.0, -3e4], dtype=torch.float16).view(1, 3, 1).requires_grad_()
    compare(lambda x, f, engine: gated_scan(x, f, engine=engine), [x, log_f], engine)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_states_that_overflow_and_come_back(kind, engine):
    case = make(**{"steps": 9, "channels": 3} | kind)
    candidate, forget, bound, theta, initial = case.inputs(torch.float16)
    with torch.no_grad():
        initial *= 1e7  # beyond float16 at the start
    log_f = (-4 * forget.detach().abs()).requires_grad_()
    given = [x for x in (candidate, log_f, theta, initial) if x is not None]

    def gated(x, f, *rest, engine):
        return gated_scan(
            x,
            f,
            rest[-1],
            theta=rest[0] if theta is not None else None,
            **case.options,
            engine=engine,
        )

    compare(gated, given, engine)
    given = [x for x in (candidate, forget, bound, theta, initial) if x is not None]

    def scan(c, f, b, *rest, engine):
        return hgru_scan(
            c, f, b, rest[0] if theta is not None else None, rest[-1], **case.options, engine=engine
        )

    compare(scan, given, engine)


def test_second_derivatives_and_tangents_see_the_state_in_float32(engine):
    x = torch.tensor([6e4, 6e4, 1.0], dtype=torch.float16).view(1, 3, 1).requires_grad_()
    log_f = torch.tensor([0.0, 0.0, -9.0], dtype=torch.float16).view(1, 3, 1).requires_grad_()

    def slope(x, f, engine):
        (grad,) = torch.autograd.grad(
            gated_scan(x, f, engine=engine)[1].sum(), f, create_graph=True
        )
        return None, grad.float().sum()[None]

    wide = [x.detach().double().requires_grad_(), log_f.detach().double().requires_grad_()]
    found = slope(x, log_f, engine)[1]
    expected = slope(*wide, "reference")[1]
    assert_close(found, expected, torch.float16)
    assert_close(
        torch.autograd.grad(found.sum(), log_f)[0],
        torch.autograd.grad(expected.sum(), wide[1])[0],
        torch.float16,
    )


def test_carry(engine):
    candidate = torch.full((1, 2, 2), 6e4, dtype=torch.float16).requires_grad_()
    forget = torch.zeros(1, 2, 1, dtype=torch.float16).requires_grad_()
    theta = torch.full((1,), 0.7).requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in (candidate, forget, theta)]
    end = hgru_carry(candidate, forget, None, theta, engine=engine)[1].sum()
    expected = hgru_carry(wide[0], wide[1], None, wide[2], engine="reference")[1].sum()
    for found, true in zip(
        torch.autograd.grad(end, [candidate, forget, theta]), torch.autograd.grad(expected, wide)
    ):
        assert_close(found, true, torch.float16)
