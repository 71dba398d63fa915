"""flash-linear-attention's layer (golden 13a, 13b): what its convolution skips and refuses."""

import pytest
import torch

from hgrn.models.published import from_published, load_published
from hgrn.modules import HGRU, Block, HGRU2d, ShortConvolution
from hgrn.modules.norms import gated_rms_norm
from tests.golden_files import read
from tests.tolerances import assert_close

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
LAYERS = {"13a_fla_hgrn_layer": {}, "13b_fla_hgrn_layer_conv": dict(conv_size=4)}


def noise(*shape, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64
    ).to(dtype)


@DTYPES
@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_is_that_of_flash_linear_attention(name, dtype):
    golden = read(name, dtype)
    layer = HGRU(16, complex_state=False, bias=False, norm_type="rms", **LAYERS[name]).to(dtype)
    load_published(layer, golden.parameters, "fla-layer")
    x = golden.input["x"].requires_grad_()
    lower_bound = golden.input["lower_bound"].requires_grad_()
    y, _ = layer(x, lower_bound)
    (y * golden.cotangent["y"]).sum().backward()

    assert_close(y, golden.output["y"], name="y")
    assert_close(layer(x)[0], golden.output["y_no_lower_bound"], name="y without bound")
    assert_close(x.grad, golden.grad_input["x"], name="grad x")
    assert_close(lower_bound.grad, golden.grad_input["lower_bound"], name="grad lower_bound")
    expected = from_published(golden.grad, "fla-layer")
    assert expected.keys() == dict(layer.named_parameters()).keys()
    for key, parameter in layer.named_parameters():
        assert_close(parameter.grad, expected[key], name=f"grad {key}")


def test_it_is_pytorchs_causal_depthwise_convolution():
    conv = ShortConvolution(5, 4).double()
    x = noise(2, 9, 5)
    padded = torch.nn.functional.pad(x.transpose(1, 2), (3, 0))
    expected = torch.nn.functional.conv1d(padded, conv.weight[:, None], groups=5).transpose(1, 2)
    y, state = conv(x)
    assert_close(y, expected)
    assert torch.equal(state, x[:, -3:])
    assert torch.equal(conv(x[:, :1])[1], torch.cat([torch.zeros(2, 2, 5), x[:, :1]], dim=1))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_masked_positions_are_not_there(size, packed):
    """At either end and inside, more in a row than the window is long, and in a whole sequence."""
    conv = ShortConvolution(3, size).double()
    rows = ["..xx.xxx", "xxxxxx..", "x....xx.", "........", "xxxxxxxx"]
    keep = torch.tensor([[c == "x" for c in row] for row in rows])
    x = noise(5, 8, 3).requires_grad_()
    state = noise(5, size - 1, 3).requires_grad_()
    if packed:
        y, after = conv(x.reshape(1, 40, 3), state, keep.reshape(1, 40), torch.arange(0, 41, 8))
        y = y.reshape(5, 8, 3)
    else:
        y, after = conv(x, state, keep)
    weight = noise(5, 8, 3)
    weight_after = noise(5, size - 1, 3)
    loss = (y[keep] * weight[keep]).sum() + (after * weight_after).sum()
    grads = torch.autograd.grad(loss, (x, state, conv.weight))

    # Each sequence by itself, without its masked positions, must give the same.
    alone = [conv(x[n : n + 1, keep[n]], state[n : n + 1]) for n in range(5)]
    assert_close(y[keep], torch.cat([y[0] for y, _ in alone]))
    assert_close(after, torch.cat([after for _, after in alone]))
    loss = (torch.cat([y[0] for y, _ in alone]) * weight[keep]).sum() + (
        torch.cat([s for _, s in alone]) * weight_after
    ).sum()
    for name, grad, expected in zip(
        "xsw", grads, torch.autograd.grad(loss, (x, state, conv.weight))
    ):
        assert_close(grad, expected, name=name)
    assert (grads[0][~keep] == 0).all()


def test_single_steps_may_be_masked():
    layer = HGRU(3, conv_size=4).double()
    x = noise(2, 6, 3)
    keep = torch.tensor(
        [[False, True, True, False, True, True], [True, True, False, False, False, True]]
    )
    whole, after = layer(x, mask=keep)
    state = None
    steps = []
    for t in range(6):
        y, state = layer(x[:, t : t + 1], state=state, mask=keep[:, t : t + 1])
        steps.append(y)
    assert_close(torch.cat(steps, dim=1)[keep], whole[keep])
    for part, expected in zip(state, after, strict=True):
        assert_close(part, expected)


