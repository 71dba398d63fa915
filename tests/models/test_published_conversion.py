"""Published language models there and back by `hgrn convert`, and what it refuses."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hgrn.cli import main
from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.models.published import ConversionError, to_published
from tests.golden_files import FOLDER, read
from tests.models.fla_folders import MODELS, change, logits
from tests.tolerances import assert_close


@pytest.fixture
def folder(tmp_path):
    """A copy of a folder of flash-linear-attention's, to be changed."""
    return shutil.copytree(FOLDER / "13d_fla_hgrn_lm_conv_hf", tmp_path / "fla")


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_gives_the_same_bits(name, tmp_path, capsys):
    folder = shutil.copytree(FOLDER / f"{name}_hf", tmp_path / "theirs")
    (folder / "tokenizer.json").write_text("{}")
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    layout = MODELS[name]
    printed = capsys.readouterr().out
    assert f"layout {layout}: " in printed and "with tokenizer.json" in printed
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", layout]) == 0
    theirs, back = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert theirs.keys() == back.keys() and all(
        torch.equal(back[key], theirs[key]) for key in theirs
    )
    told, written = (
        json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "back")
    )
    assert {key: told[key] for key in written if key != "dtype"} == {
        k: v for k, v in written.items() if k != "dtype"
    }
    assert (tmp_path / "back" / "tokenizer.json").is_file()

    assert main(["convert", str(tmp_path / "back"), str(tmp_path / "ours again")]) == 0
    files = [
        (tmp_path / place / "model.safetensors").read_bytes() for place in ("ours", "ours again")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_in_bfloat16(name, tmp_path):
    """The bits of every weight; only the bounds are float32, with equal values."""
    folder = shutil.copytree(FOLDER / f"{name}_hf", tmp_path / "theirs")
    theirs = {
        key: tensor.bfloat16() for key, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    assert (
        main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", MODELS[name]]) == 0
    )
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert theirs.keys() == back.keys()
    for key, tensor in theirs.items():
        assert torch.equal(back[key], tensor.float() if key == "model.lower_bounds" else tensor), (
            key
        )


def test_opennlplab(tmp_path):
    """The authors' language model under the names and keys of their models for transformers."""
    golden = read("09b_fairseq_lm_silu_glu", torch.float32)
    names = {
        "decoder.layers.": "model.layers.",
        "decoder.layer_norm": "model.final_norm",
        "decoder.": "model.",
        "self_attn.hgru.": "token_mixer.",
        "self_attn_layer_norm": "token_norm",
        "glu.": "channel_mixer.",
        "final_layer_norm": "channel_norm",
    }
    tensors = {}
    for name, tensor in golden.parameters.items():
        for theirs, new in names.items():
            name = name.replace(theirs, new)
        tensors[name] = tensor
    vocab_size, hidden_size = tensors["model.embed_tokens.weight"].shape
    config = dict(
        decoder_embed_dim=hidden_size,
        decoder_layers=len(tensors["model.lower_bounds"]),
        vocab_size=vocab_size,
        bias=True,
        glu_dim=tensors["model.layers.0.channel_mixer.l1.weight"].shape[0],
        act_fun="silu",
        glu_act="swish",
        norm_type="layernorm",
        no_scale_embedding=False,
        causal=True,
        use_triton=False,
        init_std=0.02,
        add_bos_token=False,
        model_type="hgrn",
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=None,
        torch_dtype="float32",
        auto_map={"AutoConfig": "configuration_hgrn.X"},
    )
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors, folder / "pytorch_model.bin")
    for model in (
        AutoModelForCausalLM.from_pretrained(folder),
        HGRNForCausalLM.from_pretrained(folder / "pytorch_model.bin"),
    ):
        assert_close(model(golden.input["tokens"]).logits, golden.output["logits"])

    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    assert (
        main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "opennlplab"]) == 0
    )
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys() and all(
        torch.equal(back[key], tensors[key]) for key in tensors
    )
    again = HGRNForCausalLM.from_pretrained(tmp_path / "back")
    assert torch.equal(logits(again), logits(AutoModelForCausalLM.from_pretrained(folder)))
    config["act_fun"] = "swish"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="act_fun: must be 'silu', got 'swish'"):
        HGRNForCausalLM.from_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps(config | dict(act_fun="silu", use_lower_bound=False))
    )
    with pytest.raises(ConversionError, match="use_lower_bound: must be True, got False"):
        HGRNForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "name, act", [("09a_fairseq_lm_default", None), ("09b_fairseq_lm_silu_glu", "silu")]
)
def test_a_file_of_fairseq(name, act, tmp_path, capsys):
    golden = read(name, torch.float32)
    torch.save(
        {"model": golden.parameters | {"decoder.version": torch.ones(1)}, "extra_state": {}},
        tmp_path / "checkpoint.pt",
    )
    choice = [] if act is None else ["--glu-act", act]
    assert main(["convert", str(tmp_path / "checkpoint.pt"), str(tmp_path / "ours"), *choice]) == 0
    assert f"assumed: glu_act {act or 'identity'}, norm_eps 1e-05" in capsys.readouterr().out
    model = HGRNForCausalLM.from_pretrained(tmp_path / "ours")
    assert_close(model(golden.input["tokens"]).logits, golden.output["logits"])
    assert (
        main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "fairseq-lm"]) == 0
    )
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == golden.parameters.keys() and all(
        torch.equal(back[k], golden.parameters[k]) for k in back
    )
    assert torch.equal(
        logits(HGRNForCausalLM.from_pretrained(tmp_path / "back", glu_act=model.config.glu_act)),
        logits(model),
    )


