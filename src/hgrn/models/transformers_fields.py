"""The fields of a configuration that are transformers' own, and what is wrong with them."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from hgrn.models.fields import is_int

# Keys that transformers itself writes into any configuration or passes to it, and that are no
# fields of it.
OF_TRANSFORMERS = {
    "model_type",
    "auto_map",
    "name_or_path",
    "num_labels",
    "torch_dtype",
    "output_attentions",
    "attn_implementation",
    "experts_implementation",
    "quantization_config",
    "per_layer_config",
    "tie_last_hidden_states",
    "tokenizer_class",
    "transformers_weights",
    "mixer_record",  # ours: which class a registered mixer was (hgrn.models.mixer_fields)
    "custom_modules",  # ours: `save_pretrained` records the custom parts of a model here
    "_name_or_path",
    "_commit_hash",
    "_auto_class",
    "_from_auto",
    "_from_pipeline",
    "_output_attentions",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_experts_implementation_internal",
}
_PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")
_MOST_LABELS = (
    1_000_000  # a model with more is a mistake, or a file that is meant to fill the memory
)


def transformers_problems(config: PreTrainedConfig, given: Mapping[str, Any]) -> list[str]:
    """A line for each field of transformers that it does not check itself, or not clearly."""
    problems = []
    dtype = given.get("torch_dtype") if config.dtype is None else config.dtype
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(named, torch.dtype):
        problems.append(
            f"dtype: must be the name of a type of PyTorch, such as float32, got {dtype!r}"
        )
    labels = config.id2label
    if labels is not None and not (
        isinstance(labels, Mapping) and len(labels) <= _MOST_LABELS and _are_numbered(labels)
    ):
        problems.append(
            f"id2label: must be a name for each number from 0, at most {_MOST_LABELS:,} of them, "
            "or None"
        )
    classes = given.get("num_labels")
    if classes is not None and not (is_int(classes) and 0 < classes <= _MOST_LABELS):
        problems.append(
            f"num_labels: must be an integer from 1 to {_MOST_LABELS:,}, got {classes!r}"
        )
    if not isinstance(config.label2id, Mapping | None):
        problems.append(
            f"label2id: must be a number for each name or None, got {config.label2id!r}"
        )
    if config.problem_type not in _PROBLEM_TYPES:
        listed = ", ".join(map(str, _PROBLEM_TYPES))
        problems.append(f"problem_type: must be one of {listed}, got {config.problem_type!r}")
    problems += [
        f"{name}: must be True, False or None, got {value!r}"
        for name in ("output_hidden_states", "return_dict", "is_encoder_decoder")
        if not isinstance(value := getattr(config, name), bool | None)
    ]
    quantization = given.get("quantization_config")
    is_object = isinstance(quantization, Mapping) or hasattr(quantization, "to_dict")
    if quantization is not None and not is_object:
        problems.append(f"quantization_config: must be an object or None, got {quantization!r}")
    for name in ("attn_implementation", "experts_implementation", "per_layer_config"):
        if (value := given.get(name, given.get(f"_{name}"))) not in (None, "eager", "sdpa"):
            problems.append(
                f"{name}: must be None, since there is no such part in these models, got {value!r}"
            )
    return problems


def _are_numbered(labels: Mapping[Any, str]) -> bool:
    """Whether the keys are 0, 1, 2, ..., as numbers or, as JSON writes them, as text."""
    return {str(key) for key in labels} == {str(number) for number in range(len(labels))}
