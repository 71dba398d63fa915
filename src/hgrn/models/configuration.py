"""The configuration of the HGRN models: every field, what it may hold, and the published sizes."""

import math
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedConfig

from hgrn.errors import UserError, near
from hgrn.models.fields import (
    choice,
    count,
    flag,
    is_int,
    other,
    positive,
    probability,
    problems_of,
    with_documented_fields,
)
from hgrn.models.loader import AUTO_MAP, write_loader
from hgrn.models.mixer_fields import mixer_problems, record
from hgrn.models.presets import PRESETS
from hgrn.models.published.config import as_our_fields
from hgrn.models.transformers_fields import OF_TRANSFORMERS, transformers_problems
from hgrn.modules.glu import GLU_ACTS
from hgrn.modules.hgru import GATE_ACTS, GATE_POSITIONS
from hgrn.modules.norms import NORMS
from hgrn.untrusted import read_json

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# The fields that decide how many parameters a model has.
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "gate_rank",
    "conv_size",
    "patch_size",
    "num_channels",
)
_LIKENESS = 0.7  # of a misspelt name; many fields end alike
_INITIALIZATIONS = ("pytorch", "lra", "normal")

# A model with more is a mistake, or a file that is meant to fill the memory; the published ones
# have 10^9 numbers.
_MOST_LAYERS = 10_000
_MOST_NUMBERS = 10**13


