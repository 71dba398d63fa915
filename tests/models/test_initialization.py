"""Initialisation works from meta and leaves loaded tensors alone; bounds stay float32."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForImageClassification,
    HGRNForSequenceClassification,
)
from hgrn.models.published.tensors import named_tensors
from hgrn.modules.hgru import initial_theta
from tests.tolerances import assert_close

CONFIG = dict(vocab_size=40, hidden_size=64, num_hidden_layers=2, pad_token_id=3)


def spread(x: torch.Tensor) -> float:
    return x.float().pow(2).mean().sqrt().item()


def check_pytorch(model: HGRNForCausalLM) -> None:
    """As in the authors' fairseq.

    Linear maps are uniform within 1 / sqrt(fan in), embeddings N(0, 1 / sqrt(d)), the pad row zero.
    """
    table = model.model.embed_tokens.weight
    assert spread(table[4:]) == pytest.approx(64**-0.5, rel=0.1) and (table[3] == 0).all()
    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            limit = module.in_features**-0.5
            for p in module.parameters():
                assert p.abs().max() <= limit, name
                assert spread(p) == pytest.approx(limit / math.sqrt(3), rel=0.2), name
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    for block in model.model.stack.blocks:
        assert_close(block.mixer.theta, initial_theta(64))
    assert (model.model.stack.bounds.logits == 0).all()


def test_the_pytorch_scheme():
    torch.manual_seed(0)
    check_pytorch(HGRNForCausalLM(HGRNConfig(**CONFIG)))


def test_the_normal_scheme():
    torch.manual_seed(0)
    model = HGRNForCausalLM(
        HGRNConfig(**CONFIG, initialization="normal", tie_word_embeddings=False)
    )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert spread(module.weight) == pytest.approx(0.02, rel=0.1), name
            assert module.bias is None or (module.bias == 0).all(), name
    assert spread(model.model.embed_tokens.weight[4:]) == pytest.approx(0.02, rel=0.1)
    assert_close(model.model.stack.blocks[0].mixer.theta, initial_theta(64))


@pytest.mark.parametrize("scheme, wanted", [("pytorch", 3**-0.5 / 2), ("normal", 0.02)])
def test_rms_norms_and_convolutions(scheme, wanted):
    torch.manual_seed(0)
    with torch.device("meta"):
        model = HGRNForCausalLM(
            HGRNConfig(**CONFIG, initialization=scheme, norm_type="rms", conv_size=4)
        )
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("short_conv.weight"):
            assert (
                spread(parameter) == pytest.approx(wanted, rel=0.1)
                and parameter.abs().max() <= 6 * wanted
            )
        assert parameter.isfinite().all(), name


@pytest.mark.parametrize("kind", [HGRNForSequenceClassification, HGRNForImageClassification])
def test_batch_norms_and_the_scheme_of_long_range_arena(kind):
    """Embeddings N(0, 1), linear maps as PyTorch's, statistics of nothing."""
    torch.manual_seed(0)
    options = dict(patch_size=2, grid=True) if kind is HGRNForImageClassification else {}
    config = HGRNConfig(
        vocab_size=40,
        hidden_size=64,
        num_hidden_layers=2,
        bidirectional=True,
        norm_type="batch",
        initialization="lra",
        **options,
    )
    with torch.device("meta"):
        model = kind(config)
    assert all(tensor.is_meta for tensor in named_tensors(model).values())
    model.to_empty(device="cpu")
    for tensor in named_tensors(model).values():
        tensor.data.fill_(math.nan if tensor.is_floating_point() else 7)
    model.init_weights()
    expected = {
        "running_mean": 0,
        "running_var": 1,
        "num_batches_tracked": 0,
        "norm.weight": 1,
        "norm.bias": 0,
    }
    for name, tensor in named_tensors(model).items():
        value = next((value for end, value in expected.items() if name.endswith(end)), None)
        assert tensor.isfinite().all() and (value is None or (tensor == value).all()), name
    if kind is HGRNForImageClassification:
        weight = model.model.embed_patches.proj.weight
        assert weight.abs().max() <= 12**-0.5 and spread(weight) == pytest.approx(
            12**-0.5 / math.sqrt(3), rel=0.2
        )
    else:
        assert spread(model.model.embed_tokens.weight) == pytest.approx(1, rel=0.1)


def test_a_model_made_on_meta_is_initialised_where_it_lands():
    torch.manual_seed(0)
    with torch.device("meta"):
        model = HGRNForCausalLM(HGRNConfig(**CONFIG))
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    model.init_weights()
    check_pytorch(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_missing_bias_leaves_all_that_was_loaded_alone(tmp_path):
    model = HGRNForCausalLM(HGRNConfig(**CONFIG))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = "model.stack.blocks.1.mixer.out_proj.bias"
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    loaded, report = HGRNForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {missing}
    for name, parameter in loaded.named_parameters():
        if name == missing:
            assert parameter.abs().max() <= 128**-0.5 and parameter.any()
        else:
            assert torch.equal(parameter, model.get_parameter(name)), name


def test_a_missing_theta_is_made_anew(tmp_path):
    model = HGRNForCausalLM(HGRNConfig(**CONFIG))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("stack.blocks.1.mixer.theta", "stack.bounds.logits", "embed_tokens.weight"):
        del tensors[f"model.{name}"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    check_pytorch(HGRNForCausalLM.from_pretrained(tmp_path))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_save_and_load_give_the_same_bits(tie, dtype, tmp_path):
    torch.manual_seed(0)
    model = HGRNForCausalLM(HGRNConfig(**CONFIG, tie_word_embeddings=tie)).to(dtype).eval()
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert ("lm_head.weight" in names) == (not tie)
    again = HGRNForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert again.dtype == dtype
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tie
    for name, parameter in model.named_parameters():
        loaded = again.get_parameter(name)
        assert loaded.dtype == parameter.dtype and torch.equal(loaded, parameter), name
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bounds_and_theta_stay_float32(dtype, tmp_path):
    model = HGRNForCausalLM(HGRNConfig(**CONFIG))
    torch.nn.init.normal_(model.model.stack.bounds.logits)
    model.save_pretrained(tmp_path)
    kept = ("theta", "bounds", "running_mean", "running_var")
    assert model._get_dtype_plan(dtype) == dict.fromkeys(kept, torch.float32)
    for narrow in (HGRNForCausalLM.from_pretrained(tmp_path, dtype=dtype), model.to(dtype)):
        assert narrow.dtype == dtype
        for name, parameter in narrow.named_parameters():
            wide = name.endswith(("theta", "bounds.logits"))
            assert parameter.dtype == (torch.float32 if wide else dtype), name
        assert narrow(torch.arange(5)[None]).logits.isfinite().all()
    kept = HGRNForCausalLM.from_pretrained(tmp_path).model.stack.bounds.logits
    assert torch.equal(narrow.model.stack.bounds.logits, kept)


def test_a_model_made_in_a_half_precision_keeps_them_too():
    model = HGRNForCausalLM._from_config(HGRNConfig(**CONFIG), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    stack = model.model.stack
    assert stack.bounds.logits.dtype == stack.blocks[0].mixer.theta.dtype == torch.float32
