"""Published HGRN2 models: one layer of flash-linear-attention's (golden 14), keys that do not fit,
and the authors' model for transformers against its equations written down anew."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from hgrn.cli import main
from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.models.published import ConversionError, from_published, load_published, to_published
from hgrn.modules import HGRN2Mixer
from tests.golden_files import FOLDER, read
from tests.models.fla_folders import MODELS, change, logits
from tests.tolerances import assert_close

HGRN2_MODELS = [name for name, layout in MODELS.items() if layout == "fla-hgrn2"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


@pytest.fixture
def folder(tmp_path):
    """A copy of a folder of flash-linear-attention's, to be changed."""
    return shutil.copytree(FOLDER / "14b_fla_hgrn2_lm_conv_hf", tmp_path / "fla")


# ------------------------------------------------------------------------------------------------
# One layer of flash-linear-attention's


@DTYPES
@pytest.mark.parametrize("name", HGRN2_MODELS)
def test_layers_are_those_of_flash_linear_attention(name, dtype, shared):
    """Hidden states in and out; norms, the other half of a layer and the sum are written here."""
    golden = read(name, dtype, shared / "golden")
    bounds = golden.aux["lower_bounds"]
    for index in range(len(bounds) - 1):
        start = f"model.layers.{index}."
        layer = {
            key.removeprefix(start): tensor
            for key, tensor in golden.parameters.items()
            if key.startswith(start)
        }
        width = bounds.shape[1]
        conv_size = 4 if "attn.q_conv1d.weight" in layer else None
        mixer = HGRN2Mixer(width, head_dim=8, bias=False, conv_size=conv_size).to(dtype)
        mine = {
            key.removeprefix("attn."): tensor
            for key, tensor in layer.items()
            if key.startswith("attn.")
        }
        load_published(mixer, mine, "fla-hgrn2-layer")
        assert to_published(mixer, "fla-hgrn2-layer").keys() == mine.keys()

        x = golden.aux[f"hidden_states_{index}"]
        normed = F.rms_norm(x, (width,), layer["attn_norm.weight"], 1e-6)
        x = x + mixer(normed, bounds[index])[0]
        normed = F.rms_norm(x, (width,), layer["mlp_norm.weight"], 1e-6)
        gate = F.silu(normed @ layer["mlp.gate_proj.weight"].T)
        inside = gate * (normed @ layer["mlp.up_proj.weight"].T)
        x = x + inside @ layer["mlp.down_proj.weight"].T
        assert_close(x, golden.aux[f"hidden_states_{index + 1}"], name=f"layer {index}")


# ------------------------------------------------------------------------------------------------
# Configurations and names


def test_the_epsilon_inside_the_mixers_is_not_the_stacks():
    model = HGRNForCausalLM.from_pretrained(FOLDER / "14a_fla_hgrn2_lm_hf")
    block = model.model.stack.blocks[0]
    assert (block.mixer.norm.eps, block.mixer_norm.eps, model.config.norm_eps) == (1e-5, 1e-6, 1e-6)
    assert (block.mixer.heads, block.mixer.head_dim) == (3, 8)


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(num_heads=4), r"num_heads: must be hidden_size / expand_ratio \(16 / 8\), got 4"),
        (dict(num_heads=None, expand_ratio=None), "expand_ratio: must be the channels of a head"),
        (dict(expand_ratio=-8), "expand_ratio: must be the channels of a head.*got -8"),
        (dict(num_heads=None, expand_ratio=5), r"head_dim must divide dim \(16\), got 5"),
        (dict(use_lower_bound=False), "use_lower_bound: must be True, got False"),
        (dict(hidden_act="gelu"), "hidden_act: must be 'swish' or 'silu', got 'gelu'"),
        (dict(attn={"layers": [1]}), r"attn: must be None, got \{'layers'"),
        (dict(share_conv_kernel=True), "share_conv_kernel: must be absent"),
        (
            dict(decoder_embed_dim=16),
            "ambiguous.*fla-hgrn2 has attn_mode, hidden_ratio, use_short_conv; opennlplab-hgrn2 ",
        ),
        (dict(mixer_options={}), "ambiguous.*hgrn has mixer_options"),
        (dict(mixer="hgru"), "mixer: must be 'hgrn2', got 'hgru'"),
        (dict(model_type="hgrn"), "expand_ratio: must be 1, got 8"),
    ],
)
def test_a_key_that_cannot_be_represented_is_named(keys, message, folder):
    change(folder, **keys)
    for kind in (HGRNForCausalLM, HGRNConfig):
        with pytest.raises(ValueError, match=message):
            kind.from_pretrained(folder)


