"""flash-linear-attention's models (golden 13, 14): numbers, loading, and what does not fit."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hgrn.models import HGRNConfig, HGRNForCausalLM, HGRNModel
from hgrn.models.published import (
    LAYOUTS,
    ConversionError,
    from_published,
    load_published,
)
from hgrn.models.published.record import ROLL, SAME
from tests.golden_files import FOLDER, read
from tests.models.fla_folders import MODELS, change, logits
from tests.tolerances import assert_close, error

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


def golden_model(name: str, dtype: torch.dtype, shared):
    golden = read(name, dtype, shared / "golden")
    model = HGRNForCausalLM(HGRNConfig.from_pretrained(FOLDER / f"{name}_hf")).to(dtype).eval()
    load_published(model, golden.parameters, MODELS[name])
    return model, golden


def continuation(model, ids, mask=None):
    """20 tokens, none of them taken for the end; and the logits that chose them."""
    model.generation_config.eos_token_id = None
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[:, ids.shape[1] :], torch.stack(made.logits, dim=1)


@pytest.fixture
def folder(tmp_path):
    """A copy of a folder of flash-linear-attention's, to be changed."""
    return shutil.copytree(FOLDER / "13d_fla_hgrn_lm_conv_hf", tmp_path / "fla")


# ------------------------------------------------------------------------------------------------
# The numbers of flash-linear-attention


@DTYPES
@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_gradients_are_the_authors(name, dtype, shared):
    model, golden = golden_model(name, dtype, shared)
    ids = golden.input["input_ids"]
    output = model(ids, labels=ids, output_hidden_states=True)
    assert_close(output.logits, golden.output["logits"])
    assert_close(
        output.loss, golden.output["loss"], torch.float32
    )  # transformers makes the loss in float32
    loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_close(loss, golden.output["loss"])
    for index, hidden in enumerate(output.hidden_states):
        assert_close(hidden, golden.aux[f"hidden_states_{index}"], name=f"hidden states {index}")
    assert_close(model.model.stack.bounds(), golden.aux["lower_bounds"])

    (output.logits * golden.cotangent["logits"]).sum().backward()
    expected = from_published(golden.grad, MODELS[name])
    assert expected.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[key], name=f"grad {key}")


@DTYPES
@pytest.mark.parametrize("name", MODELS)
def test_padded_logits_and_states_are_the_authors(name, dtype, shared):
    model, golden = golden_model(name, dtype, shared)
    keep = golden.input["padded_attention_mask"].bool()
    assert not keep.all()
    padded = model(golden.input["padded_ids"], attention_mask=golden.input["padded_attention_mask"])
    assert_close(padded.logits[keep], golden.output["padded_logits"][keep])

    state = model(golden.input["prompt_ids"]).past_key_values.state
    for index, (recurrent, *window) in enumerate(state):
        # HGRN2's matrices have values before keys there.
        ours = recurrent.transpose(2, 3) if recurrent.ndim == 4 else recurrent
        assert_close(ours, golden.output[f"prefill_recurrent_state_{index}"])
        start = f"prefill_conv_state_{index}_"
        theirs = [golden.output[key] for key in sorted(golden.output) if key.startswith(start)]
        assert bool(window) == bool(theirs) == name.endswith("_conv")
        if window:  # the last four inputs there, of which the first is never read again
            assert_close(window[0], torch.cat(theirs, dim=1)[:, :, 1:].transpose(1, 2))


@DTYPES
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_the_authors(name, dtype, shared):
    model, golden = golden_model(name, dtype, shared)
    tokens, chosen_by = continuation(model, golden.input["prompt_ids"])
    assert torch.equal(tokens, golden.output["generated_ids"])
    assert_close(
        chosen_by.to(dtype), golden.output["generation_logits"], torch.float32
    )  # transformers hands them on in float32
    tokens, _ = continuation(
        model, golden.input["padded_ids"], golden.input["padded_attention_mask"]
    )
    assert torch.equal(tokens, golden.output["padded_generated_ids"])


@pytest.mark.parametrize("kind", [AutoModelForCausalLM, HGRNForCausalLM])
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_loads_directly(name, kind, shared):
    if kind is AutoModelForCausalLM and MODELS[name] != "fla":
        pytest.skip("the Auto classes know our classes by the model_type hgrn only")
    golden = read(name, torch.float32, shared / "golden")
    model, report = kind.from_pretrained(FOLDER / f"{name}_hf", output_loading_info=True)
    assert type(model) is HGRNForCausalLM and not any(report.values()) and not model.training
    assert_close(model(golden.input["input_ids"]).logits, golden.output["logits"])
    assert torch.equal(
        continuation(model, golden.input["prompt_ids"])[0], golden.output["generated_ids"]
    )


# ------------------------------------------------------------------------------------------------
# Loading


