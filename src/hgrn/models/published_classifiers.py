"""The authors' image and Long Range Arena checkpoints: files of tensors, from whose names and shapes the configuration is told.

Each of the two layouts, "vit" and "lra", has a few forms whose names or meanings differ; `convert.LAYOUTS` has a table for each.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

LAYOUTS = ("vit", "lra")
# How the name of one of the tensors begins.
NAMES = {"vit": r"layers\.\d+\.token_mixer\.", "lra": r"model\.layers\.\d+\.layer\.hgru\."}

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
_VIT = _AUTHORS | dict(
    norm_type="layer", final_norm="pooled", sinusoidal_positions=False, grid=False
)
_LRA = _AUTHORS | dict(final_norm="tokens", mask_padding=False)
# Our fields, as every model of a form has them.
FIXED = {
    "vit": _VIT | dict(shared_theta=False),
    "vit-shared": _VIT | dict(shared_theta=True),
    **{
        f"lra-{kind}{shared}{position}": _LRA
        | dict(shared_theta=bool(shared), sinusoidal_positions=not position)
        | (dict(patch_size=1) if kind == "image" else dict(patch_size=None, scale_embeddings=False))
        for kind in ("text", "image")
        for shared in ("", "-shared")
        for position in ("", "-nopos")
    },
}
# What no tensor tells, and is assumed as in the authors' scripts: reported where a file is converted.
ASSUMED = {
    "vit": ("num_channels",),
    "lra-image": ("grid", "dropout", "embedding_dropout"),
    "lra-text": ("dropout", "embedding_dropout"),
}


def form_of_names(layout: str, names: Iterable[str]) -> str:
    """The form of the layout "vit" or "lra" in which tensors have such names."""
    names = set(names)
    shared = "-shared" if any(name.endswith(".theta") for name in names) else ""
    if layout == "vit":
        return f"vit{shared}"
    kind = "image" if {"encoder.bias", "encoder.0.bias"} & names else "text"
    return f"lra-{kind}{shared}{'-nopos' if 'encoder.weight' in names else ''}"


def form_of_config(layout: str, config) -> str:
    """The form of the layout "vit" or "lra" for a model with this `HGRNConfig`; `published.from_fields` says whether it fits."""
    shared = "-shared" if config.shared_theta else ""
    if layout == "vit":
        return f"vit{shared}"
    kind = "text" if config.patch_size is None else "image"
    return f"lra-{kind}{shared}{'' if config.sinusoidal_positions else '-nopos'}"


def assumed(layout: str) -> tuple[str, ...]:
    """The fields of a form that no tensor tells."""
    return next((names for form, names in ASSUMED.items() if layout.startswith(form)), ())


def head(names: Iterable[str]) -> str:
    """The class for tensors of either layout."""
    names = list(names)
    if any(name.startswith("decoder.retrieval.") for name in names):
        return "HGRNForSequencePairClassification"
    is_text = re.search(NAMES["lra"], "\n".join(names)) and not {
        "encoder.bias",
        "encoder.0.bias",
    } & set(names)
    return "HGRNForSequenceClassification" if is_text else "HGRNForImageClassification"


def told(tensors: Mapping[str, Tensor], layout: str) -> dict:
    """Fields that the sizes of tensors tell, under our names of them; and what is assumed of the others."""
    fields = dict(norm_type="batch" if "model.stack.norm.running_mean" in tensors else "layer")
    if labels := [
        tensors[name] for name in ("score.weight", "classifier.2.weight") if name in tensors
    ]:
        fields["num_labels"] = labels[0].shape[0]
    patch = tensors.get("model.embed_patches.proj.weight")
    if layout.startswith("vit"):
        del fields["norm_type"]
        inputs = 0 if patch is None else patch.shape[1]
        channels = 3 if inputs % 3 == 0 and _root(inputs // 3) else 1
        return fields | dict(num_channels=channels, patch_size=_root(inputs // channels) or 1)
    fields |= dict(
        initialization="lra", embedding_dropout=0.0 if layout.endswith("-nopos") else 0.1
    )
    return fields | (dict(num_channels=patch.shape[1], grid=True) if patch is not None else {})


def _root(number: int) -> int | None:
    root = round(number**0.5)
    return root if root * root == number and root > 0 else None