def test_nan_does_not_leave_its_sequence_or_a_masked_position():
    conv = ShortConvolution(2, 4)
    x = noise(1, 12, 2, dtype=torch.float32)
    keep = torch.ones(1, 12, dtype=torch.bool)
    # One NaN at the end of the first sequence, one at a masked position of the last.
    x[0, [3, 6]] = torch.nan
    keep[0, 6] = False
    y, state = conv(x, mask=keep, cu_seqlens=torch.tensor([0, 4, 4, 12]))
    assert y[0, 3].isnan().all() and y[0, :3].isfinite().all()
    assert y[0, 4:][keep[0, 4:]].isfinite().all()
    assert state[0].isnan().any() and state[1:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_are_rounded_once(dtype):
    conv = ShortConvolution(3, 4)
    x = noise(2, 6, 3, dtype=dtype)
    gate = noise(3, 6, 3, dtype=dtype)[:2]
    conv.weight.data = conv.weight.data.to(dtype)
    y, state = conv(x)
    assert y.dtype == dtype and state.dtype == torch.float32
    assert torch.equal(y, conv.float()(x.float())[0].to(dtype))
    weight = torch.rand(3).to(dtype)
    for gate_first in (True, False):
        options = dict(eps=1e-6, activation="silu", gate_first=gate_first)
        wide = gated_rms_norm(x.float(), gate.float(), weight.float(), **options)
        assert torch.equal(gated_rms_norm(x, gate, weight, **options), wide.to(dtype))


def test_rms_norm_before_and_after_the_gate():
    x = noise(2, 5, 3)
    gate = noise(3, 5, 3)[:2]
    weight = noise(3)

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight

    options = dict(eps=1e-3, activation="sigmoid")
    assert_close(
        gated_rms_norm(x, gate, weight, **options, gate_first=False), norm(x) * gate.sigmoid()
    )
    assert_close(
        gated_rms_norm(x, gate, weight, **options, gate_first=True), norm(x * gate.sigmoid())
    )


def test_the_initial_state_is_that_of_no_state():
    for options in ({}, dict(conv_size=4), dict(conv_size=3, complex_state=False, norm_type="rms")):
        layer = HGRU(4, **options).double()
        x = noise(2, 5, 4)
        expected, after = layer(x)
        state = layer.initial_state(2)
        assert torch.equal(layer(x, state=state)[0], expected)
        for zeros, part in zip(state, after, strict=True):
            assert zeros.shape == part.shape and zeros.dtype == part.dtype


def test_what_does_not_go_together_is_named():
    with pytest.raises(
        ValueError, match="conv_size=4 goes neither with bidirectional=True nor with gate_rank"
    ):
        HGRU(4, conv_size=4, bidirectional=True)
    with pytest.raises(ValueError, match="conv_size=4 goes neither with"):
        HGRU(4, conv_size=4, gate_rank=2)
    with pytest.raises(ValueError, match="conv_size=4: an HGRU2d has no convolution"):
        HGRU2d(4, conv_size=4)
    with pytest.raises(
        ValueError, match=r"norm_type must be one of \('layer', 'rms', 'batch'\), got 'group'"
    ):
        Block(4, HGRU(4), torch.nn.Identity(), norm_type="group")
    layer = HGRU(4, conv_size=3)
    x = torch.randn(2, 5, 4)
    with pytest.raises(
        ValueError, match=r"a tuple of 2 tensor\(s\), as this layer returns it, got 1"
    ):
        layer(x, state=(torch.zeros(2, 8),))
    with pytest.raises(
        ValueError, match=r"convolution's state must have shape \(2, 2, 12\), got \(2, 3, 12\)"
    ):
        layer(x, state=(torch.zeros(2, 8), torch.zeros(2, 3, 12)))
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        layer(x, mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 5\), got \(2, 4\)"):
        layer(x, mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"cu_seqlens must start at 0, never fall, and end at the number .* \(5\)"
    ):
        layer(x[:1], cu_seqlens=torch.tensor([0, 4]))
