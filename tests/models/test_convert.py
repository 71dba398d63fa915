"""Published layouts in and out; the authors' language models (golden 09)."""

from dataclasses import replace

import pytest
import torch

from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.models.published import (
    LAYOUTS,
    ConversionError,
    from_published,
    load_published,
    to_published,
)
from hgrn.models.published.record import ROLL, SAME
from hgrn.modules import HGRU
from tests.golden_files import read
from tests.tolerances import assert_close, error

LANGUAGE_MODELS = {
    "09a_fairseq_lm_default": dict(glu_act="identity"),
    "09b_fairseq_lm_silu_glu": dict(glu_act="silu"),
    "09c_fairseq_lm_untied": dict(glu_act="identity", tie_word_embeddings=False),
}
LAYERS = {
    "01_hgru1d_causal": ("hgru", {}),
    "01b_hgru1d_causal_nobias": ("hgru", dict(bias=False)),
    "03_bihgru1d": ("bihgru", dict(bidirectional=True, shared_theta=False)),
    "05_bihgru2d": ("bihgru", dict(bidirectional=True, shared_theta=False)),
    "06a_hgrureal1d_causal": ("hgru-real", dict(complex_state=False)),
    "07_hgru1d_v3": ("hgru-low-rank", dict(gate_rank=6)),
}


def language_model(name: str, dtype: torch.dtype):
    golden = read(name, dtype)
    vocab_size, hidden_size = golden.parameters["decoder.embed_tokens.weight"].shape
    config = HGRNConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=golden.parameters["decoder.lower_bounds"].shape[0],
        pad_token_id=1,
        **LANGUAGE_MODELS[name],
    )
    model = HGRNForCausalLM(config).to(dtype).eval()
    load_published(model, golden.parameters, "fairseq-lm")
    return model, golden


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_are_the_authors(name, dtype):
    model, golden = language_model(name, dtype)
    output = model(golden.input["tokens"], output_hidden_states=True)
    assert_close(output.logits, golden.output["logits"])
    for index in range(model.config.num_hidden_layers):
        inner = golden.aux[f"inner_state_{index}"]
        assert_close(
            output.hidden_states[index], inner if inner.shape[0] == 2 else inner.transpose(0, 1)
        )
    assert_close(model.model.stack.bounds(), golden.aux["lower_bounds"])

    (output.logits * golden.cotangent["logits"]).sum().backward()
    expected = from_published(golden.grad, "fairseq-lm")
    assert expected.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[key], name=f"grad {key}")


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_the_tests_above_see_a_table_that_is_not_rolled(name, monkeypatch):
    lines = [
        line._replace(change=SAME) if line.change is ROLL else line
        for line in LAYOUTS["fairseq-lm"].lines
    ]
    spoilt = replace(LAYOUTS["fairseq-lm"], lines=tuple(lines))
    monkeypatch.setitem(LAYOUTS, "fairseq-lm", spoilt)
    model, golden = language_model(name, torch.float64)
    assert error(model(golden.input["tokens"]).logits, golden.output["logits"]) > 1e-3
    assert error(model.model.stack.bounds(), golden.aux["lower_bounds"]) > 1e-2


def test_the_loss_is_the_authors():
    model, golden = language_model("09a_fairseq_lm_default", torch.float64)
    targets = golden.input["targets"]
    shift_labels = targets.masked_fill(targets == 1, -100)
    loss = model(golden.input["tokens"], shift_labels=shift_labels, num_items_in_batch=1).loss
    expected = golden.aux["nll_sum_ignore_pad"].reshape(())
    assert_close(loss, expected, torch.float32)  # transformers makes the loss in float32


@pytest.mark.parametrize("name", [*LANGUAGE_MODELS, *LAYERS])
def test_in_and_out_again_gives_the_same_bits(name):
    if name in LANGUAGE_MODELS:
        layout = "fairseq-lm"
        module, golden = language_model(name, torch.float64)
    else:
        layout, options = LAYERS[name]
        golden = read(name)
        module = HGRU(golden.input["x"].shape[-1], **options).double()
        load_published(module, golden.parameters, layout)
    back = to_published(module, layout)
    assert back.keys() == golden.parameters.keys()
    for key, expected in golden.parameters.items():
        assert torch.equal(back[key], expected), key


def test_everything_that_does_not_fit_is_named():
    model, golden = language_model("09c_fairseq_lm_untied", torch.float64)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    tensors = dict(golden.parameters)
    del tensors["decoder.layers.1.self_attn.hgru.theta"], tensors["decoder.lower_bounds"]
    del tensors["decoder.layers.0.self_attn.hgru.lambda_proj.weight"]
    tensors["decoder.layers.0.glu.l4.weight"] = torch.zeros(3)
    tensors["decoder.layers.7.glu.l1.bias"] = torch.zeros(24)
    tensors["decoder.layer_norm.bias"] = torch.zeros(5)
    with pytest.raises(ConversionError) as error:
        load_published(model, tensors, "fairseq-lm")
    message = str(error.value)
    for line in (
        "7 problem(s)",
        "unexpected: decoder.layers.0.glu.l4.weight is not in the layout",
        "missing: model.stack.blocks.7.glu.gate_up_proj.bias is made of 2 tensors, of which only "
        "decoder.layers.7.glu.l1.bias",
        "missing: model.stack.blocks.0.mixer.in_proj.weight is made of 3 tensors",
        "reshaped: model.stack.norm.bias is (5,), in the model (12,)",
        "missing: model.stack.bounds.logits",
        "missing: model.stack.blocks.1.mixer.theta",
    ):
        assert line in message
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_tied_model_takes_both_copies_if_they_agree():
    model, golden = language_model("09a_fairseq_lm_default", torch.float64)
    tensors = dict(golden.parameters) | {"decoder.version": torch.tensor([3.0])}
    tensors["decoder.output_projection.weight"] = tensors["decoder.embed_tokens.weight"].clone()
    load_published(model, tensors, "fairseq-lm")
    tensors["decoder.output_projection.weight"][0, 0] += 1
    with pytest.raises(ConversionError, match="untied: lm_head.weight differs"):
        load_published(model, tensors, "fairseq-lm")


def test_half_a_pair_of_angles_is_missing():
    with pytest.raises(
        ConversionError,
        match="missing: theta is made of 2 tensors, of which only theta_forward is there, "
        "not theta_reverse",
    ):
        from_published({"theta_forward": torch.zeros(1, 1, 4)}, "bihgru")


def test_what_a_layout_cannot_hold_is_named():
    with pytest.raises(ConversionError, match="unexpected: theta"):
        to_published(HGRU(4), "hgru-real")
    with pytest.raises(
        ValueError, match="layout must be one of hgru, hgru-low-rank, bihgru, .*'hgrn'"
    ):
        from_published({"theta": torch.zeros(1)}, "hgrn")
