"""The layouts of the authors' image ("vit") and Long Range Arena ("lra") models.

Both are files of tensors alone. Each of the two families has variants whose tensors or meanings
differ; every variant is a layout.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hgrn.models.published.record import Change, ConversionError, Layout, Line, linear, under
from hgrn.models.published.single_layers import BIHGRU, HGRU
from hgrn.modules import sinusoids

_BLOCK = "model.stack.blocks.{n}."
_AUTHORS = dict(
    glu_act="silu",
    bias=True,
    norm_eps=1e-5,
    complex_state=True,
    use_lower_bound=True,
    gate_position="after_norm",
    gate_act="silu",
    gate_rank=None,
    conv_size=None,
    bidirectional=True,
    pooling="mean",
)
_THETA = r".*\.theta\Z"  # one theta for both directions; otherwise there are two with other names


def _check_sinusoids(table: Tensor) -> Tensor:
    """Refuse any other table of positions than the fixed one.

    Authors make the table in float32, whose angles are off by up to 1e-3 radians at position 16384.
    """
    length, dim = table.shape
    expected = sinusoids(torch.arange(length, device=table.device), dim, torch.float64)
    if not torch.allclose(table.double(), expected, rtol=0, atol=5e-3):
        raise ConversionError(
            "is not the fixed table of sines and cosines that a model with sinusoidal_positions "
            "adds"
        )
    return table


SINUSOIDS = Change(_check_sinusoids, lambda x: x)


def _num_labels(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The number of classes, from the last map of either head; nothing without a head."""
    heads = [tensors.get("score.weight"), tensors.get("classifier.2.weight")]
    return next((dict(num_labels=head.shape[0]) for head in heads if head is not None), {})


# ----------------------------------------------------------------------------------------------
# vit: OpenNLPLab/im


