"""The configuration of the HGRN models: every field, what it may hold, and the published sizes."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedConfig

from hgrn.errors import UserError
from hgrn.models.published import translated
from hgrn.untrusted import read_json

INITIALIZATIONS = ("pytorch", "lra", "normal")
_CHOICES = {
    "glu_act": ("silu", "identity"),
    "gate_position": ("after_norm", "before_norm"),
    "gate_act": ("silu", "sigmoid"),
    "norm_type": ("layer", "rms", "batch"),
    "final_norm": ("tokens", "pooled"),
    "pooling": ("mean", "last"),
    "initialization": INITIALIZATIONS,
}
_COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "gate_rank",
    "conv_size",
    "patch_size",
    "num_channels",
)
_LARGEST_COUNT = 2**31 - 1
_OPTIONAL = ("gate_rank", "conv_size", "patch_size")
_FLAGS = (
    "bias",
    "bidirectional",
    "complex_state",
    "grid",
    "mask_padding",
    "scale_embeddings",
    "shared_theta",
    "sinusoidal_positions",
    "tie_word_embeddings",
    "use_cache",
    "use_lower_bound",
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

# Keys that transformers itself writes into any configuration or passes to it, beside its fields.
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
    "custom_modules",  # ours: what `save_pretrained` records of a model with parts of its own
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
# Sizes beyond which a model is a mistake, or a file that shall fill the memory; the published ones have 10^9 numbers.
_MOST_LAYERS = 10_000
_MOST_LABELS = 1_000_000
_MOST_NUMBERS = 10**13

# A folder that we save names these classes in its config.json and holds the file, so that a program that
# never imports hgrn finds the installed package (with trust_remote_code=True).
_AUTO_MAP = {
    "AutoConfig": "modeling_hgrn.HGRNConfig",
    "AutoModel": "modeling_hgrn.HGRNModel",
    "AutoModelForCausalLM": "modeling_hgrn.HGRNForCausalLM",
    "AutoModelForImageClassification": "modeling_hgrn.HGRNForImageClassification",
    "AutoModelForSequenceClassification": "modeling_hgrn.HGRNForSequenceClassification",
}  # and `image_processing` for itself
_LOADER = '''\
"""Loads this folder with the installed package hgrn; there is no model code in here.

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

