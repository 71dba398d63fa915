"""gated_norm and gated_unit: values and all gradients of the engine against their definition."""

import itertools

import pytest
import torch

from hgrn.ops import available_engines, gated_norm, gated_unit
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    "numba" not in available_engines("cpu"), reason="no registered engine works here"
)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# One task and several; channels that fill vectors and that do not; leading axes of every kind.
SHAPES = ((1, 1), (5, 3), (2, 65, 48), (3, 2, 2, 37), (130, 16), (0, 7))
NORMS = list(itertools.product(("identity", "silu", "sigmoid"), (False, True)))


def tensors(shape, *, spread=3.0, seed=0):
    """x, gate, weight, bias and an upstream gradient in float64. Some gates are saturated."""
    generator = torch.Generator().manual_seed(seed)
    x, gate, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    weight, bias = (
        torch.randn(shape[-1], generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return x + 0.5, gate * spread, weight, bias, grad


def run(function, inputs, grad, **options):
    """The result and the gradients of all inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs, **options)
    return y, torch.autograd.grad(y, inputs, grad.to(y.dtype))


@pytest.mark.parametrize("activation, gate_first", NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_norm_is_its_definition(dtype, shape, activation, gate_first):
    x, gate, weight, bias, grad = tensors(shape)
    rounded = [x.to(dtype), gate.to(dtype), weight, bias]
    options = {"activation": activation, "gate_first": gate_first}
    y, grads = run(gated_norm, rounded, grad.to(dtype), engine="numba", **options)
    expected, exact = run(
        gated_norm,
        [x.double() for x in rounded],
        grad.to(dtype).double(),
        engine="reference",
        **options,
    )
    assert y.dtype == dtype
    if shape[-1] == 1:  # a row of one channel is its own mean, so only rounding is left
        return
    assert_close(y, expected, dtype, "y")
    for name, found, wanted in zip(("x", "gate", "weight", "bias"), grads, exact):
        assert_close(found, wanted, dtype, f"grad {name}")


@pytest.mark.parametrize("activation", ["identity", "silu", "sigmoid"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_unit_is_its_definition(dtype, shape, activation):
    x, gate, _, _, grad = tensors(shape, spread=30.0)
    rounded = [torch.cat([gate, x], -1).to(dtype)]
    y, (found,) = run(gated_unit, rounded, grad.to(dtype), engine="numba", activation=activation)
    expected, (wanted,) = run(
        gated_unit,
        [rounded[0].double()],
        grad.to(dtype).double(),
        engine="reference",
        activation=activation,
    )
    assert_close(y, expected, dtype, "y")
    for half, name in enumerate(("gate", "up")):
        assert_close(found.chunk(2, -1)[half], wanted.chunk(2, -1)[half], dtype, f"grad {name}")


@pytest.mark.parametrize("gate_first", [False, True])
def test_gradcheck_of_both_orders(gate_first):
    x, gate, weight, bias, _ = (t.requires_grad_() for t in tensors((3, 5)))

    def norm(*inputs):
        return gated_norm(*inputs, gate_first=gate_first, engine="numba")

    assert torch.autograd.gradcheck(norm, (x, gate, weight, bias)) and torch.autograd.gradgradcheck(
        norm, (x, gate, weight, bias)
    )


def test_gradcheck_of_the_unit():
    x, gate, *_ = (t.requires_grad_() for t in tensors((3, 5)))

    def unit(*inputs):
        return gated_unit(torch.cat(inputs, -1), engine="numba")

    assert torch.autograd.gradcheck(unit, (gate, x)) and torch.autograd.gradgradcheck(
        unit, (gate, x)
    )


def test_strided_parts_of_one_tensor():
    """Parts of a fused projection need no copy, and the result is the same."""
    packed, (_, _, weight, bias, _) = torch.randn(2, 9, 96), tensors((1, 48))
    x, gate = packed.chunk(2, -1)
    whole = [x.contiguous(), gate.contiguous(), weight, bias]
    assert torch.equal(
        gated_norm(x, gate, weight, bias, engine="numba"), gated_norm(*whole, engine="numba")
    )
    assert torch.equal(gated_unit(x, engine="numba"), gated_unit(whole[0], engine="numba"))


def test_small_calls_and_large_ones_are_the_same_function():
    x, gate, weight, bias, _ = (t.float() for t in tensors((300, 64)))
    for function, rows, shared in ((gated_norm, (x, gate), (weight, bias)), (gated_unit, (x,), ())):
        small = [function(*(t[n : n + 20] for t in rows), *shared) for n in range(0, 300, 20)]
        assert_close(torch.cat(small), function(*rows, *shared))


def test_nan_stays_in_its_row():
    x, gate, weight, bias, _ = (t.float() for t in tensors((4, 40)))
    x[1, 3] = torch.nan
    for y in (
        gated_norm(x, gate, weight, bias, engine="numba"),
        gated_norm(gate, x, weight, bias, gate_first=True, engine="numba"),
    ):
        assert y[1].isnan().all() and y[[0, 2, 3]].isfinite().all()
    y = gated_unit(torch.cat([x, gate], -1), engine="numba")
    assert y[1, 3].isnan() and y.isnan().sum() == 1


def test_opcheck():
    x, gate, weight, bias, _ = (t.requires_grad_() for t in tensors((3, 5)))
    torch.library.opcheck(
        torch.ops.hgrn.gated_norm.default, (x, gate, weight, bias, 1e-5, "silu", True, "numba")
    )
    torch.library.opcheck(
        torch.ops.hgrn.gated_unit.default,
        (torch.cat([gate, x], -1).detach().requires_grad_(), "silu", "numba"),
    )


def test_wrong_arguments_are_named():
    x = torch.randn(2, 4)
    weight = torch.ones(4)
    with pytest.raises(
        ValueError, match=r"x and gate must have the same shape, .* \(2, 4\) .* \(2, 3\)"
    ):
        gated_norm(x, x[:, :3], weight, weight)
    with pytest.raises(ValueError, match=r"weight and bias must have shape \(4,\)"):
        gated_norm(x, x, weight[:3], weight)
    with pytest.raises(
        ValueError, match="activation must be one of identity, silu, sigmoid, got 'relu'"
    ):
        gated_unit(x, activation="relu")
    with pytest.raises(
        ValueError,
        match=r"x must have an even number of channels, \[gate \| up\], got shape \(2, 3\)",
    ):
        gated_unit(x[:, :3])
