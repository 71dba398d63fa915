"""The layouts of language models: flash-linear-attention's, OpenNLPLab's, and fairseq's."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hgrn.models.published.record import ROLL, ConfigFile, Layout, Line, linear, under
from hgrn.models.published.single_layers import FLA_LAYER, HGRU

_BLOCK = "model.stack.blocks.{n}."
_CLASSES = {"": "HGRNForCausalLM"}
# What the authors' language models have in common.
_AUTHORS = dict(
    norm_type="layer",
    norm_eps=1e-5,
    complex_state=True,
    use_lower_bound=True,
    gate_position="after_norm",
    gate_act="silu",
    gate_rank=None,
    conv_size=None,
)
_ASSUMED = ("glu_act", "norm_eps", "bos_token_id", "eos_token_id", "pad_token_id")


def _infer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors of a language model tell beside its sizes."""
    embedding = tensors["model.embed_tokens.weight"]
    head = tensors.get("lm_head.weight", embedding)
    conv = tensors.get("model.stack.blocks.0.mixer.short_conv.weight")
    return dict(
        conv_size=None if conv is None else conv.shape[-1],
        bias="model.stack.blocks.0.mixer.in_proj.bias" in tensors,
        tie_word_embeddings=torch.equal(head, embedding),
    )


def _authors_lines(
    start: str, mixer: str, mixer_norm: str, glu: str, glu_norm: str, final_norm: str
) -> list[Line]:
    """The lines of the authors' models, which differ only in these parts of their names."""
    layer = f"{start}.layers.{{n}}."
    return [
        Line(f"{start}.embed_tokens.weight", "model.embed_tokens.weight"),
        Line(f"{start}.lower_bounds", "model.stack.bounds.logits", ROLL),
        *under(f"{layer}{mixer}.", f"{_BLOCK}mixer.", HGRU.lines),
        *linear(f"{layer}{mixer_norm}", f"{_BLOCK}mixer_norm"),
        *linear(f"{layer}{glu}.l1", f"{_BLOCK}glu.gate_up_proj", part=0),
        *linear(f"{layer}{glu}.l2", f"{_BLOCK}glu.gate_up_proj", part=1),
        *linear(f"{layer}{glu}.l3", f"{_BLOCK}glu.down_proj"),
        *linear(f"{layer}{glu_norm}", f"{_BLOCK}glu_norm"),
        *linear(f"{start}.{final_norm}", "model.stack.norm"),
    ]


def _fla_lines() -> Iterable[Line]:
    layer = "model.layers.{n}."
    yield Line("model.embeddings.weight", "model.embed_tokens.weight")
    yield Line("model.lower_bounds", "model.stack.bounds.logits", ROLL)
    yield from under(f"{layer}attn.", f"{_BLOCK}mixer.", FLA_LAYER.lines)
    yield Line(f"{layer}attn_norm.weight", f"{_BLOCK}mixer_norm.weight")
    yield Line(f"{layer}mlp.gate_proj.weight", f"{_BLOCK}glu.gate_up_proj.weight", part=0)
    yield Line(f"{layer}mlp.up_proj.weight", f"{_BLOCK}glu.gate_up_proj.weight", part=1)
    yield Line(f"{layer}mlp.down_proj.weight", f"{_BLOCK}glu.down_proj.weight")
    yield Line(f"{layer}mlp_norm.weight", f"{_BLOCK}glu_norm.weight")
    yield Line("model.norm.weight", "model.stack.norm.weight")
    yield Line("lm_head.weight", "lm_head.weight")