@with_documented_fields
class HGRNConfig(PreTrainedConfig):
    """Configuration of HGRN models.

    With patch_size set it describes a model of images, without it a model of tokens.

    Fields:
        {fields}

    Other keyword arguments are transformers' own (dtype, id2label, ...); one that neither knows is
    an error.

    Raises:
        ValueError: listing every field that is unknown or holds something it may not.
    """

    model_type = "hgrn"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = count(50264, "number of tokens.")
    patch_size: int | None = count(
        None,
        "rows and columns of the patches, in raster order, that a model of images reads; 1 is "
        "pixel by pixel. None is a model of tokens.",
        optional=True,
    )
    num_channels: int = count(3, "channels of the images.")
    grid: bool = flag(
        False,
        "scan images along rows and columns from all four sides (bidirectional only); False scans "
        "along the raster.",
    )
    hidden_size: int = count(512, "channels D.")
    num_hidden_layers: int = count(6, "blocks, each an HGRU and a GLU.")
    intermediate_size: int | None = count(
        None, "channels inside each GLU; None becomes twice hidden_size."
    )
    glu_act: str = choice("silu", GLU_ACTS, '"silu", or "identity" (bilinear).')
    dropout: float = probability(
        0.0, "probability on embeddings and on the output of every HGRU and GLU, in [0, 1)."
    )
    embedding_dropout: float | None = probability(
        None, "another probability on embeddings; None is dropout.", optional=True
    )
    glu_dropout: float = probability(
        0.0,
        "probability inside every GLU, on the activated branch (the authors' Long Range Arena "
        "models).",
    )
    bias: bool = flag(
        True,
        "biases of the linear maps in the blocks (norms keep theirs; the output projection has "
        "none).",
    )
    norm_eps: float = positive(1e-5, "epsilon of all norms, > 0.")
    norm_type: str = choice(
        "layer",
        NORMS,
        '"layer", "rms" (flash-linear-attention\'s), or "batch", over batch and length. "batch" '
        "is for all norms but "
        'the ones inside the HGRUs, which are "layer" then (the authors\' Long Range Arena '
        "models).",
    )
    final_norm: str = choice(
        "tokens",
        ("tokens", "pooled"),
        'what the last norm is for: the "tokens", as in the blocks, or the "pooled" vector in '
        "classification heads (`SimpleRMSNorm`, and no norm of the tokens; the authors' image "
        "models).",
    )
    complex_state: bool = flag(
        True, "two numbers per channel turned by learned angles; False is the real variant."
    )
    use_lower_bound: bool = flag(
        True,
        "bound the forget gates from below, more with every layer; False is the paper's ablation.",
    )
    gate_position: str = choice(
        "after_norm",
        GATE_POSITIONS,
        'output gate "after_norm" (the authors\' code) or "before_norm" (the paper\'s text).',
    )
    gate_act: str = choice("silu", GATE_ACTS, 'activation of the output gate, "silu" or "sigmoid".')
    gate_rank: int | None = count(
        None,
        "factor forget and gate projections through this many channels; None does not.",
        optional=True,
    )
    mixer: str = other(
        "hgru",
        'what mixes the positions in each layer: "hgru"; "hgrn2", a matrix for a state in each '
        'head (`HGRN2Mixer`); or a name given to `register_mixer`. Another mixer than "hgru" is '
        "made with mixer_options, and with those of the fields from complex_state to shared_theta "
        "that are not their defaults.",
    )
    mixer_options: dict[str, Any] | None = other(
        None, "arguments of the mixer by name, such as head_dim: 64; None is none."
    )
    conv_size: int | None = count(
        None,
        "taps of a causal convolution of candidate and forget gate (flash-linear-attention's); "
        "None is none.",
        optional=True,
    )
    bidirectional: bool = flag(
        False,
        "each layer reads from both ends, so there is no state: for classification, not for "
        "language modelling.",
    )
    shared_theta: bool = flag(
        True,
        "one theta for both directions; False is one for each (bidirectional and complex only).",
    )
    pooling: str = choice(
        "mean",
        ("mean", "last"),
        'what the classification heads make of the positions: their "mean", or the "last".',
    )
    mask_padding: bool = flag(
        True,
        "skip padding exactly; False lets the layers see it as any token and leaves it out of "
        "the pooling only (the authors' Long Range Arena models).",
    )
    sinusoidal_positions: bool = flag(
        False, "add a fixed table of sines and cosines to the embeddings."
    )
    scale_embeddings: bool = flag(True, "multiply the embeddings of tokens by sqrt(hidden_size).")
    tie_word_embeddings: bool = flag(True, "one matrix for embeddings and output projection.")
    initialization: str = choice(
        "pytorch",
        _INITIALIZATIONS,
        '"pytorch" (its default for linear maps, embeddings N(0, 1/sqrt(hidden_size)); the '
        "authors' WikiText-103 "
        'model), "lra" (the same, embeddings N(0, 1)) or "normal" (N(0, 0.02), biases 0).',
    )
    use_cache: bool = flag(True, "return the state when not training.")
    bos_token_id: int | None = other(None, "id of the token that begins a text, or None.")
    eos_token_id: int | list[int] | None = other(
        None, "id of the token that ends a text, or None; several are a list."
    )
    pad_token_id: int | None = other(
        None,
        "id of the token for padding, or None. Its embedding starts at zero and is not trained as "
        "an input.",
    )

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None and isinstance(self.hidden_size, int):
            self.intermediate_size = 2 * self.hidden_size
        # What a checkpoint records is compared with what is here, before the rest is taken over.
        if "mixer_record" in kwargs:
            self.mixer_record = kwargs["mixer_record"]
        known = {field.name for field in fields(self)} | OF_TRANSFORMERS
        self._raise_problems(
            transformers_problems(self, kwargs), [key for key in kwargs if key not in known]
        )
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A published model, some fields overridden.

        An id of a special token means nothing in another vocabulary: with an overridden vocab_size
        it is None unless given. With an overridden hidden_size, intermediate_size keeps its ratio
        to it unless given.

        Args:
            name: "wikitext103", "lm-150m", "lm-350m" or "lm-1b" (language models); "vit-tiny",
                "vit-small", "lra-image", "lra-pathfinder" or "lra-pathx" (models of images);
                "lra-listops", "lra-text" or "lra-retrieval" (models of sequences, the last of
                pairs).
            overrides: fields.

        Raises:
            ValueError: no preset has this name, or a field is wrong.
        """
        if name not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(
                f"preset must be one of {known}, got {name!r}{near(name, PRESETS, _LIKENESS)}"
            )
        preset = dict(PRESETS[name])
        if "vocab_size" in overrides:
            for token in _TOKENS:
                preset.pop(token, None)
        width = overrides.get("hidden_size")
        if "intermediate_size" in preset and is_int(width):
            preset["intermediate_size"] *= width
            preset["intermediate_size"] //= preset["hidden_size"]
        return cls(**preset | overrides)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers does; a configuration in a published layout becomes ours."""
        given = as_our_fields(config_dict)
        # Python would take this key for the object itself.
        if "self" in given:
            raise ValueError("HGRNConfig has 1 problem(s):\n  self: no such field")
        return super().from_dict(given, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """As transformers does; but all errors are UserErrors, and no other file is read."""
        config = read_json(Path(json_file))
        if "configuration_files" in config:
            raise UserError(
                f"{json_file} names other files to be read in its place (configuration_files), "
                "which is not done here"
            )
        return cls._decode_special_floats(config)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """As transformers does, and the loader file, for programs that do not import hgrn."""
        self._raise_problems()
        record(self)
        self.auto_map = dict(AUTO_MAP)
        write_loader(save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: it would make transformers copy our source files into saved folders."""

    def _raise_problems(self, found: Sequence[str] = (), unknown: Sequence[str] = ()) -> None:
        """Raise ValueError with these problems and those of all fields, if there are any."""
        known = [field.name for field in fields(self)]
        problems = [f"{name}: no such field{near(name, known, _LIKENESS)}" for name in unknown]
        problems += [*found, *problems_of(self), *self._problems_of_pairs()]
        if not problems:
            problems = self._size_problems()
        if problems:
            listed = "\n  ".join(problems)
            raise ValueError(f"HGRNConfig has {len(problems)} problem(s):\n  {listed}")

    def _problems_of_pairs(self) -> list[str]:
        """A line for each field that does not go with another one."""
        problems = []
        if self.shared_theta is False and not (self.bidirectional and self.complex_state):
            problems.append(
                "shared_theta: must be True unless bidirectional and complex_state are, got False"
            )
        if self.grid is True and not (self.patch_size is not None and self.bidirectional):
            given = f"patch_size={self.patch_size!r} and bidirectional={self.bidirectional!r}"
            problems.append(
                "grid: must be False unless patch_size is set and bidirectional is True, got "
                f"{given}"
            )
        problems += mixer_problems(self)
        limit = self.vocab_size
        for name in _TOKENS:
            value = getattr(self, name)
            if value is not None and not self._are_tokens(name, value):
                problems.append(
                    f"{name}: must be a token id below vocab_size ({limit}) or None, got {value!r}"
                )
        return problems

    @property
    def fewest_numbers(self) -> int:
        """The least number of parameters: embedding, candidates, output projections and GLUs."""
        width = self.hidden_size
        inside = self.intermediate_size or 2 * width
        inputs = (
            self.vocab_size if self.patch_size is None else self.num_channels * self.patch_size**2
        )
        layer = width * (2 * width + 3 * inside + 2 * (self.conv_size or 0) + (self.gate_rank or 0))
        return inputs * width + self.num_hidden_layers * layer

    def _size_problems(self) -> list[str]:
        """A line for each size, valid by itself, that makes a model which no machine can hold."""
        problems = []
        if self.num_hidden_layers > _MOST_LAYERS:
            problems.append(
                f"num_hidden_layers: must be at most {_MOST_LAYERS:,}, got {self.num_hidden_layers}"
            )
        if self.fewest_numbers > _MOST_NUMBERS:
            sizes = {name: getattr(self, name) for name in _SIZES}
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items() if size is not None)
            problems.append(
                f"hidden_size: the model would have more than {_MOST_NUMBERS:,} parameters with "
                f"{listed}; use smaller ones"
            )
        return problems

    def _are_tokens(self, name: str, value: Any) -> bool:
        values = value if isinstance(value, list) and name == "eos_token_id" else [value]
        limit = self.vocab_size if is_int(self.vocab_size) else math.inf
        return all(is_int(v) and 0 <= v < limit for v in values)
