"""The gate statistics, against the formula on a model small enough to follow."""

import torch

from hgrn.analysis.gates import gate_statistics
from hgrn.analysis.plots import forget_gates
from hgrn.models import HGRNConfig, HGRNForCausalLM


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
    forget_gates(layers, tmp_path / "gates.png")
    assert (tmp_path / "gates.png").stat().st_size > 10_000