def test_what_a_layout_cannot_hold_is_named(tmp_path, capsys):
    config = HGRNConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        gate_position="before_norm",
        use_lower_bound=False,
    )
    model = HGRNForCausalLM(config)
    model.save_pretrained(tmp_path / "ours")
    for layout, names in (
        (
            "fla",
            (
                "bias",
                "norm_type",
                "complex_state",
                "gate_position",
                "scale_embeddings",
                "use_lower_bound",
            ),
        ),
        ("opennlplab", ("gate_position", "use_lower_bound")),
        ("fairseq-lm", ("gate_position", "use_lower_bound")),
    ):
        assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "out"), "--to", layout]) == 2
        message = capsys.readouterr().err
        assert (
            all(f"\n  {name}: must be " in message for name in names)
            and f"{len(names)} problem(s)" in message
        )
        assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    with pytest.raises(ConversionError, match="unexpected: model.stack.norm.bias"):
        to_published(model, "fla")


def test_the_command_refuses(folder, tmp_path, capsys):
    def fails(*arguments) -> str:
        assert main(["convert", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    (tmp_path / "there").mkdir()
    assert "there exists already; name a new folder" in fails(folder, tmp_path / "there")
    assert "there is no " in fails(tmp_path / "nothing", tmp_path / "out")
    assert "in the layout 'fla' already" in fails(folder, tmp_path / "out", "--to", "fla")
    HGRNForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    assert "in the layout 'hgrn' already; say which other with --to" in fails(
        tmp_path / "ours", tmp_path / "out"
    )
    assert "whose config.json decides glu_act" in fails(
        tmp_path / "ours", tmp_path / "out", "--to", "fla", "--glu-act", "silu"
    )
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    del tensors["model.stack.norm.weight"]
    save_file(tensors, tmp_path / "ours" / "model.safetensors", {"format": "pt"})
    assert "missing_keys: model.stack.norm.weight" in fails(
        tmp_path / "ours", tmp_path / "out", "--to", "fla"
    )
    change(folder, expand_ratio=2)
    assert "expand_ratio: must be 1, got 2" in fails(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
