"""Linear maps of few rows against the product: in float32, with 8-bit weights, whole models."""

import pytest
import torch

from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.modules import Int8Linear, quantize_int8
from hgrn.ops import available_engines, int8_linear, linear, linear_maps, quantize_rows
from hgrn.ops.cpu import launch
from hgrn.ops.cpu.program import Program
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    "numba" not in available_engines("cpu"), reason="no registered engine works here"
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 520), (8, 512), (2, 1, 520), (2, 3, 601)], ids=str)
def test_few_rows_against_large_weights_are_the_product(shape, bias, monkeypatch):
    ran = []
    monkeypatch.setattr(
        launch, "linear", lambda *arguments, real=launch.linear: ran.append(1) or real(*arguments)
    )
    x = torch.randn(shape)
    weight = torch.randn(517, shape[-1])
    shift = torch.randn(517) if bias else None
    expected = torch.nn.functional.linear(
        x.double(), weight.double(), shift.double() if bias else None
    )
    with torch.no_grad():
        found = linear(x, weight, shift)
        assert_close(found, expected)
        strided = torch.randn(517, 2 * shape[-1])[:, ::2]
        assert_close(linear(x, strided), x.double() @ strided.double().T)
    assert len(ran) == 2 and found.shape == (*shape[:-1], 517)


@pytest.mark.skipif(not linear_maps._HAS_ONEDNN, reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(600, 300), (3, 201, 300)], ids=str)
def test_large_products_and_their_gradients(shape, bias, monkeypatch):
    ran = []
    monkeypatch.setattr(
        linear_maps,
        "product",
        lambda *given, real=linear_maps.product: ran.append(1) or real(*given),
    )
    x = torch.randn(shape)
    weight = torch.randn(400, 300)
    shift = torch.randn(400)
    tensors = [tensor.requires_grad_() for tensor in ([x, weight, shift] if bias else [x, weight])]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y = linear(*tensors)
    expected = torch.nn.functional.linear(*exact)
    cotangent = torch.randn(y.shape)
    assert_close(y, expected)
    assert len(ran) == 1 and y.shape == (*shape[:-1], 400)
    grads = torch.autograd.grad(y, tensors, cotangent)
    true = torch.autograd.grad(expected, exact, cotangent.double())
    assert len(ran) == 2
    for found, right in zip(grads, true, strict=True):
        assert_close(found, right)
    # An expanded cotangent, and gradients of only some inputs.
    (found,) = torch.autograd.grad(linear(x.detach(), *tensors[1:]).sum(), weight)
    assert_close(
        found,
        torch.autograd.grad(
            torch.nn.functional.linear(exact[0].detach(), *exact[1:]).sum(), exact[1]
        )[0],
    )


@pytest.mark.skipif(not linear_maps._HAS_ONEDNN, reason="this PyTorch has no oneDNN")
def test_second_derivatives_of_large_products():
    def curvature(function, x, weight):
        (grad,) = torch.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [x, weight])

    x = torch.randn(600, 300, requires_grad=True)
    weight = torch.randn(400, 300, requires_grad=True)
    exact = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    for found, right in zip(
        curvature(linear, x, weight), curvature(torch.nn.functional.linear, *exact), strict=True
    ):
        assert_close(found, right)


def test_what_the_kernel_is_not_for_is_pytorch_s(monkeypatch):
    """More rows, gradients, other dtypes, small weights, autocast: the same bits as `F.linear`."""
    monkeypatch.setattr(launch, "linear", None)
    monkeypatch.setattr(linear_maps, "product", None)
    weight = torch.randn(517, 512)
    x = torch.randn(1, 512)
    with torch.no_grad():
        for a, b in (
            (torch.randn(9, 512), weight),
            (x.double(), weight.double()),
            (x, weight[:5]),
            (x.bfloat16(), weight.bfloat16()),
            (torch.randn(900, 512, dtype=torch.float64), weight.double()),
        ):
            assert torch.equal(linear(a, b), torch.nn.functional.linear(a, b))
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            linear(x[:, 1:], weight)
    weight.requires_grad_()
    (grad,) = torch.autograd.grad(linear(x, weight).sum(), weight)
    assert torch.equal(grad, x.expand_as(weight))


def test_rounding_is_within_half_a_scale_and_uses_the_whole_range():
    weight = torch.randn(7, 33) * torch.tensor([1e-6, 1, 1e6, 1, 1, 1, 0])[:, None]
    integers, scale = quantize_rows(weight)
    assert (
        integers.dtype == torch.int8
        and (integers[:6].abs().amax(1) == 127).all()
        and (integers[6] == 0).all()
    )
    assert ((integers * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17), (1, 5, 64), (9, 100), (2, 0, 8)], ids=str)
@pytest.mark.parametrize("out", [1, 63, 130])
def test_the_kernel_is_the_product_with_the_widened_weights(shape, out, bias):
    x, (weight, scale) = torch.randn(shape), quantize_rows(torch.randn(out, shape[-1]))
    shift = torch.randn(out) if bias else None
    expected = x.double() @ (weight.double() * scale.double()[:, None]).T + (
        shift.double() if bias else 0
    )
    assert_close(int8_linear(x, weight, scale, shift, engine="numba"), expected, torch.float32)
    assert_close(int8_linear(x, weight, scale, shift, engine="reference"), expected, torch.float32)


def test_a_quantized_model_still_is_nearly_the_model():
    """Weights move by less than 0.4 % of a row's largest, and logits accordingly."""
    torch.manual_seed(0)
    model = HGRNForCausalLM(HGRNConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2)).eval()
    ids = torch.randint(0, 50, (2, 20))
    with torch.no_grad():
        before = model(ids).logits
        quantize_int8(model)
        kinds = {type(part).__name__ for part in model.modules()}
        after = model(ids).logits
        stepwise = []
        cache = None
        for t in range(20):
            output = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            stepwise.append(output.logits)
    assert "Linear" not in kinds and "Int8Linear" in kinds
    assert 0 < (after - before).norm() / before.norm() < 0.02
    assert_close(torch.cat(stepwise, 1), after)
    assert model.model.embed_tokens.weight.dtype == torch.float32


def test_a_saved_layer_is_the_layer():
    layer = Int8Linear(torch.nn.Linear(6, 5))
    x = torch.randn(2, 6)
    other = Int8Linear(torch.nn.Linear(6, 5))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_what_does_not_fit_is_named():
    weight, scale = quantize_rows(torch.randn(4, 3))
    for x in (torch.randn(2, 5), torch.randn(2, 3).double()):
        with pytest.raises(
            ValueError, match=r"int8_linear takes float32 x \[\.\.\., 3\], int8 weight \[4, 3\]"
        ):
            int8_linear(x, weight, scale)


def test_a_program_makes_no_call_once_a_watched_tensor_has_changed():
    x = torch.randn(1, 6)
    weight = torch.randn(5, 6)
    y = torch.zeros(1, 5)
    watched = torch.tensor([1.0, torch.nan])
    program = Program()
    program.linear(x, weight, None, y)
    program.watch(watched)
    assert program.run()
    assert_close(y, x @ weight.T)
    y.zero_()
    watched[0] = 2
    assert not program.run() and not y.any()
    # The program is of no use any more, even if the old values come back.
    watched[0] = 1
    assert not program.run() and not y.any()
