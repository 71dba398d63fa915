"""The layouts of language models: flash-linear-attention's, OpenNLPLab's, and fairseq's."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hgrn.models.fields import is_int
from hgrn.models.mixer_fields import mixer_arguments
from hgrn.models.published.record import (
    CANDIDATE_LAST,
    ROLL,
    ConfigFile,
    Layout,
    Line,
    linear,
    under,
)
from hgrn.models.published.single_layers import FLA_HGRN2_LAYER, FLA_LAYER, HGRU
from hgrn.modules import HGRN2Mixer
from hgrn.modules.mixers import mixer_on_meta

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
# No tensor tells how many channels a head has. This is flash-linear-attention's default, and the
# paper's language models have it.
_HEAD_DIM = 128


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
    start: str, mixer: str, glu: str, of_mixer: Iterable[Line] = HGRU.lines
) -> list[Line]:
    """The lines of the authors' models without norms; the models differ in these parts of names."""
    layer = f"{start}.layers.{{n}}."
    return [
        Line(f"{start}.embed_tokens.weight", "model.embed_tokens.weight"),
        Line(f"{start}.lower_bounds", "model.stack.bounds.logits", ROLL),
        *under(f"{layer}{mixer}.", f"{_BLOCK}mixer.", of_mixer),
        *linear(f"{layer}{glu}.l1", f"{_BLOCK}glu.gate_up_proj", part=0),
        *linear(f"{layer}{glu}.l2", f"{_BLOCK}glu.gate_up_proj", part=1),
        *linear(f"{layer}{glu}.l3", f"{_BLOCK}glu.down_proj"),
    ]


def _authors_norms(start: str, mixer_norm: str, glu_norm: str, final_norm: str) -> list[Line]:
    layer = f"{start}.layers.{{n}}."
    return [
        *linear(f"{layer}{mixer_norm}", f"{_BLOCK}mixer_norm"),
        *linear(f"{layer}{glu_norm}", f"{_BLOCK}glu_norm"),
        *linear(f"{start}.{final_norm}", "model.stack.norm"),
    ]


def _fla_lines(of_mixer: Iterable[Line]) -> Iterable[Line]:
    layer = "model.layers.{n}."
    yield Line("model.embeddings.weight", "model.embed_tokens.weight")
    yield Line("model.lower_bounds", "model.stack.bounds.logits", ROLL)
    yield from under(f"{layer}attn.", f"{_BLOCK}mixer.", of_mixer)
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
    conv_size = mixer_arguments(config).get("conv_size")
    return dict(
        use_short_conv=conv_size is not None,
        conv_size=conv_size or 4,
        norm_eps=config.norm_eps,
        attn_mode="fused_recurrent",
        architectures=["HGRNForCausalLM"],
    )


def _read_fla_hgrn2_config(given: dict[str, Any]) -> list[str]:
    problems = _read_fla_config(given)
    width = given.get("hidden_size")
    head_dim = given.pop("expand_ratio", _HEAD_DIM)
    heads = given.pop("num_heads", None)
    if head_dim is None and is_int(width) and is_int(heads) and heads > 0:
        head_dim = width // heads
    if not is_int(head_dim) or head_dim < 1:
        problems.append(
            "expand_ratio: must be the channels of a head, or None where num_heads is given, "
            f"got {head_dim!r}"
        )
    # Queries and candidates of different sizes would make states that are not square.
    elif heads is not None and (not is_int(heads) or heads * head_dim != width):
        problems.append(
            f"num_heads: must be hidden_size / expand_ratio ({width} / {head_dim}), got {heads!r}"
        )
    given["mixer_options"] = {"head_dim": head_dim}
    return problems


def _write_fla_hgrn2_config(config: PreTrainedConfig) -> dict[str, Any]:
    mixer = _hgrn2_mixer(config)
    return _write_fla_config(config) | dict(
        expand_ratio=mixer.head_dim,
        num_heads=mixer.heads,
        attn_mode="chunk",
        architectures=["HGRN2ForCausalLM"],
    )


def _hgrn2_mixer(config: PreTrainedConfig) -> HGRN2Mixer:
    """A mixer of the model, for its options."""
    made = mixer_on_meta(config.mixer, config.hidden_size, mixer_arguments(config))
    return cast(HGRN2Mixer, made)


