"""HGRU and HGRU2d against the authors' layers (golden 01 to 08), and what they refuse."""

import copy
import pickle

import pytest
import torch

from hgrn.models.published import from_published, load_published
from hgrn.modules import HGRU, HGRU2d
from hgrn.modules.hgru import scan_directions
from hgrn.modules.short_conv import own_halo
from tests.golden_files import read
from tests.tolerances import RELATIVE, assert_close

BI = dict(bidirectional=True)
LAYERS = {
    "01_hgru1d_causal": (HGRU, "hgru", {}),
    "01b_hgru1d_causal_nobias": (HGRU, "hgru", dict(bias=False)),
    "01c_hgru1d_causal_longmem": (HGRU, "hgru", {}),
    "02_hgru1d_noncausal": (HGRU, "hgru", BI),
    "03_bihgru1d": (HGRU, "bihgru", BI | dict(shared_theta=False)),
    "04a_hgru2d_causal": (HGRU2d, "hgru", {}),
    "04b_hgru2d_noncausal": (HGRU2d, "hgru", BI),
    "05_bihgru2d": (HGRU2d, "bihgru", BI | dict(shared_theta=False)),
    "06a_hgrureal1d_causal": (HGRU, "hgru-real", dict(complex_state=False)),
    "06b_hgrureal1d_noncausal": (HGRU, "hgru-real", BI | dict(complex_state=False)),
    "06c_hgrureal2d": (HGRU2d, "hgru-real", BI | dict(complex_state=False)),
    "07_hgru1d_v3": (
        HGRU,
        "hgru-low-rank",
        dict(gate_rank=6, gate_act="sigmoid", gate_position="before_norm"),
    ),
    "07b_hgru1d_v2": (HGRU, "hgru-low-rank", dict(gate_rank=5, gate_act="sigmoid")),
    "08_hgru1d_stepwise": (HGRU, "hgru", {}),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


def batch_first(x: torch.Tensor) -> torch.Tensor:
    """The authors put the batch just before the channels."""
    return x.movedim(-2, 0)


def make(name: str, dtype: torch.dtype):
    kind, layout, options = LAYERS[name]
    golden = read(name, dtype)
    layer = kind(golden.input["x"].shape[-1], **options).to(dtype)
    load_published(layer, golden.parameters, layout)
    return layer, golden


@DTYPES
@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("08")])
def test_outputs_and_gradients_are_the_authors(name, dtype):
    layer, golden = make(name, dtype)
    x = batch_first(golden.input["x"]).requires_grad_()
    lower_bound = golden.input["lower_bound"].requires_grad_()
    y, _ = layer(x, lower_bound)
    (y * batch_first(golden.cotangent["y"])).sum().backward()

    assert_close(y, batch_first(golden.output["y"]), name="y")
    assert_close(layer(x)[0], batch_first(golden.output["y_lower_bound_0"]), name="y without bound")
    assert_close(x.grad, batch_first(golden.grad_input["x"]), name="grad x")
    assert_close(lower_bound.grad, golden.grad_input["lower_bound"], name="grad lower_bound")
    expected = from_published(golden.grad, LAYERS[name][1])
    assert expected.keys() == dict(layer.named_parameters()).keys()
    for key, parameter in layer.named_parameters():
        assert_close(parameter.grad, expected[key], name=f"grad {key}")


@DTYPES
@pytest.mark.parametrize("start", ["", "_from_state"])
def test_single_steps_are_the_authors(start, dtype):
    layer, golden = make("08_hgru1d_stepwise", dtype)
    x = batch_first(golden.input["x"])
    state = None
    if start:
        state = (
            torch.cat(
                [golden.input["initial_state_real"], golden.input["initial_state_imag"]], dim=-1
            ),
        )
    for t in range(x.shape[1]):
        y, state = layer(x[:, t : t + 1], golden.input["lower_bound"], state)
        assert_close(y[:, 0], golden.output[f"y{start}"][t], name=f"y at {t}")
        real, imag = state[0].chunk(2, dim=-1)
        assert_close(real, golden.output[f"state_real{start}"][t], name=f"real state at {t}")
        assert_close(imag, golden.output[f"state_imag{start}"][t], name=f"imaginary state at {t}")