def _read_fla_config(given: dict[str, Any]) -> list[str]:
    problems = []

    # Releases of flash-linear-attention before this key exist, so we do not write it.
    if (size := given.pop("attnres_block_size", None)) is not None:
        problems.append(f"attnres_block_size: must be None, got {size!r}")

    conv_size = given.pop("conv_size", 4)
    has_conv = given.pop("use_short_conv", False)
    shared = given.pop("share_conv_kernel", None)
    given["conv_size"] = conv_size if has_conv else None
    if has_conv and shared is not None:
        problems.append(
            "share_conv_kernel: must be absent where use_short_conv is true (an older form), "
            f"got {shared!r}"
        )

    # Without intermediate_size the ratio decides: 2/3 of it, rounded up to a multiple of 256.
    ratio = given.pop("hidden_ratio", None) or 4
    width = given.get("hidden_size")
    if not isinstance(ratio, (int, float)) or not 0 < ratio < 1000:
        problems.append(f"hidden_ratio: must be a positive number, got {ratio!r}")
    elif given.get("intermediate_size") is None and isinstance(width, int) and abs(width) < 1 << 31:
        given["intermediate_size"] = 256 * -(-int(width * ratio * 2 / 3) // 256)
    return problems


def _write_fla_config(config: PreTrainedConfig) -> dict[str, Any]:
    return dict(
        use_short_conv=config.conv_size is not None,
        conv_size=config.conv_size or 4,
        norm_eps=config.norm_eps,
        attn_mode="fused_recurrent",
        architectures=["HGRNForCausalLM"],
    )


def _read_opennlplab_config(given: dict[str, Any]) -> list[str]:
    given["scale_embeddings"] = not given.pop("no_scale_embedding", False)
    return []


def _write_opennlplab_config(config: PreTrainedConfig) -> dict[str, Any]:
    return dict(bias=config.bias, no_scale_embedding=not config.scale_embeddings)


# flash-linear-attention's HGRNForCausalLM
FLA = Layout(
    name="fla",
    lines=tuple(_fla_lines()),
    has=(r"model\.layers\.\d+\.attn\.",),
    classes=_CLASSES,
    fixed=dict(
        glu_act="silu",
        bias=False,
        norm_type="rms",
        complex_state=False,
        use_lower_bound=True,
        gate_position="after_norm",
        gate_act="silu",
        gate_rank=None,
        scale_embeddings=False,
    ),
    defaults=dict(norm_eps=1e-6, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2),
    infer=_infer,
    assumed=_ASSUMED,
    config_file=ConfigFile(
        marks=("attn_mode", "expand_ratio"),
        allowed={
            "model_type": ("hgrn",),
            "expand_ratio": (1,),
            "use_lower_bound": (True,),
            "hidden_act": ("swish", "silu"),
            "elementwise_affine": (True,),
            "attn": (None,),
        },
        ignored=(
            "attn_mode",
            "max_position_embeddings",
            "num_heads",
            "initializer_range",
            "fuse_norm",
            "fuse_swiglu",
            "fuse_cross_entropy",
            "fuse_linear_cross_entropy",
            "use_l2warp",
            "auto_map",
        ),
        read=_read_fla_config,
        write=_write_fla_config,
    ),
)

# OpenNLPLab's models for transformers (HGRN-150M, -355M, -1B). Nobody here has seen their exact
# names. These are the names of the same authors' HGRN2 for transformers, with the layer of
# hgru-pytorch inside. Loading reports names that differ.
OPENNLPLAB = Layout(
    name="opennlplab",
    lines=(
        *_authors_lines(
            "model", "token_mixer", "token_norm", "channel_mixer", "channel_norm", "final_norm"
        ),
        Line("lm_head.weight", "lm_head.weight"),
    ),
    has=(r"model\.layers\.\d+\.token_mixer\.",),
    classes=_CLASSES,
    fixed=_AUTHORS | dict(glu_act="silu"),
    defaults=dict(bias=False, bos_token_id=0, eos_token_id=2, pad_token_id=1),
    infer=_infer,
    assumed=_ASSUMED,
    config_file=ConfigFile(
        marks=("decoder_embed_dim",),
        # "swish" may have run as the identity there; see docs/checkpoints.md.
        allowed={
            "model_type": ("hgrn",),
            "act_fun": ("silu",),
            "glu_act": ("silu", "swish"),
            "norm_type": ("layernorm",),
            "causal": (True,),
        },
        ignored=("use_triton", "init_std", "add_bos_token", "auto_map"),
        renamed={
            "decoder_embed_dim": "hidden_size",
            "decoder_layers": "num_hidden_layers",
            "glu_dim": "intermediate_size",
        },
        read=_read_opennlplab_config,
        write=_write_opennlplab_config,
    ),
)

# The authors' WikiText-103 language model in fairseq.
FAIRSEQ_LM = Layout(
    name="fairseq-lm",
    lines=(
        Line("decoder.version", None),
        *_authors_lines(
            "decoder",
            "self_attn.hgru",
            "self_attn_layer_norm",
            "glu",
            "final_layer_norm",
            "layer_norm",
        ),
        Line("decoder.output_projection.weight", "lm_head.weight"),
    ),
    has=(r"decoder\.layers\.\d+\.self_attn\.hgru\.",),
    classes=_CLASSES,
    fixed=_AUTHORS | dict(scale_embeddings=True),
    defaults=dict(glu_act="identity", bos_token_id=0, pad_token_id=1, eos_token_id=2),
    infer=_infer,
    assumed=_ASSUMED,
)

LANGUAGE_MODELS = (FLA, OPENNLPLAB, FAIRSEQ_LM)
