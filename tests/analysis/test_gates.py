"""The gate statistics, against the formula on a model small enough to follow."""

import pytest
import torch

from hgrn.analysis import forget_gates, gate_statistics
from hgrn.analysis.gate_plots import horizons
from hgrn.analysis.plots import gates_of_layers
from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.modules import Mixer


def test_statistics_are_those_of_the_formula():
    torch.manual_seed(0)
    model = HGRNForCausalLM(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=3)).train()
    torch.nn.init.normal_(model.model.stack.bounds.logits)
    ids = torch.randint(11, (2, 20))
    layers = gate_statistics(model, ids)
    assert model.training and len(layers) == 3

    shares = model.model.stack.bounds.logits.softmax(0)
    for number, layer in enumerate(layers):
        torch.testing.assert_close(layer.lower_bound, shares[:number].sum(0))
        assert (
            (layer.lower_bound <= layer.low).all()
            and (layer.low <= layer.mean).all()
            and (layer.mean <= layer.high).all()
        )
        assert (layer.high < 1).all()

    model.eval()
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    second = model.model.stack.blocks[1]
    opened = torch.sigmoid(second.mixer.project(second.mixer_norm(states[1]))[1])
    expected = shares[0] + (1 - shares[0]) * opened
    torch.testing.assert_close(layers[1].mean, expected.mean((0, 1)))
    assert not second.mixer._forward_pre_hooks


def test_without_lower_bounds(tmp_path):
    model = HGRNForCausalLM(
        HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, use_lower_bound=False)
    )
    ids = torch.randint(11, (2, 20))
    layers = gate_statistics(model, ids)
    block = model.model.stack.blocks[0]
    assert [layer.lower_bound for layer in layers] == [None, None]
    first = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(
        layers[0].mean, torch.sigmoid(block.mixer.project(block.mixer_norm(first))[1]).mean((0, 1))
    )
    gates_of_layers(layers, tmp_path / "gates.png")
    assert (tmp_path / "gates.png").stat().st_size > 10_000


@pytest.mark.parametrize("options", [{}, {"conv_size": 3}, {"mixer": "hgrn2"}], ids=str)
def test_gates_of_every_position(options):
    torch.manual_seed(0)
    config = HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=3, **options)
    model = HGRNForCausalLM(config).train()
    torch.nn.init.normal_(model.model.stack.bounds.logits)
    ids = torch.randint(11, (20,))
    found = forget_gates(model, ids)
    assert found.shape == (3, 20, 8) and model.training
    model.eval()
    states = model(input_ids=ids[None], output_hidden_states=True).hidden_states
    for layer, bound in enumerate(model.model.stack.lower_bounds()):
        block = model.model.stack.blocks[layer]
        forget = block.mixer.project(block.mixer_norm(states[layer]))[1]
        expected = bound + (1 - bound) * torch.sigmoid(forget[0])
        torch.testing.assert_close(found[layer], expected)
        assert not block.mixer._forward_pre_hooks


def test_what_has_no_gates_is_refused():
    class Blind(Mixer):
        """Mixes nothing."""

        def __init__(self, dim, **_):
            super().__init__()

        def forward(self, x, *_):
            return x, ()

    model = HGRNForCausalLM(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2))
    with pytest.raises(ValueError, match=r"\[T\] with T >= 1, got shape \(1, 3\)"):
        forget_gates(model, torch.zeros(1, 3, dtype=torch.long))
    model.model.stack.blocks[1].mixer = Blind(8)
    with pytest.raises(TypeError, match="layer 2 has a Blind, whose forget gates are not known"):
        forget_gates(model, torch.arange(3))
    assert not model.model.stack.blocks[0].mixer._forward_pre_hooks


def test_horizons_are_tokens():
    found = horizons(torch.tensor([0.0, 0.5, 0.9, 1.0], dtype=torch.double))
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 10.0, 1e6], dtype=torch.double))