def test_heads_follow_from_either_key(folder):
    expected = HGRNForCausalLM.from_pretrained(folder)
    for heads, head_dim in ((2, None), (None, 8)):
        change(folder, num_heads=heads, expand_ratio=head_dim)
        assert torch.equal(logits(HGRNForCausalLM.from_pretrained(folder)), logits(expected))
    change(folder, remove=("expand_ratio", "num_heads"), hidden_size=256)
    options = HGRNConfig.from_pretrained(folder).mixer_options
    assert options is not None and options["head_dim"] == 128


def test_the_other_mixers_configuration_does_not_take_the_tensors(folder, tmp_path):
    """Only model_type tells the two configurations apart."""
    change(folder, model_type="hgrn", expand_ratio=1)
    with pytest.raises(ConversionError, match="unexpected: model.layers.0.attn.q_conv1d.weight"):
        HGRNForCausalLM.from_pretrained(folder)
    other = shutil.copytree(FOLDER / "13d_fla_hgrn_lm_conv_hf", tmp_path / "other")
    change(other, model_type="hgrn2")
    with pytest.raises(ConversionError, match="unexpected: model.layers.0.attn.g_proj.weight"):
        HGRNForCausalLM.from_pretrained(other)


def test_a_file_alone_wants_to_be_told_of_heads(folder, tmp_path, capsys):
    expected = HGRNForCausalLM.from_pretrained(folder)
    file = folder / "model.safetensors"
    with pytest.raises(ValueError, match=r"head_dim must divide dim \(16\), got 128"):
        HGRNForCausalLM.from_pretrained(file)
    model = HGRNForCausalLM.from_pretrained(file, mixer_options={"head_dim": 8})
    assert torch.equal(logits(model), logits(expected))
    assert model.config.mixer_options == expected.config.mixer_options

    assert main(["convert", str(file), str(tmp_path / "ours"), "--head-dim", "8"]) == 0
    assert "mixer_options {'query_act': 'silu'" in capsys.readouterr().out
    assert torch.equal(logits(HGRNForCausalLM.from_pretrained(tmp_path / "ours")), logits(expected))
    hgru = FOLDER / "13d_fla_hgrn_lm_conv_hf" / "model.safetensors"
    assert main(["convert", str(hgru), str(tmp_path / "out"), "--head-dim", "8"]) == 2
    assert "must be None for the mixer hgru" in capsys.readouterr().err


def test_what_a_layout_cannot_hold_is_named(tmp_path, capsys):
    """Neither the other mixer, nor other options of this one."""

    def written(layout: str) -> tuple[int, str]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        code = main(["convert", str(tmp_path / "ours"), str(tmp_path / "out"), "--to", layout])
        return code, capsys.readouterr().err

    def save(**options) -> None:
        shutil.rmtree(tmp_path / "ours", ignore_errors=True)
        config = HGRNConfig(
            vocab_size=12,
            hidden_size=8,
            num_hidden_layers=2,
            mixer="hgrn2",
            norm_type="rms",
            bias=False,
            scale_embeddings=False,
            norm_eps=1e-6,
            **options,
        )
        HGRNForCausalLM(config).save_pretrained(tmp_path / "ours")

    # A mixer of 8 channels has one head where nothing is said.
    save(mixer_options={"norm_eps": 1e-5, "conv_size": 3})
    assert written("fla-hgrn2")[0] == 0
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: settings[key] for key in ("expand_ratio", "num_heads", "conv_size")} == dict(
        expand_ratio=8, num_heads=1, conv_size=3
    )
    model, again = (HGRNForCausalLM.from_pretrained(tmp_path / name) for name in ("ours", "out"))
    assert torch.equal(logits(model), logits(again))
    for layout in ("fla", "opennlplab", "fairseq-lm", "vit", "lra"):
        code, message = written(layout)
        assert code == 2 and "\n  mixer: must be 'hgru' there, is 'hgrn2'" in message

    save(mixer_options={"scale": 0.5, "candidate_act": "silu", "bias": True}, glu_act="silu")
    code, message = written("fla-hgrn2")
    assert code == 2 and "(4 problem(s))" in message
    for problem in (
        "bias must be False there, is True",
        "norm_eps must be 1e-05 there, is 1e-06",
        "candidate_act must be 'identity' there, is 'silu'",
        "scale must be None there, is 0.5",
    ):
        assert f"\n  mixer_options: {problem}" in message
    code, message = written("opennlplab-hgrn2")
    assert code == 2 and "scale must be 1.0 there, is 0.5" in message
    assert "glu_act: must be 'identity' there, is 'silu'" in message

    HGRNForCausalLM(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1)).save_pretrained(
        tmp_path / "hgru"
    )
    for layout in ("fla-hgrn2", "opennlplab-hgrn2"):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        assert main(["convert", str(tmp_path / "hgru"), str(out), "--to", layout]) == 2
        assert "\n  mixer: must be 'hgrn2' there, is 'hgru'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------