@pytest.mark.parametrize("name", MODELS)
def test_the_bounds_are_theirs_and_would_not_be_without_the_roll(name, monkeypatch):
    """The cumulative sum of the softmax less its first row, from the file's own table."""
    folder = FOLDER / f"{name}_hf"
    shares = load_file(folder / "model.safetensors")["model.lower_bounds"].softmax(0).cumsum(0)
    model = HGRNForCausalLM.from_pretrained(folder)
    assert_close(model.model.stack.bounds(), shares - shares[0])
    expected = logits(model)
    layout = LAYOUTS[MODELS[name]]
    lines = [
        line._replace(change=SAME if line.change is ROLL else line.change) for line in layout.lines
    ]
    monkeypatch.setitem(LAYOUTS, layout.name, replace(layout, lines=tuple(lines)))
    spoilt = HGRNForCausalLM.from_pretrained(folder)
    assert (
        error(spoilt.model.stack.bounds(), shares - shares[0]) > 1e-2
        and error(logits(spoilt), expected) > 1e-3
    )


def test_the_other_auto_classes_and_a_half_precision(folder):
    assert type(AutoConfig.from_pretrained(folder)) is HGRNConfig
    bare = AutoModel.from_pretrained(folder)
    model = HGRNForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert (
        type(bare) is HGRNModel
        and model.dtype == torch.bfloat16
        and model.config.name_or_path == str(folder)
    )
    stack = model.model.stack
    assert (
        stack.bounds.logits.dtype == torch.float32
        and stack.blocks[0].mixer.short_conv.weight.dtype == torch.bfloat16
    )
    assert torch.equal(bare.stack.bounds.logits, stack.bounds.logits)
    assert_close(
        bare(torch.arange(5)[None])[0],
        HGRNForCausalLM.from_pretrained(folder).model(torch.arange(5)[None])[0],
    )


def test_what_is_saved_is_ours_and_the_same_model(folder, tmp_path):
    model = HGRNForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "ours")
    assert "model.stack.bounds.logits" in load_file(tmp_path / "ours" / "model.safetensors")
    assert "attn_mode" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(logits(again), logits(model))


def test_files_of_every_kind(folder, tmp_path):
    """Shards, a pickled file, a file alone, a repository in the hub's cache: the same model."""
    expected = logits(HGRNForCausalLM.from_pretrained(folder))
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(
        logits(HGRNForCausalLM.from_pretrained(folder / "model.safetensors")), expected
    )

    snapshot = tmp_path / "hub" / "models--someone--hgrn" / "snapshots" / ("a" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    shutil.copytree(folder, snapshot)
    hub = dict(cache_dir=tmp_path / "hub", local_files_only=True)
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained("someone/hgrn", **hub)), expected
    )

    names = sorted(tensors)
    shards = {name: f"model-{1 + (i > 9)}.safetensors" for i, name in enumerate(names)}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in names if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "model.safetensors").unlink()
    assert torch.equal(logits(HGRNForCausalLM.from_pretrained(folder)), expected)

    for file in folder.glob("model*"):
        file.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert torch.equal(logits(HGRNForCausalLM.from_pretrained(folder)), expected)


def test_settings_of_generation_come_along(folder):
    (folder / "generation_config.json").write_text('{"max_new_tokens": 7, "eos_token_id": 5}')
    settings = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert settings.max_new_tokens == 7 and settings.eos_token_id == 5


def test_tied_embeddings(folder):
    tensors = load_file(folder / "model.safetensors")
    change(folder, tie_word_embeddings=True)
    with pytest.raises(
        ConversionError, match="untied: .* differs from the tensor that the model ties it to"
    ):
        HGRNForCausalLM.from_pretrained(folder)
    tensors["lm_head.weight"] = tensors["model.embeddings.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    both = HGRNForCausalLM.from_pretrained(folder)
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    one = HGRNForCausalLM.from_pretrained(folder)
    assert one.lm_head.weight is one.model.embed_tokens.weight and torch.equal(
        logits(one), logits(both)
    )
    assert HGRNForCausalLM.from_pretrained(folder / "model.safetensors").config.tie_word_embeddings


def test_the_width_inside_the_glu_follows_from_the_ratio(folder):
    for ratio, wanted in ((4, 256), (None, 256), (20, 512)):
        change(folder, intermediate_size=None, hidden_ratio=ratio)
        assert HGRNConfig.from_pretrained(folder).intermediate_size == wanted
    change(folder, hidden_size=2048, hidden_ratio=4)
    assert HGRNConfig.from_pretrained(folder).intermediate_size == 5632


# ------------------------------------------------------------------------------------------------
# What does not fit


def test_heads_of_an_older_configuration_mean_nothing(folder):
    """Releases before September 2024 cut the channels into heads, which changes no number."""
    expected = HGRNForCausalLM.from_pretrained(folder)
    change(folder, num_heads=4)
    model = HGRNForCausalLM.from_pretrained(folder)
    assert model.config == expected.config
    ids = torch.arange(7)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(expand_ratio=2), r"expand_ratio: must be 1, got 2"),
        (dict(use_lower_bound=False), "use_lower_bound: must be True, got False"),
        (dict(attn={"layers": [1]}), r"attn: must be None, got \{'layers'"),
        (dict(hidden_act="gelu"), "hidden_act: must be 'swish' or 'silu', got 'gelu'"),
        (dict(elementwise_affine=False), "elementwise_affine: must be True"),
        (dict(model_type="gla"), "model_type: must be 'hgrn', got 'gla'"),
        (
            dict(share_conv_kernel=True),
            "share_conv_kernel: must be absent where use_short_conv is true",
        ),
        (
            dict(decoder_embed_dim=20),
            "ambiguous, with keys of several layouts: fla has attn_mode, expand_ratio; opennlplab "
            "has",
        ),
        (dict(gate_position="after_norm"), "ambiguous.*hgrn has gate_position"),
        (dict(hidden_multiple=3), "hidden_multiple: no such field"),
    ],
)
def test_a_key_that_cannot_be_represented_is_named(keys, message, folder):
    change(folder, **keys)
    for kind in (HGRNForCausalLM, HGRNConfig):
        with pytest.raises(ValueError, match=message):
            kind.from_pretrained(folder)


