"""Modules under torch.func and with parametrizations, as users treat an nn.LSTM or nn.Linear."""

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.parametrize import register_parametrization

from hgrn.modules import HGRN, layer_matrices, no_decay_names, quantize_int8
from tests.tolerances import assert_close

# PyTorch's own rules for jvp use torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
FLA = dict(conv_size=3, norm_type="rms", complex_state=False)
STACKS = {
    "plain": {},
    "bidirectional": dict(bidirectional=True, shared_theta=False),
    "fla": FLA,
    "low rank": dict(gate_rank=3, gate_position="before_norm"),
    "batch norm": dict(norm_type="batch"),
    "grid": dict(grid=True),
}


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS.keys())
def test_per_sample_gradients_and_tangents(options):
    torch.manual_seed(0)
    rnn = HGRN(8, 2, **options).double().eval()
    x = torch.randn((3, 4, 5, 8) if options.get("grid") else (3, 5, 8)).double()
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(parameters, sample):
        return functional_call(rnn, parameters, (sample[None],))[0].pow(3).sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for n in range(3):
        expected = torch.autograd.grad(rnn(x[n : n + 1])[0].pow(3).sum(), list(rnn.parameters()))
        for (name, _), true in zip(rnn.named_parameters(), expected, strict=True):
            assert_close(found[name][n], true, name=name)
    direction = torch.randn_like(x)
    expected = torch.autograd.functional.jvp(lambda x: rnn(x)[0], x, direction)[1]
    assert_close(jvp(lambda x: rnn(x)[0], (x,), (direction,))[1], expected)


@pytest.mark.parametrize("options", [{}, FLA], ids=["plain", "fla"])
def test_tangents_with_mask_packing_and_state(options):
    """Tangents of the input, of the state that enters, and of every parameter."""
    torch.manual_seed(0)
    rnn = HGRN(8, 2, **options).double()
    x = torch.randn(1, 6, 8).double()
    kinds = (
        {"mask": torch.tensor([[True, False, True, True, False, True]])},
        {"cu_seqlens": torch.tensor([0, 2, 6])},
    )
    for where in kinds:
        _, state = rnn(x, **where)
        inputs = (
            x,
            *(part.detach() for entry in state for part in entry),
            *(p.detach() for p in rnn.parameters()),
        )
        names = [name for name, _ in rnn.named_parameters()]
        parts = len(state[0])

        def call(x, *rest):
            count = 2 * parts
            state = tuple(tuple(rest[n : n + parts]) for n in range(0, count, parts))
            return functional_call(rnn, dict(zip(names, rest[count:])), (x, state), where)[0]

        directions = tuple(torch.randn_like(part) for part in inputs)
        expected = torch.autograd.functional.jvp(call, inputs, directions)[1]
        assert_close(jvp(call, inputs, directions)[1], expected)


class Same(torch.nn.Module):
    def forward(self, x):
        return x

    def right_inverse(self, x):
        return x


def test_parametrized_parameters_stay_wide_are_not_decayed_and_learn():
    rnn = HGRN(8, 2)
    register_parametrization(rnn.blocks[0].mixer, "theta", Same())
    register_parametrization(rnn.bounds, "logits", Same())
    register_parametrization(rnn.blocks[1].mixer.in_proj, "weight", Same())
    names = {
        "blocks.0.mixer.parametrizations.theta.original",
        "bounds.parametrizations.logits.original",
    }
    assert names < no_decay_names(rnn)
    assert "blocks.1.mixer.in_proj.parametrizations.weight.original" not in no_decay_names(rnn)
    assert layer_matrices(rnn).keys() < dict(rnn.named_parameters()).keys()
    rnn.to(torch.bfloat16)
    assert all(rnn.get_parameter(name).dtype == torch.float32 for name in names)
    rnn(torch.randn(1, 4, 8, dtype=torch.bfloat16))[0].sum().backward()
    assert all(p.grad is not None for p in rnn.parameters())
    # A warning here would fail: the gradients are converted as well.
    rnn.float()


def test_parametrized_weights_are_quantized_as_they_are():
    class Twice(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    rnn = HGRN(8, 1).eval()
    x = torch.randn(1, 4, 8)
    register_parametrization(rnn.blocks[0].mixer.in_proj, "weight", Twice())
    with torch.no_grad():
        expected = rnn(x)[0]
        assert (quantize_int8(rnn)(x)[0] - expected).abs().max() < 0.05 * expected.abs().max()
