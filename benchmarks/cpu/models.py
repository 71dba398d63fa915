"""Language models of equal size, to be trained and read beside each other.

All are models of transformers, so the training loop, its checkpoints and its evaluation take them.
Shape letters: B batch, T time, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from benchmarks.machine import version
from hgrn.models import HGRNConfig, HGRNForCausalLM

BYTES = 259  # the 256 bytes and 3 special tokens
_FUSED: dict[str, Any] = {"attn_implementation": "sdpa"}
_NO_SPECIAL_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}


def loss_of(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean nats of `labels[b, t]` after `ids[b, : t + 1]`; both are `[B, T]`."""
    if isinstance(model, HGRNForCausalLM):
        # Ours computes its loss itself, in less memory.
        return model(input_ids=ids, shift_labels=labels, use_cache=False).loss
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class DecaysMatrices:
    """A model whose vectors (biases, scales) get no weight decay."""

    def no_decay_names(self: Any) -> set[str]:
        """What `optimizer.no_decay: module` spares."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim < 2}


class Transformer(DecaysMatrices, GPT2LMHeadModel):
    """GPT-2 of transformers."""


class Mamba(DecaysMatrices, MambaForCausalLM):
    """Mamba by the faster scan on a CPU: mambapy's in training, its own loop in reading."""

    def __init__(self, config: MambaConfig):
        super().__init__(config)
        self.train()

    def train(self, mode: bool = True) -> "Mamba":
        mixers: list[Any] = [each for each in self.modules() if hasattr(each, "use_mambapy")]
        for mixer in mixers:
            mixer.use_mambapy = mode and _has_mambapy()
        return super().train(mode)


class RecurrentGemma(DecaysMatrices, RecurrentGemmaForCausalLM):
    """RecurrentGemma, which keeps its state in its layers, with the graph of the step before."""

    def forward(self, *args: Any, use_cache: bool | None = None, **kwargs: Any) -> Any:
        # Without this, a second sequence would go on from the first, and so would its gradient.
        if not use_cache:
            layers: list[Any] = [m for m in self.modules() if hasattr(m, "recurrent_states")]
            for layer in layers:
                layer.recurrent_states = None
        return super().forward(*args, use_cache=use_cache, **kwargs)


class RecurrentConfig(PreTrainedConfig):
    """Sizes of `RecurrentForCausalLM`; cell is "GRU" or "LSTM"."""

    model_type = "torch-recurrent"
    cell: str = "LSTM"
    vocab_size: int = BYTES
    hidden_size: int = 64
    num_layers: int = 2


class RecurrentForCausalLM(DecaysMatrices, PreTrainedModel):
    """Embedding, stacked `nn.GRU` or `nn.LSTM`, linear output."""

    config_class = RecurrentConfig

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        width = config.hidden_size
        cell = {"GRU": nn.GRU, "LSTM": nn.LSTM}[config.cell]
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.rnn = cell(width, width, config.num_layers, batch_first=True)
        self.head = nn.Linear(width, config.vocab_size)

    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False
    ) -> CausalLMOutputWithPast:
        """input_ids `[B, T]` and the state so far; logits `[B, T, V]` and the state after them."""
        h, state = self.rnn(self.embedding(input_ids), past_key_values)
        return CausalLMOutputWithPast(logits=self.head(h), past_key_values=state)


def hgrn_model(width: int, depth: int) -> HGRNForCausalLM:
    """Ours with the defaults of its configuration and seeded random weights."""
    torch.manual_seed(0)
    config = HGRNConfig(vocab_size=BYTES, hidden_size=width, num_hidden_layers=depth)
    return HGRNForCausalLM(config)