# The authors' HGRN2 for transformers (hgru2-pytorch, models/modeling_hgrn2.py)

HEAD_DIM = 4


def authors_tensors(bias: bool) -> dict[str, torch.Tensor]:
    """A model of three layers under the names of the authors' code, in float64."""
    generator = torch.Generator().manual_seed(14)
    width, inside, depth = 12, 20, 3
    shapes = {
        "model.embed_tokens": (17, width),
        **{
            f"model.layers.{n}.{name}": shape
            for n in range(depth)
            for name, shape in {
                "token_mixer.in_proj": (3 * width, width),
                "token_mixer.out_proj": (width, width),
                "channel_mixer.l1": (inside, width),
                "channel_mixer.l2": (inside, width),
                "channel_mixer.l3": (width, inside),
            }.items()
        },
        "lm_head": (17, width),
    }

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {f"{name}.weight": noise(*shape) * 0.4 for name, shape in shapes.items()}
    if bias:
        layers = [name for name in shapes if ".layers." in name]
        tensors |= {f"{name}.bias": noise(shapes[name][0]) for name in layers}
    return tensors | {"model.lower_bounds": noise(depth, width)}


def authors_logits(p: dict[str, torch.Tensor], ids: torch.Tensor, scaled: bool) -> torch.Tensor:
    """The equations of the authors' code, step by step; ids `[B, T]` -> logits `[B, T, V]`."""

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    x = p["model.embed_tokens.weight"][ids]
    width = x.shape[-1]
    x = x * width**0.5 if scaled else x
    bounds = p["model.lower_bounds"].softmax(0).cumsum(0)
    bounds = bounds - bounds[0]
    for n, bound in enumerate(bounds):
        mixer = f"model.layers.{n}.token_mixer"
        glu = f"model.layers.{n}.channel_mixer"
        value, query, forget = linear(norm(x), f"{mixer}.in_proj").chunk(3, dim=-1)
        query = F.silu(query)
        forget = bound + (1 - bound) * torch.sigmoid(forget)
        value, query, forget = (
            part.unflatten(-1, (-1, HEAD_DIM)) for part in (value, query, forget)
        )
        memory = x.new_zeros(len(ids), width // HEAD_DIM, HEAD_DIM, HEAD_DIM)
        read = []
        for t in range(ids.shape[1]):
            write = (1 - forget[:, t]).unsqueeze(-1) * value[:, t].unsqueeze(-2)
            memory = forget[:, t].unsqueeze(-1) * memory + write
            read.append((query[:, t].unsqueeze(-1) * memory).sum(-2).flatten(-2))
        x = linear(norm(torch.stack(read, dim=1)), f"{mixer}.out_proj") + x
        inside = linear(norm(x), f"{glu}.l1") * linear(norm(x), f"{glu}.l2")
        x = linear(inside, f"{glu}.l3") + x
    return linear(norm(x), "lm_head")


@pytest.fixture(params=[False, True], ids=["plain", "bias, scaled"])
def authors_folder(request, tmp_path):
    """A folder as the authors' class saves it, its tensors, and whether embeddings are scaled."""
    tensors = authors_tensors(bias=request.param)
    config = dict(
        model_type="hgrn2",
        architectures=["Hgrn2ForCausalLM"],
        auto_map={"AutoConfig": "configuration_hgrn2.X"},
        vocab_size=17,
        decoder_embed_dim=12,
        decoder_layers=3,
        glu_dim=20,
        expand_ratio=HEAD_DIM,
        in_act="none",
        out_act="silu",
        glu_act="none",
        norm_type="simplermsnorm",
        causal=True,
        bias=request.param,
        no_scale_embedding=not request.param,
        init_std=0.02,
        add_bos_token=False,
        tie_word_embeddings=False,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        use_cache=True,
        torch_dtype="float64",
    )
    folder = tmp_path / "authors"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder, tensors, request.param


def test_the_authors_model_follows_its_equations(authors_folder):
    folder, tensors, scaled = authors_folder
    ids = torch.randint(17, (2, 23), generator=torch.Generator().manual_seed(1))
    parameters = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    expected = authors_logits(parameters, ids, scaled)
    model = HGRNForCausalLM.from_pretrained(folder, dtype=torch.float64)
    # The table of bounds is float32 in any model, so its numbers are put in once more.
    load_published(model.double(), tensors, "opennlplab-hgrn2")
    found = model(ids).logits
    assert_close(found, expected)

    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2)).double()
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    gradients = {name: tensor.grad for name, tensor in parameters.items()}
    theirs = from_published(gradients, "opennlplab-hgrn2")
    norms = {name for name, _ in model.named_parameters() if "norm" in name}
    ours = dict(model.named_parameters())
    assert theirs.keys() == ours.keys() - norms
    for name, gradient in theirs.items():
        # The padding token's embedding is not trained as an input here.
        rows = slice(2, None) if name == "model.embed_tokens.weight" else slice(None)
        assert_close(ours[name].grad[rows], gradient[rows], name=f"grad {name}")


