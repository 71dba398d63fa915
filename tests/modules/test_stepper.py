"""A Stepper computes what its stack does, one position at a time, or says why it cannot."""

import copy
import threading

import pytest
import torch

from hgrn.modules import HGRN, Linear, Stepper, quantize_int8
from hgrn.ops import available_engines
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif("numba" not in available_engines("cpu"), reason="numba is not here")

OPTIONS = {
    "default": {},
    "real": dict(complex_state=False),
    "gate first": dict(gate_position="before_norm", gate_act="sigmoid"),
    "low rank": dict(gate_rank=5, bias=False),
    "no lower bound": dict(use_lower_bound=False),
    "bilinear": dict(glu_act="identity", glu_dim=37),
}


def stack(dim=19, depth=3, **options):
    torch.manual_seed(0)
    made = HGRN(dim, depth, **options).eval()
    if made.bounds is not None:
        torch.nn.init.normal_(made.bounds.logits)
    return made


@torch.no_grad()
def compare(rnn, sequences, head=None, steps=6):
    step = Stepper(rnn, sequences, head)
    state = None
    for _ in range(steps):
        x = torch.randn(sequences, rnn.norm.weight.shape[0])
        expected, state = rnn(x[:, None], state)
        expected = expected if head is None else head(expected)
        assert_close(step(x), expected[:, 0])
    for (found,), (part,) in zip(step.state, state, strict=True):
        assert_close(found, part)


@pytest.mark.parametrize("sequences", [1, 3, 8])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_steps_are_those_of_the_stack(options, sequences):
    compare(stack(**options), sequences)


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_is_part_of_the_step(bias):
    compare(stack(), 2, Linear(19, 301, bias=bias))
    compare(stack(), 2, torch.nn.Linear(19, 7, bias=bias))


def test_weights_of_8_bits():
    compare(quantize_int8(stack()), 2, quantize_int8(torch.nn.Sequential(Linear(19, 33)))[0])


def test_layers_that_all_threads_share():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compare(stack(dim=160, depth=2), 1, Linear(160, 999))
        compare(stack(dim=160, depth=2), 8)
    finally:
        torch.set_num_threads(threads)


def test_states_go_in_and_out():
    rnn = stack()
    xs = torch.randn(5, 2, 19)
    step = Stepper(rnn, 2)
    step(xs[0])
    middle = step.state
    kept = copy.deepcopy(middle)
    first = [step(x) for x in xs[1:]]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(middle, kept)), (
        "a state that was read out changed"
    )
    for given in (middle, kept):  # the second is not the tuple that the stepper returned
        step.state = given
        assert all(torch.equal(step(x), y) for x, y in zip(xs[1:], first))
    step.state = None
    fresh = Stepper(rnn, 2)
    assert torch.equal(step(xs[0]), fresh(xs[0]))
    with pytest.raises(
        ValueError,
        match=r"an entry for each of 3 blocks, with tensors of these shapes: \(2, 38\)",
    ):
        step.state = middle[:2]


def test_a_state_that_is_set_after_steps_is_not_taken_for_the_one_here():
    step = Stepper(stack(), 1)
    x = torch.randn(1, 19)
    before = step.state
    first = step(x)
    step(x)
    step.state = before
    assert torch.equal(step(x), first)


def test_made_in_inference_mode_it_serves_outside_and_the_other_way_round():
    rnn = stack()
    x = torch.randn(1, 19)
    with torch.inference_mode():
        inside = Stepper(rnn)
        first = inside(x)
    outside = Stepper(rnn)
    assert torch.equal(outside(x), first)
    # A state that requires gradients, as training returns it.
    state = [(part.requires_grad_(),) for (part,) in outside.state]
    outside.state = state
    inside.state = state
    with torch.inference_mode():
        second = outside(x)
    assert torch.equal(inside(x), second)


def test_steppers_of_several_threads_do_not_meet():
    rnn = stack()
    x = torch.randn(50, 1, 19)
    expected = [step(row) for step in [Stepper(rnn)] for row in x]
    found = {}

    def work(name):
        step = Stepper(rnn)
        found[name] = [step(row) for row in x]

    workers = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (
        all(torch.equal(a, b) for rows in found.values() for a, b in zip(rows, expected))
        and len(found) == 4
    )


def test_what_cannot_be_stepped_says_why():
    cases = [
        (stack(bidirectional=True), 1, None, "bidirectional"),
        (stack().train(), 1, None, "training mode"),
        (stack().double(), 1, None, r"bounds.logits is torch.float64 on cpu"),
        (stack(), 9, None, "between 1 and 8, got 9"),
        (
            stack(),
            1,
            quantize_int8(torch.nn.Sequential(Linear(19, 3)))[0].bfloat16(),
            "scale is torch.bfloat16 on cpu",
        ),
        (stack(), 1, torch.nn.Identity(), "head is a Identity"),
    ]
    cases += [
        (
            stack(norm_type="rms"),
            1,
            None,
            "the mixer has a GatedRMSNorm, of which there are no compiled steps",
        ),
        (
            stack(conv_size=4),
            1,
            None,
            "the mixer has a ShortConvolution, of which there are no compiled steps",
        ),
    ]
    hooked = stack()
    hooked.blocks[1].register_forward_hook(lambda *_: None)
    cases.append((hooked, 1, None, "blocks.1 has hooks"))
    for rnn, sequences, head, message in cases:
        with pytest.raises(ValueError, match=message):
            Stepper(rnn, sequences, head)
    with pytest.raises(ValueError, match=r"x must have shape \(2, 19\)"):
        Stepper(stack(), 2)(torch.randn(1, 19))