def _infer_vit(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    inputs = tensors["model.embed_patches.proj.weight"].shape[1]
    # Only the product channels * patch_size^2 is known; three channels are likelier than one.
    channels = 3 if inputs % 3 == 0 and _root(inputs // 3) else 1
    patch_size = _root(inputs // channels) or 1
    return _num_labels(tensors) | dict(num_channels=channels, patch_size=patch_size)


def _root(number: int) -> int | None:
    """The whole square root of a number, or None if there is none."""
    root = round(number**0.5)
    return root if root * root == number and root > 0 else None


def _vit(is_shared: bool) -> Layout:
    layer = "layers.{n}."
    return Layout(
        name="vit-shared" if is_shared else "vit",
        family="vit",
        lines=(
            *linear("to_patch_embedding.1", "model.embed_patches.proj"),
            Line("lower_bounds", "model.stack.bounds.logits"),
            *under(
                f"{layer}token_mixer.", f"{_BLOCK}mixer.", (HGRU if is_shared else BIHGRU).lines
            ),
            *linear(f"{layer}token_norm", f"{_BLOCK}mixer_norm"),
            *linear(f"{layer}feature_mixer.l1", f"{_BLOCK}glu.gate_up_proj", part=0),
            *linear(f"{layer}feature_mixer.l2", f"{_BLOCK}glu.gate_up_proj", part=1),
            *linear(f"{layer}feature_mixer.l3", f"{_BLOCK}glu.down_proj"),
            *linear(f"{layer}feature_norm", f"{_BLOCK}glu_norm"),
            *linear("head.1", "score"),
        ),
        has=(r"layers\.\d+\.token_mixer\.", *([_THETA] if is_shared else [])),
        lacks=() if is_shared else (_THETA,),
        classes={"": "HGRNForImageClassification"},
        fits=lambda config: config.shared_theta == is_shared,
        fixed=_AUTHORS
        | dict(
            norm_type="layer",
            final_norm="pooled",
            sinusoidal_positions=False,
            grid=False,
            shared_theta=is_shared,
        ),
        infer=_infer_vit,
        assumed=("num_channels",),
    )


# ----------------------------------------------------------------------------------------------
# lra: OpenNLPLab/lra


def _norm(published: str, ours: str) -> list[Line]:
    """A norm that may be a batch norm."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return [
        *linear(published, ours),
        *(Line(f"{published}.{kind}", f"{ours}.{kind}") for kind in statistics),
    ]


def _lra_lines(reads_images: bool, is_shared: bool, has_positions: bool) -> list[Line]:
    """HGRU and GLU are a layer each there. Their table of bounds is ours as it is."""
    encoder = "encoder.0" if has_positions else "encoder"
    tokens = [Line(f"{encoder}.weight", "model.embed_tokens.weight")]
    hgru = HGRU if is_shared else BIHGRU
    mixer_layer = "model.layers.{2n}."
    glu_layer = "model.layers.{2n+1}."
    return [
        *(linear(encoder, "model.embed_patches.proj") if reads_images else tokens),
        *([Line("encoder.1.pe", None, SINUSOIDS)] if has_positions else []),
        Line("model.lower_bounds", "model.stack.bounds.logits"),
        *under(f"{mixer_layer}layer.hgru.", f"{_BLOCK}mixer.", hgru.lines),
        *_norm(f"{mixer_layer}norm.norm", f"{_BLOCK}mixer_norm"),
        *linear(f"{glu_layer}layer.l1", f"{_BLOCK}glu.gate_up_proj", part=0),
        *linear(f"{glu_layer}layer.l2", f"{_BLOCK}glu.gate_up_proj", part=1),
        *linear(f"{glu_layer}layer.l3", f"{_BLOCK}glu.down_proj"),
        *_norm(f"{glu_layer}norm.norm", f"{_BLOCK}glu_norm"),
        *_norm("model.norm.norm", "model.stack.norm"),
        *linear("decoder.output_transform", "score"),
        *linear("decoder.retrieval.classifier.0", "classifier.0"),
        *linear("decoder.retrieval.classifier.2", "classifier.2"),
    ]


def _infer_lra(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    is_batch = "model.stack.norm.running_mean" in tensors
    patch = tensors.get("model.embed_patches.proj.weight")
    channels = {} if patch is None else dict(num_channels=patch.shape[1])
    return _num_labels(tensors) | dict(norm_type="batch" if is_batch else "layer") | channels


def _lra(reads_images: bool, is_shared: bool, has_positions: bool) -> Layout:
    kind = "image" if reads_images else "text"
    shared = "-shared" if is_shared else ""
    positions = "" if has_positions else "-nopos"

    # Which tensors tell the variants from each other.
    marks = {
        r"encoder(\.0)?\.bias\Z": reads_images,
        _THETA: is_shared,
        r"encoder\.weight\Z": not has_positions,
    }

    def fits(config: PreTrainedConfig) -> bool:
        return (
            (config.patch_size is not None) == reads_images
            and config.shared_theta == is_shared
            and config.sinusoidal_positions == has_positions
        )

    pairs = {r"decoder\.retrieval\.": "HGRNForSequencePairClassification"}
    if reads_images:
        classes = {"": "HGRNForImageClassification"}
        of_kind = dict(patch_size=1)
        defaults = dict(grid=True)
        assumed = ("grid", "dropout", "embedding_dropout")
    else:
        classes = pairs | {"": "HGRNForSequenceClassification"}
        of_kind = dict(patch_size=None, scale_embeddings=False)
        defaults = {}
        assumed = ("dropout", "embedding_dropout")
    return Layout(
        name=f"lra-{kind}{shared}{positions}",
        family="lra",
        lines=tuple(_lra_lines(reads_images, is_shared, has_positions)),
        has=(
            r"model\.layers\.\d+\.layer\.hgru\.",
            *(start for start, is_there in marks.items() if is_there),
        ),
        lacks=tuple(start for start, is_there in marks.items() if not is_there),
        classes=classes,
        fits=fits,
        fixed=_AUTHORS
        | dict(final_norm="tokens", mask_padding=False)
        | dict(shared_theta=is_shared, sinusoidal_positions=has_positions)
        | of_kind,
        # The authors' module that adds positions drops out 0.1 by default.
        defaults=defaults
        | dict(initialization="lra", embedding_dropout=0.1 if has_positions else 0.0),
        infer=_infer_lra,
        assumed=assumed,
    )


CLASSIFIERS = (
    _vit(is_shared=False),
    _vit(is_shared=True),
    *(
        _lra(reads_images, is_shared, has_positions)
        for reads_images, is_shared, has_positions in itertools.product(
            (False, True), (False, True), (True, False)
        )
    ),
)
