"""Decoding: which bytes a step must read, and that a timed step leaves everything as it was."""

import pytest
import torch

from benchmarks.cpu import decoding
from benchmarks.cpu.models import transformer
from hgrn.errors import UserError
from hgrn.models import HGRNConfig, HGRNForCausalLM


def model(**fields) -> HGRNForCausalLM:
    return HGRNForCausalLM(
        HGRNConfig(vocab_size=100, hidden_size=16, num_hidden_layers=2, **fields)
    ).eval()


def test_a_tied_table_is_read_and_an_untied_one_is_not():
    tied = model()
    untied = model(tie_word_embeddings=False)
    assert decoding.weight_bytes(tied) == 4 * tied.num_parameters()
    assert decoding.weight_bytes(untied) == 4 * (untied.num_parameters() - 100 * 16)


def test_8_bit_weights_are_about_a_quarter_and_the_model_stays_as_it_was():
    full = model(bias=False)
    small = decoding.FORMATS["int8"](full)
    # It is more than a quarter because, in so narrow a model, scales and norms count.
    assert 0.25 < decoding.weight_bytes(small) / decoding.weight_bytes(full) < 0.5
    assert decoding.FORMATS["float32"](full) is full and full.lm_head.weight.dtype == torch.float32


def test_wrong_8_bit_products_are_refused(monkeypatch):
    from hgrn import ops

    right = ops.int8_linear
    monkeypatch.setattr(ops, "int8_linear", lambda *arguments: 1.01 * right(*arguments))
    with pytest.raises(UserError, match="int8_linear in float32"):
        decoding.check_int8(32)


def test_a_step_of_the_transformer_can_be_repeated():
    step = decoding.transformer_step(transformer(64, 2, 64, 100).eval(), 20)
    assert torch.equal(step(), step())