def test_the_authors_model_there_and_back(authors_folder, tmp_path):
    folder, _, scaled = authors_folder
    tensors = {name: x.float() for name, x in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    change(folder, torch_dtype="float32")
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    to = ["--to", "opennlplab-hgrn2"]
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), *to]) == 0
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    told, written = (
        json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "back")
    )
    assert {key: told[key] for key in written.keys() - {"dtype"}} == {
        key: value for key, value in written.items() if key != "dtype"
    }
    file = HGRNForCausalLM.from_pretrained(
        folder / "model.safetensors",
        mixer_options={"head_dim": HEAD_DIM},
        scale_embeddings=scaled,
    )
    assert torch.equal(logits(file), logits(HGRNForCausalLM.from_pretrained(tmp_path / "back")))


def test_norms_with_weights_cannot_be_written(authors_folder, tmp_path, capsys):
    folder, _, _ = authors_folder
    model = HGRNForCausalLM.from_pretrained(folder)
    assert all((p == 1).all() for name, p in model.named_parameters() if "norm" in name)
    with torch.no_grad():
        model.model.stack.blocks[1].mixer.norm.weight[3] = 1.5
        model.model.stack.norm.weight[0] = 0
    model.save_pretrained(tmp_path / "ours")
    to = ["--to", "opennlplab-hgrn2"]
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "out"), *to]) == 2
    message = capsys.readouterr().err
    assert "2 problem(s)" in message and not (tmp_path / "out").exists()
    for name in ("model.stack.blocks.1.mixer.norm.weight", "model.stack.norm.weight"):
        assert f"other: {name} must be all one" in message


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(norm_type="layernorm"), "norm_type: must be 'simplermsnorm', got 'layernorm'"),
        (dict(in_act="silu"), "in_act: must be 'none', got 'silu'"),
        (dict(out_act="sigmoid"), "out_act: must be 'silu', got 'sigmoid'"),
        (dict(glu_act="silu"), "glu_act: must be 'none', got 'silu'"),
        (dict(causal=False), "causal: must be True, got False"),
        (dict(expand_ratio=5), r"head_dim must divide dim \(12\), got 5"),
    ],
)
def test_a_key_of_the_authors_that_cannot_be_represented(keys, message, authors_folder):
    folder, _, _ = authors_folder
    change(folder, **keys)
    with pytest.raises(ValueError, match=message):
        HGRNForCausalLM.from_pretrained(folder)
