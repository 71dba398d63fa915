"""The model card: a README.md about what a model is, how it was made and how to load it."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

import hgrn

NAME = "README.md"

_LOAD = """\
from hgrn.models import {name}

model = {name}.from_pretrained(folder)"""
_GENERATE = """\
import hgrn.models                                 # registers the model with transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)  # where it was saved with the model
prompt = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))"""
# For each class: what it is, what the Hub calls its task, and how it is used.
_KINDS = {
    "HGRNModel": ("without a head: token ids to hidden states", "feature-extraction", _LOAD),
    "HGRNForCausalLM": ("for language modelling", "text-generation", _GENERATE),
    "HGRNForImageClassification": (
        "for the classification of images",
        "image-classification",
        _LOAD,
    ),
    "HGRNForSequenceClassification": (
        "for the classification of sequences",
        "text-classification",
        _LOAD,
    ),
    "HGRNForSequencePairClassification": (
        "for the classification of pairs of sequences",
        None,
        _LOAD,
    ),
}
_OTHER_KIND = ("with a head of its own", None, _LOAD)

_MARK = "<!-- Written by hgrn"
_TEXT = """\
---
library_name: transformers
tags: [hgrn]{task}
---
# {name}

An HGRN (Hierarchically Gated Recurrent Network; Qin, Yang and Zhong, NeurIPS 2023) {what}.
It has {parameters:,} parameters in {dtype}. {state}

## Use

This folder was saved by version {version} of the package hgrn. Install it in a clone of its
repository with `pip install -c constraints.txt .`, and then:

```python
folder = "."                                       # where this file is
{example}
```

Programs that do not import hgrn, but run where it is installed, load this folder with
`trust_remote_code=True`.

## How it came about

{facts}

## Configuration

| field | value |
|---|---|
{configuration}

"""


def write_card(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write the card of a saved model, unless there is one that somebody wrote or edited.

    Args:
        model: what was saved.
        folder: where.
        facts: how the model was made (recipe, data, results, ...); None if nothing is known.
    """
    file = Path(folder) / NAME
    if not file.exists() or _is_untouched(file.read_text(encoding="utf-8", errors="replace")):
        file.write_text(_signed(_text(model, facts or {})), encoding="utf-8")


def _text(model: PreTrainedModel, facts: Mapping[str, object]) -> str:
    name = type(model).__name__
    what, task, example = _KINDS.get(name, _OTHER_KIND)
    listed = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    rows = [f"| {key} | {_cell(value)} |" for key, value in _own_fields(model).items()]
    return _TEXT.format(
        task=f"\npipeline_tag: {task}" if task else "",
        name=name,
        what=what,
        parameters=model.num_parameters(),
        dtype=str(model.dtype).removeprefix("torch."),
        state=_state(model),
        version=hgrn.__version__,
        example=example.format(name=name),
        facts=listed or "Not recorded: nothing is known here of a recipe, data or results.",
        configuration="\n".join(rows),
    )


def _state(model: PreTrainedModel) -> str:
    config = model.config
    backbone: Any = model.base_model
    if any(block.mixer.why_not("state") for block in backbone.stack.blocks):
        what = "sequences" if config.patch_size is None else "images"
        return f"It reads whole {what}, from {'all four sides' if config.grid else 'both ends'}."
    size = sum(part.nbytes for layer in backbone.initial_state(1) for part in layer)
    return f"What it remembers of a sequence takes {size:,} bytes, however long that is."


def _own_fields(model: PreTrainedModel) -> dict[str, object]:
    """The fields that HGRN adds to those of any model; and the labels of a classifier."""
    common = {field.name for field in fields(PreTrainedConfig)}
    names = [field.name for field in fields(model.config) if field.name not in common]
    if "Classification" in type(model).__name__:
        names.append("id2label")
    return {name: getattr(model.config, name) for name in names}


def _cell(value: object) -> str:
    return repr(value).replace("|", "\\|")


def _signed(text: str) -> str:
    """A card with a digest of itself at the end, by which an edit is recognised later."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    rest = "which renews it with the model as long as nobody edits it."
    return f"{text}{_MARK} ({digest}), {rest} -->\n"


def _is_untouched(card: str) -> bool:
    # Whoever changes a letter of the text does not have its digest.
    text, mark, _ = card.rpartition(_MARK)
    return bool(mark) and card == _signed(text)
