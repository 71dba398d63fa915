"""Steps of `from_pretrained`: checks of what is there, and tensors that fit the model."""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hgrn.errors import UserError
from hgrn.models.configuration import HGRNConfig
from hgrn.models.published.files import PublishedCheckpoint
from hgrn.models.published.record import ConversionError
from hgrn.models.published.tensors import named_tensors, published_names, state_dict_for

# A byte holds at most so many numbers of a model; the smallest types we know put two in one.
_NUMBERS_PER_BYTE = 4
# The tensors of heads in a published checkpoint. A model without that head leaves them out.
_HEAD_TENSORS = (
    "lm_head.weight",
    *(
        f"{head}.{kind}"
        for head in ("score", "classifier.0", "classifier.2")
        for kind in ("weight", "bias")
    ),
)


def check_folder_size(folder: str | os.PathLike[str], config: HGRNConfig | None) -> None:
    """Raise ValueError if the configuration describes a model far larger than the files.

    transformers would make what is missing and say only then that it does not fit: one wrong digit
    would fill the memory.
    """
    sizes = [
        file.stat().st_size
        for file in os.scandir(folder)
        if file.name.endswith((".safetensors", ".bin"))
    ]
    if not sizes:
        return
    if config is None:
        config = HGRNConfig.from_pretrained(folder)
    if isinstance(config, HGRNConfig) and _is_too_large(config, sum(sizes)):
        raise ValueError(
            f"{folder}: the configuration describes a model of {config.fewest_numbers:,} "
            f"parameters or more, and its files have {sum(sizes):,} bytes; one of them is not the "
            "model's"
        )


def check_published_size(found: PublishedCheckpoint, config: HGRNConfig) -> None:
    """Raise ConversionError if the configuration describes a model far larger than the tensors."""
    if _is_too_large(config, sum(tensor.nbytes for tensor in found.tensors.values())):
        raise ConversionError(
            f"{found.path}: its tensors are only a small part of the model that its configuration "
            "describes"
        )


def _is_too_large(config: HGRNConfig, nbytes: int) -> bool:
    return config.fewest_numbers > _NUMBERS_PER_BYTE * nbytes


def published_state_dict(found: PublishedCheckpoint, model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a published checkpoint for such a model, which may be on the meta device.

    Raises ConversionError, naming every tensor that is unexpected, missing or of another shape.
    """
    layout = found.layout.name
    backbone = f"{model.base_model_prefix}."
    prefix = backbone if model.base_model is model else ""
    parameters = {prefix + name: tensor for name, tensor in named_tensors(model).items()}

    tensors = dict(found.tensors)
    for name in _HEAD_TENSORS:
        if name not in parameters:
            for published in published_names(name, layout):
                tensors.pop(published, None)

    # A head that the layout does not have is initialised by transformers, which says so.
    expected = {
        name: tensor
        for name, tensor in parameters.items()
        if name.startswith(backbone) or published_names(name, layout)
    }
    return state_dict_for(expected, tensors, layout)


def refuse_int8_weights(
    model: nn.Module, path: str | os.PathLike[str] | None, report: Mapping[str, Any]
) -> None:
    """Raise UserError if the unexpected keys in transformers' report are those of 8-bit weights."""
    linear = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    scales = sorted(
        key
        for key in report["unexpected_keys"]
        if key.endswith(".scale") and key.removesuffix(".scale") in linear
    )
    if scales:
        raise UserError(
            f"{path} holds 8-bit weights ({scales[0]} and {len(scales) - 1} more scales), which "
            "are no weights of a saved model; load what was saved before quantize_int8, and "
            "quantize it again"
        )