A program that imports hgrn.models needs neither this file nor trust_remote_code.
"""

from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForImageClassification,
    HGRNForSequenceClassification,
    HGRNImageProcessor,
    HGRNModel,
)

__all__ = [
    "HGRNConfig",
    "HGRNForCausalLM",
    "HGRNForImageClassification",
    "HGRNForSequenceClassification",
    "HGRNImageProcessor",
    "HGRNModel",
]
'''

# The authors' image and Long Range Arena models read from both ends, with an angle for each.
_BOTH_ENDS = dict(bidirectional=True, shared_theta=False)
_VIT = _BOTH_ENDS | dict(
    patch_size=14, num_channels=3, num_hidden_layers=12, final_norm="pooled", num_labels=1000
)
_LRA = _BOTH_ENDS | dict(
    norm_type="batch", mask_padding=False, scale_embeddings=False, initialization="lra"
)
_LRA_TEXT = _LRA | dict(sinusoidal_positions=True, embedding_dropout=0.1)
_LRA_GRID = _LRA | dict(patch_size=1, grid=True)

_PRESETS = {
    # The authors' hgrn_lm_base: 46,247,936 parameters. The bilinear GLU is what the authors' code runs.
    "wikitext103": dict(
        vocab_size=50264,
        hidden_size=512,
        num_hidden_layers=6,
        glu_act="identity",
        dropout=0.1,
        initialization="pytorch",
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    ),
    # From the published config.json of HGRN-150M: 146.07 M parameters (derived). It names the GLU's
    # activation "swish", which the authors' helper may have run as identity; dropout in training is unknown
    # (here 0).
    "lm-150m": dict(
        vocab_size=50272,
        hidden_size=768,
        num_hidden_layers=14,
        bias=False,
        initialization="normal",
        bos_token_id=50260,
        eos_token_id=50260,
    ),
    # Inferred: the sizes are not published. 150M's pattern (GLU twice the width) with a width and depth that
    # fit the name: 351.6 M parameters; 19 layers with a GLU of 2816 (355.5 M) fit as well. The rest as above.
    "lm-350m": dict(
        vocab_size=50272,
        hidden_size=1024,
        num_hidden_layers=22,
        bias=False,
        initialization="normal",
        bos_token_id=50260,
        eos_token_id=50260,
    ),
    # Inferred from the size of the published file (3.9 GB of float32): 975.7 M parameters. The rest as above.
    "lm-1b": dict(
        vocab_size=50272,
        hidden_size=2048,
        num_hidden_layers=16,
        bias=False,
        initialization="normal",
        bos_token_id=50260,
        eos_token_id=50260,
    ),
    # The authors' hgrn1d_vit_tiny and hgrn1d_vit_small for images of 224 x 224: 6,107,560 and 23,715,688 parameters.
    "vit-tiny": _VIT | dict(hidden_size=192),
    "vit-small": _VIT | dict(hidden_size=384),
    # The authors' script for Long Range Arena. Vocabularies: 18, 135 and 98 characters or tokens, of which one is padding; it
    # has an embedding like any other, since these models see it. Images of 32 x 32 in colour; the rest is grey.
    "lra-listops": _LRA_TEXT
    | dict(vocab_size=18, hidden_size=32, num_hidden_layers=6, intermediate_size=32, num_labels=10),
    "lra-text": _LRA_TEXT
    | dict(
        vocab_size=135,
        hidden_size=128,
        num_hidden_layers=4,
        intermediate_size=128,
        num_labels=2,
        dropout=0.1,
        glu_dropout=0.1,
    ),
    "lra-retrieval": _LRA_TEXT
    | dict(vocab_size=98, hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_labels=2),
    "lra-image": _LRA_GRID
    | dict(
        num_channels=3,
        hidden_size=512,
        num_hidden_layers=6,
        intermediate_size=512,
        num_labels=10,
        sinusoidal_positions=True,
        embedding_dropout=0.1,
    ),
    "lra-pathfinder": _LRA_GRID
    | dict(
        num_channels=1,
        hidden_size=128,
        num_hidden_layers=6,
        intermediate_size=128,
        num_labels=2,
    ),
    "lra-pathx": _LRA_GRID
    | dict(num_channels=1, hidden_size=64, num_hidden_layers=6, intermediate_size=64, num_labels=2),
}


class HGRNConfig(PreTrainedConfig):
    """Configuration of HGRN models.

    With patch_size set it is one of images, without one of tokens.

    Fields:
        vocab_size: number of tokens.
        patch_size: rows and columns of the patches, in raster order, that a model of images reads; 1 is pixel by pixel. None is a
            model of tokens.
        num_channels: channels of the images.
        grid: scan images along rows and columns from all four sides (bidirectional only); False along the raster.
        hidden_size: channels D.
        num_hidden_layers: blocks, each an HGRU and a GLU.
        intermediate_size: channels inside each GLU; None becomes twice hidden_size.
        glu_act: "silu", or "identity" (bilinear).
        dropout: probability on embeddings and on the output of every HGRU and GLU, in [0, 1).
        embedding_dropout: another one on embeddings; None is dropout.
        glu_dropout: probability inside every GLU, on the activated branch (the authors' Long Range Arena models).
        bias: biases of the linear maps in the blocks (norms keep theirs; the output projection has none).
        norm_eps: epsilon of all norms, > 0.
        norm_type: "layer", "rms" (flash-linear-attention's), or "batch", over batch and length, of all norms but those inside the
            HGRUs, which are "layer" then (the authors' Long Range Arena models).
        final_norm: the last norm: of the "tokens", as the blocks', or "pooled" (`SimpleRMSNorm` of the pooled vector in
            classification heads, and none of the tokens; the authors' image models).
        complex_state: two numbers per channel turned by learned angles; False is the real variant.
        use_lower_bound: bound the forget gates from below, more with every layer; False is the paper's ablation.
        gate_position: output gate "after_norm" (the authors' code) or "before_norm" (the paper's text).
        gate_act: activation of the output gate, "silu" or "sigmoid".
        gate_rank: factor forget and gate projections through this many channels; None does not.
        conv_size: taps of a causal convolution of candidate and forget gate (flash-linear-attention's); None is none.
        bidirectional: each layer reads from both ends, so there is no state: for classification, not for language modelling.
        shared_theta: one theta for both directions; False is one for each (bidirectional and complex only).
        pooling: what the classification heads make of the positions: their "mean", or the "last".
        mask_padding: skip padding exactly; False lets the layers see it as any token and leaves it out of the pooling only (the
            authors' Long Range Arena models).
        sinusoidal_positions: add a fixed table of sines and cosines to the embeddings.
        scale_embeddings: multiply the embeddings of tokens by sqrt(hidden_size).
        tie_word_embeddings: one matrix for embeddings and output projection.
        initialization: "pytorch" (its default for linear maps, embeddings N(0, 1/sqrt(hidden_size)); the
            authors' WikiText-103 model), "lra" (the same, embeddings N(0, 1)) or "normal" (N(0, 0.02), biases 0).
        use_cache: return the state when not training.
        bos_token_id, eos_token_id, pad_token_id: ids of special tokens or None; several ends are a list. The
            pad token's embedding starts at zero and is not trained as an input.

    Other keyword arguments are transformers' own (dtype, id2label, ...); one that neither knows is an error.

    Raises:
        ValueError: listing every field that is unknown or holds something it may not.
    """

    model_type = "hgrn"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 50264
    patch_size: int | None = None
    num_channels: int = 3
    grid: bool = False
    hidden_size: int = 512
    num_hidden_layers: int = 6
    intermediate_size: int | None = None
    glu_act: str = "silu"
    dropout: float = 0.0
    embedding_dropout: float | None = None
    glu_dropout: float = 0.0
    bias: bool = True
    norm_eps: float = 1e-5
    norm_type: str = "layer"
    final_norm: str = "tokens"
    complex_state: bool = True
    use_lower_bound: bool = True
    gate_position: str = "after_norm"
    gate_act: str = "silu"
    gate_rank: int | None = None
    conv_size: int | None = None
    bidirectional: bool = False
    shared_theta: bool = True
    pooling: str = "mean"
    mask_padding: bool = True
    sinusoidal_positions: bool = False
    scale_embeddings: bool = True
    tie_word_embeddings: bool = True
    initialization: str = "pytorch"
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None and isinstance(self.hidden_size, int):
            self.intermediate_size = 2 * self.hidden_size
        known = {field.name for field in fields(self)} | OF_TRANSFORMERS
        self._raise_problems(
            _transformers_problems(self, kwargs), [key for key in kwargs if key not in known]
        )
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides) -> Self:
        """A published model, some fields overridden.

        Names are "wikitext103", "lm-150m", "lm-350m" and "lm-1b" (language models), "vit-tiny" and "vit-small", "lra-image",
        "lra-pathfinder" and "lra-pathx" (of images), "lra-listops", "lra-text" and "lra-retrieval" (of sequences, the last of
        pairs). The ids of special tokens are those of the published vocabulary: where vocab_size is overridden they are None
        unless given. Where hidden_size is overridden, intermediate_size follows it in the same ratio unless given.

        Raises:
            ValueError: no preset has this name, or a field is wrong.
        """
        if name not in _PRESETS:
            known = ", ".join(_PRESETS)
            raise ValueError(f"preset must be one of {known}, got {name!r}{_near(name, _PRESETS)}")
        preset = dict(_PRESETS[name])
        foreign = _TOKENS if "vocab_size" in overrides else ()
        if "intermediate_size" in preset and _is_int(width := overrides.get("hidden_size")):
            preset["intermediate_size"] = (
                width * preset["intermediate_size"] // preset["hidden_size"]
            )
        return cls(**{k: v for k, v in preset.items() if k not in foreign} | overrides)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As transformers does; a configuration in a published layout becomes ours (hgrn.models.published)."""
        given = translated(config_dict)
        if "self" in given:  # Python would take it for the object itself
            raise ValueError("HGRNConfig has 1 problem(s):\n  self: no such field")
        return super().from_dict(given, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file):
        """As transformers does, with one kind of error for whatever is wrong with the file, and without other files that it names."""
        config = read_json(json_file)
        if "configuration_files" in config:
            raise UserError(
                f"{json_file} names other files to be read in its place (configuration_files), which is not done here"
            )
        return cls._decode_special_floats(config)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As transformers does, and the loader file for programs that do not import hgrn beside it."""
        self._raise_problems()
        self.auto_map = dict(_AUTO_MAP)
        write_loader(save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig"):
        """Does nothing: it would make transformers copy our source files into saved folders."""

    def _raise_problems(self, found: Sequence[str] = (), unknown: Sequence[str] = ()) -> None:
        known = [field.name for field in fields(self)]
        problems = [f"{name}: no such field{_near(name, known)}" for name in unknown]
        problems += found
        problems += [
            f"{name}: must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
            for name, choices in _CHOICES.items()
            if getattr(self, name) not in choices
        ]
        problems += [
            f"{name}: must be a positive integer{' or None' if name in _OPTIONAL else ''}, got {value!r}"
            for name in _COUNTS
            if not (_is_int(value := getattr(self, name)) and value > 0)
            and not (value is None and name in _OPTIONAL)
        ]
        problems += [
            f"{name}: must be at most {_LARGEST_COUNT}, got {value!r}"
            for name in _COUNTS
            if _is_int(value := getattr(self, name)) and value > _LARGEST_COUNT
        ]
        problems += [
            f"{name}: must be True or False, got {value!r}"
            for name in _FLAGS
            if not isinstance(value := getattr(self, name), bool)
        ]
        if self.shared_theta is False and not (self.bidirectional and self.complex_state):
            problems.append(
                "shared_theta: must be True unless bidirectional and complex_state are, got False"
            )
        if self.grid is True and not (self.patch_size is not None and self.bidirectional):
            given = f"patch_size={self.patch_size!r} and bidirectional={self.bidirectional!r}"
            problems.append(
                f"grid: must be False unless patch_size is set and bidirectional is True, got {given}"
            )
        problems += [
            f"{name}: must be a number in [0, 1){' or None' if name == 'embedding_dropout' else ''}, got {value!r}"
            for name in ("dropout", "embedding_dropout", "glu_dropout")
            if not (_is_number(value := getattr(self, name)) and 0 <= value < 1)
            and not (value is None and name == "embedding_dropout")
        ]
        if not (_is_number(self.norm_eps) and 0 < self.norm_eps < math.inf):
            problems.append(f"norm_eps: must be a positive number, got {self.norm_eps!r}")
        problems += [
            f"{name}: must be a token id below vocab_size ({self.vocab_size}) or None, got {value!r}"
            for name in _TOKENS
            if (value := getattr(self, name)) is not None and not self._are_tokens(name, value)
        ]
        if not problems:
            problems = self._size_problems()
        if problems:
            raise ValueError(
                f"HGRNConfig has {len(problems)} problem(s):\n  " + "\n  ".join(problems)
            )

    @property
    def fewest_numbers(self) -> int:
        """At least so many parameters has a model: those of embedding, candidates, output projections and GLUs."""
        width = self.hidden_size
        inputs = (
            self.vocab_size if self.patch_size is None else self.num_channels * self.patch_size**2
        )
        layer = width * (
            2 * width
            + 3 * self.intermediate_size
            + 2 * (self.conv_size or 0)
            + (self.gate_rank or 0)
        )
        return inputs * width + self.num_hidden_layers * layer

    def _size_problems(self) -> list[str]:
        """What is wrong with sizes that are whole numbers; a model is not begun where it can never end."""
        problems = []
        if self.num_hidden_layers > _MOST_LAYERS:
            problems.append(
                f"num_hidden_layers: must be at most {_MOST_LAYERS:,}, got {self.num_hidden_layers}"
            )
        if self.fewest_numbers > _MOST_NUMBERS:
            sizes = ", ".join(
                f"{name} {value}" for name in _COUNTS if (value := getattr(self, name)) is not None
            )
            problems.append(
                f"hidden_size: the model would have more than {_MOST_NUMBERS:,} parameters with {sizes}; use smaller ones"
            )
        return problems

    def _are_tokens(self, name: str, value) -> bool:
        values = value if isinstance(value, list) and name == "eos_token_id" else [value]
        limit = self.vocab_size if _is_int(self.vocab_size) else float("inf")
        return all(_is_int(v) and 0 <= v < limit for v in values)


def write_loader(folder: str | Path) -> None:
    """Writes the file that lets programs which never import hgrn load this folder, making the folder if need be."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "modeling_hgrn.py").write_text(_LOADER, encoding="utf-8")


def _transformers_problems(config: HGRNConfig, given: Mapping) -> list[str]:
    """What is wrong with fields of transformers itself, which it takes as they are or fails over in ways of its own."""
    problems = []
    dtype = given.get("torch_dtype") if config.dtype is None else config.dtype
    if dtype is not None and not isinstance(
        getattr(torch, dtype, None) if isinstance(dtype, str) else dtype, torch.dtype
    ):
        problems.append(
            f"dtype: must be the name of a type of PyTorch, such as float32, got {dtype!r}"
        )
    labels = config.id2label
    if labels is not None and not (
        isinstance(labels, Mapping) and len(labels) <= _MOST_LABELS and _are_numbered(labels)
    ):
        problems.append(
            f"id2label: must be a name for each number from 0, at most {_MOST_LABELS:,} of them, or None"
        )
    count = given.get("num_labels")
    if count is not None and not (_is_int(count) and 0 < count <= _MOST_LABELS):
        problems.append(f"num_labels: must be an integer from 1 to {_MOST_LABELS:,}, got {count!r}")
    if not isinstance(config.label2id, Mapping | None):
        problems.append(
            f"label2id: must be a number for each name or None, got {config.label2id!r}"
        )
    if config.problem_type not in _PROBLEM_TYPES:
        problems.append(
            f"problem_type: must be one of {', '.join(map(str, _PROBLEM_TYPES))}, got {config.problem_type!r}"
        )
    problems += [
        f"{name}: must be True, False or None, got {value!r}"
        for name in ("output_hidden_states", "return_dict", "is_encoder_decoder")
        if not isinstance(value := getattr(config, name), bool | None)
    ]
    quantization = given.get("quantization_config")
    if not (
        quantization is None
        or isinstance(quantization, Mapping)
        or hasattr(quantization, "to_dict")
    ):
        problems.append(f"quantization_config: must be an object or None, got {quantization!r}")
    for name in ("attn_implementation", "experts_implementation", "per_layer_config"):
        if (value := given.get(name, given.get(f"_{name}"))) not in (None, "eager", "sdpa"):
            problems.append(
                f"{name}: must be None, since there is no such part in these models, got {value!r}"
            )
    return problems


def _are_numbered(labels: Mapping) -> bool:
    """Whether the keys are 0, 1, 2, ..., as numbers or, as JSON writes them, as text."""
    return {str(key) for key in labels} == {str(number) for number in range(len(labels))}


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return _is_int(value) or isinstance(value, float)


def _near(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
