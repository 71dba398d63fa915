"""The command `hgrn convert`: a published checkpoint into ours, or ours into a published one."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from hgrn.errors import UserError
from hgrn.files import reading, whole_folder
from hgrn.models.backbone import HGRNPreTrainedModel
from hgrn.models.causal_lm import HGRNForCausalLM
from hgrn.models.image_classification import HGRNForImageClassification
from hgrn.models.published.config import from_fields
from hgrn.models.published.files import PublishedCheckpoint
from hgrn.models.published.layouts import OURS, families, variant_of
from hgrn.models.published.record import ConversionError, raise_problems
from hgrn.models.published.tensors import to_published
from hgrn.models.sequence_classification import (
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
)
from hgrn.untrusted import read_json

_CLASSES: dict[str, type[HGRNPreTrainedModel]] = {
    cls.__name__: cls
    for cls in (
        HGRNForCausalLM,
        HGRNForImageClassification,
        HGRNForSequenceClassification,
        HGRNForSequencePairClassification,
    )
}
# What is copied along where it is in the source.
_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


def convert_checkpoint(source: Path, out: Path, to: str | None = None, **fields: Any) -> list[str]:
    """Write the model in `source` into a new folder, in our layout or in the layout `to`.

    Tokenizer files are copied.

    Args:
        source: a folder, or a file of tensors.
        out: a new folder.
        to: one of `layouts.families()`, or None for our own layout.
        fields: of `HGRNConfig`, in place of those that a published source says or implies.

    Returns:
        Lines that say what was read, assumed and written.

    Raises:
        UserError: out exists, the source is no checkpoint or does not fit together, or the layout
            cannot hold the model; nothing is left at `out`.
    """
    with reading(out, "give another name"):
        if out.exists():
            raise UserError(f"{out} exists already; name a new folder")
    with reading(source):
        if not source.exists():
            raise UserError(f"there is no {source}: give a folder or a file of tensors")
    # All that can be refused is refused before the model is read, which may take minutes.
    found = PublishedCheckpoint.find(source, {})
    if found is None:
        _check_own(source)
    _check_target(source, found, to, fields)
    model = _load(source, found, fields)

    layout = OURS if found is None else found.layout
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = [f"read {source}, layout {layout.name}: {count:,} parameters"]
    if found is not None and found.config is None:
        assumed = ", ".join(f"{name} {getattr(model.config, name)}" for name in layout.assumed)
        lines.append(f"not in the source, and assumed: {assumed}")

    with whole_folder(out) as draft:
        if to is None:
            model.save_pretrained(draft)
        else:
            _save_published(model, draft, to)
        copied = _copy_beside(source, draft)
    beside = f", with {', '.join(copied)}" if copied else ""
    return [*lines, f"wrote {out}, layout {to or OURS.name}{beside}"]


def _check_own(source: Path) -> None:
    """Raise ConversionError if `source`, in no published layout, holds no model of ours either."""
    file = source / CONFIG_NAME
    if not file.is_file():
        names = f"{CONFIG_NAME}, {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}"
        raise ConversionError(
            f"{source} holds no model (no {names}): give the folder of a saved model, or a file of "
            "tensors"
        )
    kind = read_json(file).get("model_type")
    if kind != "hgrn":
        raise ConversionError(
            f"{source} holds a model of type {kind!r}, and HGRN is converted here"
        )


def _check_target(
    source: Path, found: PublishedCheckpoint | None, to: str | None, fields: dict[str, Any]
) -> None:
    """Raise UserError for a layout that is unknown or there already, or fields it decides."""
    if to is not None and to not in families():
        raise UserError(f"--to must be one of {', '.join(families())}, got {to!r}")
    here = OURS.family if found is None else found.layout.family
    target = to or OURS.family
    if here == target:
        hint = "; say which other with --to" if to is None else ""
        raise UserError(f"{source} is in the layout {target!r} already{hint}")
    if fields and found is None:
        raise UserError(
            f"{source} is in our own layout, whose config.json decides {', '.join(fields)}"
        )


def _load(
    source: Path, found: PublishedCheckpoint | None, fields: dict[str, Any]
) -> HGRNPreTrainedModel:
    """The model in the source.

    Raises UserError if it cannot be loaded, or any tensor is left over or missing.
    """
    try:
        if found is None:
            kind = _CLASSES[_own_class_name(source)]
            model, report = kind.from_pretrained(source, output_loading_info=True)
        else:
            kind = _CLASSES[found.layout.class_name_of(found.names)]
            model, report = kind.from_checkpoint(found, output_loading_info=True, **fields)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{source} does not hold a model that can be loaded: {error}") from error
    # transformers only warns of such tensors, and makes up those that are missing.
    problems = [
        f"{kind}: {', '.join(map(str, sorted(names)))}" for kind, names in report.items() if names
    ]
    raise_problems(problems, f"the model in {source} cannot be converted")
    return model


def _own_class_name(folder: Path) -> str:
    """The class that saved a folder in our own layout."""
    named = read_json(folder / CONFIG_NAME).get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) and first in _CLASSES else "HGRNForCausalLM"


def _save_published(model: HGRNPreTrainedModel, out: Path, family: str) -> None:
    layout = variant_of(family, model.config)
    config = from_fields(model.config, layout)
    tensors = to_published(model, layout.name)
    save_file(tensors, out / SAFE_WEIGHTS_NAME, {"format": "pt"})
    if config is not None:
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (out / CONFIG_NAME).write_text(text, encoding="utf-8")


def _copy_beside(source: Path, out: Path) -> list[str]:
    """Copy the tokenizer and the settings of generation, if they are there; return the names."""
    names = [name for name in _BESIDE if (source / name).is_file() and not (out / name).exists()]
    for name in names:
        shutil.copyfile(source / name, out / name)
    return names
