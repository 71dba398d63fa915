"""Forward mode and the transforms of torch.func: no result counts as a constant; nesting works."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad, gradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.nn.functional import logsigmoid

from hgrn.ops import (
    available_engines,
    gated_norm,
    gated_scan,
    gated_unit,
    hgru_carry,
    hgru_scan,
    int8_linear,
    linear,
    quantize_rows,
)
from tests.ops.cases import CASES, make, plain_loop
from tests.ops.test_gradients import given
from tests.tolerances import assert_close

pytestmark = [
    pytest.mark.skipif(
        "numba" not in available_engines("cpu"), reason="no registered engine works here"
    ),
    pytest.mark.filterwarnings(
        "ignore:`torch.jit.(script|trace|trace_method)`:DeprecationWarning"
    ),  # also of PyTorch's rules for jvp
    pytest.mark.filterwarnings(
        "ignore:Attempted to insert a get_attr Node:UserWarning"
    ),  # of torch.func.linearize
]
NAMES = [
    "real",
    "complex",
    "two steps, no bound",
    "packed, empty",
    "packed, empty, complex",
    "packed, mask, reverse",
    "no time",
    "64 steps, mask",
    "65 steps, mask, reverse",
]


OPS = ["hgru_scan", "hgru_carry", "gated_scan"]


def scan_of(case, name="hgru_scan", engine=None):
    """An operator as a function of the tensors that the case has, and these, in float64."""
    options = {**case.options, "engine": engine}
    if name == "hgru_scan":
        tensors = [x if x is None else x.detach() for x in case.tensors]
        return given(partial(hgru_scan, **options), tensors)
    if name == "hgru_carry":
        return given(partial(hgru_carry, **options), case.tensors[:4])

    def gated(x, f, theta, initial):
        return gated_scan(x, logsigmoid(f), initial, theta=theta, **options)

    return given(gated, [case.candidate, case.forget, case.theta, case.initial_state])


def definition_of(case, name="hgru_scan"):
    """As `scan_of`, of the plain loop."""
    loop = partial(plain_loop(name), **case.options)
    if name != "gated_scan":
        return given(loop, case.tensors[: 4 if name == "hgru_carry" else 5])[0]

    def gated(x, f, theta, initial):
        return loop(x, logsigmoid(f), None, theta, initial)

    return given(gated, [case.candidate, case.forget, case.theta, case.initial_state])[0]


def alike(found, expected):
    leaves = [torch.utils._pytree.tree_leaves(x) for x in (found, expected)]
    assert len(leaves[0]) == len(leaves[1]) > 0
    for one, other in zip(*leaves):
        assert_close(one, other)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", NAMES)
def test_jvp_and_vjp_of_every_argument(name, op):
    case = CASES[name]
    call, inputs = scan_of(case, op)
    definition = definition_of(case, op)
    directions = tuple(torch.randn_like(x) for x in inputs)
    alike(jvp(call, tuple(inputs), directions), jvp(definition, tuple(inputs), directions))
    outputs, pull = vjp(call, *inputs)
    weights = tuple(torch.randn_like(x) for x in outputs)
    alike(pull(weights), vjp(definition, *inputs)[1](weights))


@pytest.mark.parametrize("op", OPS)
def test_the_reference_engine_under_transforms(op):
    """It goes the way of every engine."""
    case = CASES["packed, mask, reverse"]
    call, inputs = scan_of(case, op, engine="reference")
    definition = definition_of(case, op)
    directions = tuple(torch.randn_like(x) for x in inputs)
    alike(jvp(call, tuple(inputs), directions), jvp(definition, tuple(inputs), directions))
    alike(vmap(call)(*(x[None] for x in inputs))[0][0], call(*inputs)[0])


@pytest.mark.parametrize("name", ["complex", "packed, mask, reverse"])
def test_forward_mode_against_finite_differences(name):
    for op in OPS:
        call, inputs = scan_of(CASES[name], op)
        inputs = [x.detach().clone().requires_grad_() for x in inputs]
        assert gradcheck(
            call,
            inputs,
            check_forward_ad=True,
            check_backward_ad=False,
            check_batched_forward_grad=True,
        )


def test_dual_numbers_without_a_transform():
    """Also without gradients, in the backward, and through both modes at once."""
    call, inputs = scan_of(make(steps=4))
    definition = definition_of(make(steps=4))
    directions = [torch.randn_like(x) for x in inputs]
    results = []
    for function in (call, definition):
        with forward_ad.dual_level(), torch.no_grad():
            outputs = function(*(forward_ad.make_dual(x, d) for x, d in zip(inputs, directions)))
            results.append([forward_ad.unpack_dual(out).tangent for out in outputs])
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        with forward_ad.dual_level():
            outputs = function(*(forward_ad.make_dual(x, d) for x, d in zip(leaves, directions)))
            # The definition has no tangent of a gradient (PyTorch's silu has none), but of a second
            # derivative.
            grads = torch.autograd.grad(
                outputs[0].square().sum(), leaves, create_graph=function is definition
            )
            results[-1] += [forward_ad.unpack_dual(g).tangent for g in grads]
        outputs = function(*leaves)  # before the level, and its gradient inside
        with forward_ad.dual_level():
            weight = forward_ad.make_dual(
                torch.ones_like(outputs[0]),
                torch.randn(outputs[0].shape, generator=_seeded()).double(),
            )
            grads = torch.autograd.grad(
                outputs[0], leaves, weight, create_graph=function is definition
            )
            results[-1] += [forward_ad.unpack_dual(g).tangent for g in grads]
    alike(*results)


def _seeded():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "options", [{}, {"lengths": [2, 0, 1], "mask": True, "reverse": True}], ids=["plain", "packed"]
)
def test_second_derivatives_in_every_order(op, options):
    case = make(batch=1, steps=3, channels=2, **options)
    call, inputs = scan_of(case, op)
    definition = definition_of(case, op)

    def total(function):
        return lambda *tensors: sum(
            (out.sin() * torch.arange(1.0, out.numel() + 1).view_as(out)).sum()
            for out in function(*tensors)
        )

    arguments = tuple(range(len(inputs)))
    expected = jacrev(jacrev(total(definition), arguments), arguments)(*inputs)
    for outer, inner in ((jacfwd, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd), (jacrev, jacrev)):
        alike(outer(inner(total(call), arguments), arguments)(*inputs), expected)


def test_third_derivative_and_hessian():
    case = make(batch=1, steps=3, channels=1)
    rest = case.tensors[1:]
    results = []
    for function in (hgru_scan, plain_loop("hgru_scan")):

        def loss(x, function=function):
            return function(x, *rest)[0].pow(3).sum()

        results.append(
            [hessian(loss)(case.candidate), jacfwd(jacrev(jacfwd(loss)))(case.candidate)]
        )
    alike(*results)


def test_linearize_and_jacobians_agree_with_the_double_backward_trick():
    case = make(steps=4)
    call = lambda x: hgru_scan(x, *case.tensors[1:])[0]  # noqa: E731
    direction = torch.randn_like(case.candidate)
    expected = torch.autograd.functional.jvp(call, case.candidate, direction)[1]
    assert_close(linearize(call, case.candidate)[1](direction), expected)
    jacobian = torch.autograd.functional.jacobian
    assert_close(
        jacobian(call, case.candidate, vectorize=True, strategy="forward-mode"),
        jacobian(call, case.candidate),
    )
    assert_close(jacfwd(call)(case.candidate), jacobian(call, case.candidate))


@pytest.mark.parametrize("shared", [True, False])
def test_vmap_of_grad_and_grad_of_vmap(shared):
    """The gradients of each sample, with shared parameters and with a set for each sample."""
    case = make(batch=4, steps=5, channels=2)
    x, f, bound, theta, initial = case.tensors
    if not shared:
        bound = torch.stack([bound, bound / 2, bound, bound / 3])
        theta = theta * torch.randn(4, 1).double()

    def loss(bound, theta, x, f, initial):
        h, final = hgru_scan(x[None], f[None], bound, theta, initial[None])
        return h.square().sum() + final.sum()

    own = None if shared else 0
    each = [
        torch.func.grad(loss, (0, 1, 2, 3, 4))(
            bound if shared else bound[n], theta if shared else theta[n], x[n], f[n], initial[n]
        )
        for n in range(4)
    ]
    expected = [torch.stack(parts) for parts in zip(*each)]
    mapped = vmap(loss, (own, own, 0, 0, 0))
    alike(
        vmap(grad(loss, (0, 1, 2, 3, 4)), (own, own, 0, 0, 0))(bound, theta, x, f, initial),
        expected,
    )
    whole = grad(lambda *tensors: mapped(*tensors).sum(), (0, 1, 2, 3, 4))(
        bound, theta, x, f, initial
    )
    alike(whole, [part.sum(0) if shared and k < 2 else part for k, part in enumerate(expected)])


def test_a_bound_outside_of_its_range_is_seen_inside_of_a_transform():
    x = torch.randn(3, 1, 4, 2)
    with pytest.raises(ValueError, match="lower_bound must lie in"):
        vmap(grad(lambda x: hgru_scan(x, x, torch.tensor([0.5, 1.5]))[0].sum()))(x)


def test_gates_at_their_ends_have_finite_derivatives():
    """A gate of exactly 0 still lets a derivative through, here to the lower bound."""
    x = torch.randn(1, 3, 2)
    state = torch.ones(1, 2)
    forget = torch.tensor([-200.0, 200.0]).repeat(1, 3, 1)
    results = []
    for function in (hgru_scan, plain_loop("hgru_scan")):
        call = lambda *t, function=function: function(t[0], t[1], t[2], None, t[3])[0]  # noqa: E731
        results.append(jacfwd(call, (0, 1, 2, 3))(x, forget, torch.zeros(2), state))
        results[-1] += jacfwd(jacrev(lambda *t: call(*t).sum(), (1, 2)), (1, 2))(
            x, forget, torch.zeros(2), state
        )
    alike(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    case = make(steps=20, channels=4)
    inputs = [x.detach() for x in case.inputs(dtype)]
    direction = torch.randn_like(inputs[0])
    found = jvp(lambda x: hgru_scan(x, *inputs[1:])[0], (inputs[0],), (direction,))
    exact = [x.double() for x in inputs]
    expected = jvp(
        lambda x: plain_loop("hgru_scan")(x, *exact[1:])[0],
        (exact[0],),
        (direction.double(),),
    )
    for one, other in zip(found, expected):
        assert one.dtype == dtype
        assert_close(one, other, dtype)


def test_the_rest_of_a_layer():
    """Sizes from which each would go to an operator of ours."""
    x = torch.randn(2, 64, 128).double()
    gate = torch.randn(2, 64, 128).double()
    weight = torch.rand(128).double()
    bias = torch.rand(128).double()
    calls = {
        "gated_norm": lambda x, engine: gated_norm(x, gate, weight, bias, engine=engine),
        "gate first": lambda x, engine: gated_norm(
            x, gate, weight, bias, gate_first=True, engine=engine
        ),
        "gated_unit": lambda x, engine: gated_unit(x, engine=engine),
    }
    direction = torch.randn_like(x)
    for call in calls.values():
        expected = jvp(partial(call, engine="reference"), (x,), (direction,))
        for engine in (None, "numba"):
            alike(jvp(partial(call, engine=engine), (x,), (direction,)), expected)
            alike(
                grad(lambda x: call(x, engine).sum())(x),
                grad(lambda x: call(x, "reference").sum())(x),
            )


def test_linear_maps():
    x = torch.randn(3, 512)
    weight = torch.randn(600, 512)
    bias = torch.randn(600)
    direction = torch.randn_like(x)
    plain = torch.nn.functional.linear
    quantized = quantize_rows(weight)
    wide = quantized[0].float() * quantized[1][:, None]
    with torch.no_grad():  # where few rows go to a kernel
        alike(
            jvp(lambda x: linear(x, weight, bias), (x,), (direction,))[1], plain(direction, weight)
        )
        alike(
            jvp(lambda x: int8_linear(x, *quantized, bias), (x,), (direction,))[1],
            plain(direction, wide),
        )
    x.requires_grad_()
    alike(
        torch.autograd.grad(int8_linear(x, *quantized, bias).sum(), x)[0], wide.sum(0).expand(3, -1)
    )
    rows = torch.randn(300, 512)  # where many rows go to oneDNN
    alike(jvp(lambda x: linear(x, weight, bias), (rows,), (rows,))[1], plain(rows, weight))


def test_compiled_transforms():
    case = make(steps=4, channels=2)
    rest = case.tensors[1:]
    call = lambda x: hgru_scan(x, *rest)[0]  # noqa: E731
    direction = torch.randn_like(case.candidate)
    for function in (
        lambda x: jvp(call, (x,), (direction,))[1],
        lambda x: grad(lambda x: call(x).square().sum())(x),
        lambda x: vmap(call)(x.expand(2, *x.shape)),
    ):
        torch._dynamo.reset()
        assert_close(
            torch.compile(function, backend="aot_eager")(case.candidate), function(case.candidate)
        )


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the checks of arguments
def test_a_traced_program_computes():
    """torch.jit.trace sees the operators, and not what they computed for the example."""
    case = make(steps=4, channels=2, mask=True)
    arguments = [x.detach() for x in case.inputs(torch.float32)]

    class Scan(torch.nn.Module):
        def forward(self, *tensors):
            return hgru_scan(*tensors, mask=case.options["mask"])

    traced = torch.jit.trace(Scan(), tuple(arguments), check_trace=False)
    other = [arguments[0] + 1, *arguments[1:]]
    for found, expected in zip(traced(*other), Scan()(*other)):
        assert torch.equal(found, expected)