def test_sizes_that_are_left_out_are_named(folder):
    change(folder, remove=("hidden_size", "vocab_size"))
    with pytest.raises(ConversionError, match="vocab_size, hidden_size: not given"):
        HGRNForCausalLM.from_pretrained(folder)


def test_every_tensor_that_does_not_fit_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    del (
        tensors["model.norm.weight"],
        tensors["model.layers.1.attn.f_proj.weight"],
        tensors["model.lower_bounds"],
    )
    tensors["model.layers.0.attn.f_proj.weight"] = torch.zeros(20, 19)
    tensors["model.layers.0.attn.i_conv1d.weight"] = torch.zeros(7)
    tensors["model.layers.2.mlp.down_proj.weight"] = torch.zeros(20, 31)
    tensors["model.layers.2.attn.q_proj.weight"] = torch.zeros(20, 20)
    tensors["model.layers.3.mlp_norm.weight"] = torch.zeros(20)
    save_file(tensors, folder / "model.safetensors")
    for kind in (AutoModelForCausalLM, AutoModel, HGRNForCausalLM):
        with pytest.raises(ConversionError) as raised:
            kind.from_pretrained(folder)
        for line in (
            "missing: model.stack.norm.weight, which comes from model.norm.weight",
            "missing: model.stack.bounds.logits, which comes from model.lower_bounds",
            "of which only model.layers.1.attn.g_proj.weight, model.layers.1.attn.i_proj.weight "
            "is there, not model.layers.1.attn.f",
            "reshaped: model.stack.blocks.0.mixer.in_proj.weight cannot be made of "
            "model.layers.0.attn.f_proj.weight (20, 19)",
            "reshaped: model.layers.0.attn.i_conv1d.weight has shape (7,)",
            "reshaped: model.stack.blocks.2.glu.down_proj.weight is (20, 31), in the model (20, "
            "32); it comes from model.layers.2",
            "unexpected: model.layers.2.attn.q_proj.weight is not in the layout",
            "unexpected: model.stack.blocks.3.glu_norm.weight is not in the model; it comes from "
            "model.layers.3.mlp_norm.weight",
        ):
            assert line in str(raised.value)


def test_damaged_and_missing_files_are_named(folder, tmp_path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConversionError, match="model.safetensors cannot be read as tensors"):
        HGRNForCausalLM.from_pretrained(folder)
    path.unlink()
    with pytest.raises(
        ConversionError, match="config.json but neither model.safetensors nor pytorch_model.bin"
    ):
        HGRNForCausalLM.from_pretrained(folder)
    torch.save(
        {"model": {"decoder.version": torch.ones(1)}, "args": open}, folder / "pytorch_model.bin"
    )
    with pytest.raises(ConversionError, match='save its entry "model" alone'):
        HGRNForCausalLM.from_pretrained(folder)
    torch.save({"model.norm.weight": [1.0]}, folder / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="not tensors: model.norm.weight"):
        HGRNForCausalLM.from_pretrained(folder)
    save_file({"input_proj.weight": torch.ones(2)}, tmp_path / "layer.safetensors")
    with pytest.raises(
        ConversionError, match="layout of its tensors is none that is known.*input_proj.weight"
    ):
        HGRNForCausalLM.from_pretrained(tmp_path / "layer.safetensors")
    save_file(
        {
            "model.layers.0.attn.i_proj.weight": torch.ones(2, 2),
            "model.stack.norm.weight": torch.ones(2),
        },
        tmp_path / "two",
    )
    with pytest.raises(
        ConversionError, match="cannot be read as tensors"
    ):  # no name of a safetensors file
        HGRNForCausalLM.from_pretrained(tmp_path / "two")
    (tmp_path / "two").rename(tmp_path / "two.safetensors")
    with pytest.raises(ConversionError, match=r"several \(fla, hgrn\)"):
        HGRNForCausalLM.from_pretrained(tmp_path / "two.safetensors")
