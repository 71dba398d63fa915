"""The configuration: published sizes, and every mistake named at once."""

import pytest
import torch

from hgrn.models import HGRNConfig, HGRNForCausalLM


@pytest.mark.parametrize(
    "preset, parameters",
    [("wikitext103", 46_247_936), ("lm-150m", 146_065_920), ("lm-350m", 351_598_592), ("lm-1b", 975_704_064)],
)
def test_published_sizes(preset, parameters):
    with torch.device("meta"):
        model = HGRNForCausalLM(HGRNConfig.preset(preset))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_presets_are_overridden_field_by_field():
    config = HGRNConfig.preset("wikitext103", dropout=0.3)
    assert config.dropout == 0.3 and config.pad_token_id == 1 and config.intermediate_size == 1024
    small = HGRNConfig.preset("wikitext103", vocab_size=258, hidden_size=64, eos_token_id=256)
    assert small.intermediate_size == 128
    assert small.pad_token_id is None and small.eos_token_id == 256  # the published ids mean nothing here


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match="preset must be one of .*'lm-150M'; did you mean lm-150m"):
        HGRNConfig.preset("lm-150M")


def test_every_problem_is_named_at_once():
    with pytest.raises(ValueError) as error:
        HGRNConfig(
            hiden_size=3, vocab_size=0, num_hidden_layers=2.5, gate_rank=-1, glu_act="relu", dropout=1,
            bias="no", norm_eps=0, norm_type="batch", conv_size=0, eos_token_id=[1, -2], pad_token_id=[3], initialization="xavier",
            temperature=2.0,
        )  # fmt: skip
    message = str(error.value)
    assert "hiden_size: no such field; did you mean hidden_size?" in message
    for name in (
        "vocab_size", "num_hidden_layers", "gate_rank", "glu_act", "dropout", "bias", "norm_eps",
        "norm_type", "conv_size", "eos_token_id", "pad_token_id", "initialization", "temperature",
    ):  # fmt: skip
        assert f"\n  {name}: " in message
    assert "14 problem(s)" in message


def test_a_field_spoilt_later_is_not_saved(tmp_path):
    config = HGRNConfig()
    config.dropout = -1
    with pytest.raises(ValueError, match="dropout: must be a number"):
        config.save_pretrained(tmp_path)


def test_what_we_save_reloads(tmp_path):
    config = HGRNConfig(
        vocab_size=30, hidden_size=6, intermediate_size=7, gate_rank=2, eos_token_id=[1, 2], num_labels=5,
        dtype=torch.bfloat16, output_hidden_states=True, name_or_path="somewhere",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    again = HGRNConfig.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert again.num_labels == 5 and again.gate_rank == 2 and again.dtype == torch.bfloat16


def test_a_foreign_configuration_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "hgrn", "n_embd": 64}')
    with pytest.raises(ValueError, match="n_embd: no such field"):
        HGRNConfig.from_pretrained(tmp_path)