def test_theta_starts_as_published_and_stays_wide():
    layer = HGRU(5).to(torch.bfloat16)
    expected = torch.tensor([10000.0 ** (-2 * j / 5) for j in range(5)])
    assert layer.theta.dtype == torch.float32 and layer.out_proj.weight.dtype == torch.bfloat16
    assert_close(layer.theta, expected)
    y, (state,) = layer(torch.randn(2, 3, 5, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32 and y.isfinite().all()
    assert layer.double().theta.dtype == torch.float64


def test_gradients_of_wide_parameters_move_with_them():
    layer = HGRU(4)
    layer(torch.randn(1, 3, 4))[0].sum().backward()
    layer.half()
    assert layer.theta.grad.dtype == layer.theta.dtype == torch.float32
    assert layer.out_proj.weight.grad.dtype == torch.float16


def test_a_state_that_the_layer_cannot_take_is_an_error():
    layer = HGRU(4, bidirectional=True)
    x = torch.randn(2, 3, 4)
    y, state = layer(x)
    assert y.shape == x.shape and state is None
    with pytest.raises(ValueError, match="bidirectional.*state=None"):
        layer(x, state=(torch.zeros(2, 8),))
    with pytest.raises(ValueError, match=r"initial_state must have shape \(2, 8\)"):
        HGRU(4)(x, state=(torch.zeros(3, 8),))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(gate_position="middle"), "gate_position must be one of .*'middle'"),
        (dict(gate_act="relu"), "gate_act must be one of .*'relu'"),
        (dict(norm_type="batch"), r"norm_type must be one of \('layer', 'rms'\), got 'batch'"),
        (dict(shared_theta=False), "shared_theta=False needs bidirectional=True"),
        (
            dict(shared_theta=False, bidirectional=True, complex_state=False),
            "shared_theta=False needs",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HGRU(4, **options)


@pytest.mark.parametrize(
    "layer, x", [(HGRU(4), (2, 3, 5)), (HGRU(4), (3, 4)), (HGRU2d(4), (2, 3, 4))]
)
def test_wrong_shapes_are_named(layer, x):
    with pytest.raises(ValueError, match=r"x must have shape \[B.*D = 4"):
        layer(torch.randn(x))


CALLS = []


@torch.compiler.disable
def counted_scan(*arguments, **options):
    CALLS.append("scan")
    return scan_directions(*arguments, **options)


@torch.compiler.disable
def counted_halo(*arguments):
    CALLS.append("halo")
    return own_halo(*arguments)


def replace_hooks(layer):
    layer.scan = counted_scan
    layer.short_conv.halo = counted_halo


@torch.no_grad()
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_replaced_scan_and_halo_are_called_until_they_are_taken_away(is_compiled):
    layer = HGRU(4, conv_size=3)
    called = torch.compile(layer, backend="eager") if is_compiled else layer
    x = torch.randn(1, 5, 4)
    expected = called(x)[0]
    CALLS.clear()
    replace_hooks(layer)
    assert_close(called(x)[0], expected)
    assert CALLS == ["halo", "scan"]
    del layer.scan
    del layer.short_conv.halo
    assert_close(called(x)[0], expected)
    assert CALLS == ["halo", "scan"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_keep_a_replaced_scan_and_halo(copied):
    layer = HGRU(4, conv_size=3)
    replace_hooks(layer)
    CALLS.clear()
    copied(layer)(torch.randn(1, 5, 4))
    assert CALLS == ["halo", "scan"]


def test_the_table_is_not_loosened():
    assert RELATIVE[torch.float64] <= 1e-10 and RELATIVE[torch.float32] <= 8e-5