def transformer(width: int, depth: int, context: int, vocabulary: int = BYTES) -> Transformer:
    """With fused attention, heads of 64 channels (32 where it is narrow), and no dropout."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=width,
        n_layer=depth,
        n_head=width // (64 if width > 128 else 32),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **_NO_SPECIAL_TOKENS,
        **_FUSED,
    )
    return Transformer(config)


def _hgrn(width: int, depth: int, context: int) -> PreTrainedModel:
    # The gate before the norm and untied embeddings, as in the quick start.
    config = HGRNConfig(
        vocab_size=BYTES,
        hidden_size=width,
        num_hidden_layers=depth,
        gate_position="before_norm",
        tie_word_embeddings=False,
    )
    return HGRNForCausalLM(config)


def _recurrent(cell: str) -> Callable[[int, int, int], PreTrainedModel]:
    def build(width: int, depth: int, context: int) -> PreTrainedModel:
        return RecurrentForCausalLM(RecurrentConfig(cell=cell, hidden_size=width, num_layers=depth))

    return build


def _mamba(width: int, depth: int, context: int) -> PreTrainedModel:
    # The rows say that it runs without its kernels for GPUs, so its warning need not.
    logging.set_verbosity_error()
    config = MambaConfig(
        vocab_size=BYTES,
        hidden_size=width,
        num_hidden_layers=depth,
        pad_token_id=None,
        **_NO_SPECIAL_TOKENS,
    )
    return Mamba(config)


def _recurrent_gemma(width: int, depth: int, context: int) -> PreTrainedModel:
    logging.set_verbosity_error()
    config = RecurrentGemmaConfig(
        vocab_size=BYTES,
        hidden_size=width,
        num_hidden_layers=depth,
        intermediate_size=6 * width,
        lru_width=width,
        num_attention_heads=width // 64,
        attention_window_size=context,
        pad_token_id=None,
        **_NO_SPECIAL_TOKENS,
    )
    return RecurrentGemma(config)


def _has_mambapy() -> bool:
    return version("mambapy") != "not installed"


@dataclass(frozen=True)
class Kind:
    """A kind of model. build: makes one of (width, depth, context). note: how it runs here."""

    build: Callable[[int, int, int], PreTrainedModel]
    note: str = ""


KINDS = {
    "HGRN": Kind(_hgrn),
    "HGRN, shallow": Kind(_hgrn, "as few layers as the LSTM"),
    "Transformer": Kind(transformer, "transformers GPT-2, SDPA"),
    "GRU": Kind(_recurrent("GRU"), "nn.GRU"),
    "LSTM": Kind(_recurrent("LSTM"), "nn.LSTM"),
    "Mamba": Kind(
        _mamba,
        "transformers, " + ("trained by the scan of mambapy" if _has_mambapy() else "its own loop"),
    ),
    "RecurrentGemma": Kind(_recurrent_gemma, "transformers, its own loop"),
}
# Width and depth of each kind for about so many parameters.
SIZES = {
    "tiny": {
        "HGRN": (64, 2),
        "Transformer": (64, 2),
        "GRU": (64, 3),
        "LSTM": (64, 2),
        "Mamba": (64, 2),
        "RecurrentGemma": (64, 3),
    },
    "0.9M": {
        "HGRN": (128, 4),
        "Transformer": (128, 4),
        "GRU": (256, 2),
        "LSTM": (224, 2),
        "Mamba": (128, 8),
    },
    "5M": {
        "HGRN": (256, 6),
        "HGRN, shallow": (352, 3),
        "Transformer": (256, 6),
        "GRU": (512, 3),
        "LSTM": (448, 3),
        "Mamba": (256, 12),
        "RecurrentGemma": (256, 6),
    },
    "30M": {
        "HGRN": (512, 9),
        "HGRN, shallow": (768, 4),
        "Transformer": (512, 9),
        "GRU": (1024, 5),
        "LSTM": (960, 4),
        "Mamba": (512, 18),
        "RecurrentGemma": (512, 9),
    },
}


def build(name: str, size: str, context: int) -> PreTrainedModel:
    """A model with seeded random weights; a Transformer reads up to `context` tokens."""
    torch.manual_seed(0)
    return KINDS[name].build(*SIZES[size][name], context)


def parameters(model: nn.Module) -> int:
    """How many parameters a model has; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