def _read_opennlplab_config(given: dict[str, Any]) -> list[str]:
    given["scale_embeddings"] = not given.pop("no_scale_embedding", False)
    return []


def _write_opennlplab_config(config: PreTrainedConfig) -> dict[str, Any]:
    return dict(bias=config.bias, no_scale_embedding=not config.scale_embeddings)


def _read_opennlplab_hgrn2_config(given: dict[str, Any]) -> list[str]:
    # The defaults of the authors' class, which a file always states.
    given["scale_embeddings"] = not given.pop("no_scale_embedding", True)
    given["mixer_options"] = {"head_dim": given.pop("expand_ratio", 2)}
    return []


def _write_opennlplab_hgrn2_config(config: PreTrainedConfig) -> dict[str, Any]:
    written = _write_opennlplab_config(config)
    return written | dict(expand_ratio=_hgrn2_mixer(config).head_dim)


_FLA_FIXED = dict(
    glu_act="silu",
    bias=False,
    norm_type="rms",
    use_lower_bound=True,
    scale_embeddings=False,
)
_FLA_DEFAULTS = dict(norm_eps=1e-6, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
_FLA_ALLOWED = {
    "use_lower_bound": (True,),
    "hidden_act": ("swish", "silu"),
    "elementwise_affine": (True,),
    "attn": (None,),
}
_FLA_IGNORED = (
    "attn_mode",
    "max_position_embeddings",
    "initializer_range",
    "fuse_norm",
    "fuse_swiglu",
    "fuse_cross_entropy",
    "fuse_linear_cross_entropy",
    "use_l2warp",
    "auto_map",
)

# flash-linear-attention's HGRNForCausalLM
FLA = Layout(
    name="fla",
    lines=tuple(_fla_lines(FLA_LAYER.lines)),
    has=(r"model\.layers\.\d+\.attn\.",),
    lacks=(r"model\.layers\.\d+\.attn\.q_proj\.",),
    classes=_CLASSES,
    fixed=_FLA_FIXED
    | dict(complex_state=False, gate_position="after_norm", gate_act="silu", gate_rank=None),
    defaults=_FLA_DEFAULTS,
    infer=_infer,
    assumed=_ASSUMED,
    config_file=ConfigFile(
        marks=("attn_mode", "expand_ratio"),
        allowed={"expand_ratio": (1,), **_FLA_ALLOWED},
        ignored=("num_heads", *_FLA_IGNORED),
        read=_read_fla_config,
        write=_write_fla_config,
    ),
)

# flash-linear-attention's HGRN2ForCausalLM
FLA_HGRN2 = Layout(
    name="fla-hgrn2",
    lines=tuple(_fla_lines(FLA_HGRN2_LAYER.lines)),
    has=(r"model\.layers\.\d+\.attn\.q_proj\.",),
    classes=_CLASSES,
    fixed=_FLA_FIXED | dict(mixer="hgrn2"),
    # The norm inside a mixer takes the default of its own class, whatever the configuration says.
    mixer_options=dict(query_act="silu", candidate_act="identity", scale=None, norm_eps=1e-5),
    defaults=_FLA_DEFAULTS | dict(mixer_options={"head_dim": _HEAD_DIM}),
    infer=_infer,
    assumed=(*_ASSUMED, "mixer_options"),
    config_file=ConfigFile(
        model_type="hgrn2",
        marks=("attn_mode", "hidden_ratio", "use_short_conv"),
        allowed=_FLA_ALLOWED,
        ignored=_FLA_IGNORED,
        read=_read_fla_hgrn2_config,
        write=_write_fla_hgrn2_config,
    ),
)

_OPENNLPLAB_NAMES = {
    "decoder_embed_dim": "hidden_size",
    "decoder_layers": "num_hidden_layers",
    "glu_dim": "intermediate_size",
}

# OpenNLPLab's models for transformers (HGRN-150M, -355M, -1B). Nobody here has seen their exact
# names. These are the names of the same authors' HGRN2 for transformers, with the layer of
# hgru-pytorch inside. Loading reports names that differ.
OPENNLPLAB = Layout(
    name="opennlplab",
    lines=(
        *_authors_lines("model", "token_mixer", "channel_mixer"),
        *_authors_norms("model", "token_norm", "channel_norm", "final_norm"),
        Line("lm_head.weight", "lm_head.weight"),
    ),
    has=(r"model\.layers\.\d+\.token_mixer\.",),
    lacks=(r"model\.layers\.\d+\.token_mixer\.in_proj\.",),
    classes=_CLASSES,
    fixed=_AUTHORS | dict(glu_act="silu"),
    defaults=dict(bias=False, bos_token_id=0, eos_token_id=2, pad_token_id=1),
    infer=_infer,
    assumed=_ASSUMED,
    config_file=ConfigFile(
        marks=("decoder_embed_dim",),
        # "swish" may have run as the identity there; see docs/checkpoints.md.
        allowed={
            "act_fun": ("silu",),
            "glu_act": ("silu", "swish"),
            "norm_type": ("layernorm",),
            "causal": (True,),
        },
        ignored=("use_triton", "init_std", "add_bos_token", "auto_map"),
        renamed=_OPENNLPLAB_NAMES,
        read=_read_opennlplab_config,
        write=_write_opennlplab_config,
    ),
)

# The authors' HGRN2 for transformers (hgru2-pytorch). Nobody here has seen a released checkpoint:
# these are the names of the authors' code. Its norms (SimpleRMSNorm) have no weights.
OPENNLPLAB_HGRN2 = Layout(
    name="opennlplab-hgrn2",
    lines=(
        *_authors_lines(
            "model",
            "token_mixer",
            "channel_mixer",
            [*linear("in_proj", "in_proj", CANDIDATE_LAST), *linear("out_proj", "out_proj")],
        ),
        Line("lm_head.weight", "lm_head.weight"),
    ),
    ones=(
        f"{_BLOCK}mixer.norm.weight",
        f"{_BLOCK}mixer_norm.weight",
        f"{_BLOCK}glu_norm.weight",
        "model.stack.norm.weight",
    ),
    has=(r"model\.layers\.\d+\.token_mixer\.in_proj\.",),
    classes=_CLASSES,
    fixed=dict(
        mixer="hgrn2", norm_type="rms", norm_eps=1e-6, use_lower_bound=True, glu_act="identity"
    ),
    mixer_options=dict(query_act="silu", candidate_act="identity", scale=1.0, conv_size=None),
    defaults=dict(
        bias=False,
        scale_embeddings=False,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        mixer_options={"head_dim": _HEAD_DIM},
    ),
    infer=_infer,
    assumed=("scale_embeddings", *_ASSUMED, "mixer_options"),
    config_file=ConfigFile(
        model_type="hgrn2",
        marks=("decoder_embed_dim",),
        # The authors' helper runs "none", and any name that it does not know, as the identity.
        allowed={
            "in_act": ("none",),
            "out_act": ("silu",),
            "glu_act": ("none",),
            "norm_type": ("simplermsnorm",),
            "causal": (True,),
        },
        ignored=("init_std", "add_bos_token", "auto_map"),
        renamed=_OPENNLPLAB_NAMES,
        read=_read_opennlplab_hgrn2_config,
        write=_write_opennlplab_hgrn2_config,
    ),
)

# The authors' WikiText-103 language model in fairseq.
FAIRSEQ_LM = Layout(
    name="fairseq-lm",
    lines=(
        Line("decoder.version", None),
        *_authors_lines("decoder", "self_attn.hgru", "glu"),
        *_authors_norms("decoder", "self_attn_layer_norm", "final_layer_norm", "layer_norm"),
        Line("decoder.output_projection.weight", "lm_head.weight"),
    ),
    has=(r"decoder\.layers\.\d+\.self_attn\.hgru\.",),
    classes=_CLASSES,
    fixed=_AUTHORS | dict(scale_embeddings=True),
    defaults=dict(glu_act="identity", bos_token_id=0, pad_token_id=1, eos_token_id=2),
    infer=_infer,
    assumed=_ASSUMED,
)

LANGUAGE_MODELS = (FLA, FLA_HGRN2, OPENNLPLAB, OPENNLPLAB_HGRN2, FAIRSEQ_LM)
