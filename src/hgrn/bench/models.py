"""Language models of equal size to train and run beside each other, behind one interface.

Shape letters: B batch, T time, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgrn.bench.results import version

BYTES = 259  # the 256 bytes and 3 special tokens


class LanguageModel(nn.Module):
    """A model that is trained by `loss` and read by `forward`."""

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """ids `[B, T]` and what the call before returned -> logits `[B, T, V]` and the state after them."""
        raise NotImplementedError

    def logits(self, ids: Tensor) -> Tensor:
        """`[B, T, V]` of whole sequences."""
        return self(ids)[0]

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean nats of `labels[b, t]` after `ids[b, : t + 1]`."""
        return F.cross_entropy(self.logits(ids).flatten(0, 1), labels.flatten())

    @property
    def size(self) -> int:
        """Number of parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())


class HuggingFaceModel(LanguageModel):
    """A causal language model of transformers; `cache` is the name under which it takes and returns its state."""

    def __init__(self, model: nn.Module, cache: str = "past_key_values"):
        super().__init__()
        self.model = model
        self._cache = cache

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        output = self.model(input_ids=ids, use_cache=True, **{self._cache: state})
        return output.logits, output[self._cache]

    def logits(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


class HGRNModel(HuggingFaceModel):
    """Ours, with the loss that it computes itself."""

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        return self.model(input_ids=ids, shift_labels=labels, use_cache=False).loss


class MambaModel(HuggingFaceModel):
    """Mamba, by whichever of its scans is the faster one on a CPU: that of mambapy to train, its own loop to read."""

    def __init__(self, model: nn.Module):
        super().__init__(model, cache="cache_params")
        self.train()

    def train(self, mode: bool = True) -> "MambaModel":
        for module in self.model.modules():
            if hasattr(module, "use_mambapy"):
                module.use_mambapy = mode and _has_mambapy()
        return super().train(mode)


class RecurrentGemmaModel(HuggingFaceModel):
    """RecurrentGemma, which keeps its state in its layers, with the graph of the step that left it there."""

    def logits(self, ids: Tensor) -> Tensor:
        for module in self.model.modules():
            if hasattr(module, "recurrent_states"):
                module.recurrent_states = None
        return super().logits(ids)


class TorchRecurrentModel(LanguageModel):
    """Embedding, stacked `nn.GRU` or `nn.LSTM`, linear output."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], width: int, depth: int):
        super().__init__()
        self.embedding = nn.Embedding(BYTES, width)
        self.rnn = kind(width, width, depth, batch_first=True)
        self.head = nn.Linear(width, BYTES)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h, state = self.rnn(self.embedding(ids), state)
        return self.head(h), state


def hgrn_model(width: int, depth: int) -> HGRNModel:
    """Ours as its configuration has it by default, with seeded random weights."""
    from hgrn.models import HGRNConfig, HGRNForCausalLM

    torch.manual_seed(0)
    return HGRNModel(
        HGRNForCausalLM(HGRNConfig(vocab_size=BYTES, hidden_size=width, num_hidden_layers=depth))
    )


def _hgrn(width: int, depth: int, context: int) -> LanguageModel:
    from hgrn.models import HGRNConfig, HGRNForCausalLM

    # The gate before the norm and untied embeddings, as the quick start has them.
    config = HGRNConfig(
        vocab_size=BYTES,
        hidden_size=width,
        num_hidden_layers=depth,
        gate_position="before_norm",
        tie_word_embeddings=False,
    )
    return HGRNModel(HGRNForCausalLM(config))


def _transformer(width: int, depth: int, context: int) -> LanguageModel:
    return HuggingFaceModel(transformer(width, depth, context, BYTES))


def transformer(width: int, depth: int, context: int, vocabulary: int) -> nn.Module:
    """GPT-2 of transformers with fused attention, heads of 64 channels (32 where it is narrow), and no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=width,
        n_layer=depth,
        n_head=width // (64 if width > 128 else 32),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def _gru(width: int, depth: int, context: int) -> LanguageModel:
    return TorchRecurrentModel(nn.GRU, width, depth)


def _lstm(width: int, depth: int, context: int) -> LanguageModel:
    return TorchRecurrentModel(nn.LSTM, width, depth)


def _mamba(width: int, depth: int, context: int) -> LanguageModel:
    from transformers import MambaConfig, MambaForCausalLM

    _quiet()
    config = MambaConfig(
        vocab_size=BYTES,
        hidden_size=width,
        num_hidden_layers=depth,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return MambaModel(MambaForCausalLM(config))


def _has_mambapy() -> bool:
    return version("mambapy") != "not installed"


def _recurrent_gemma(width: int, depth: int, context: int) -> LanguageModel:
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    _quiet()
    config = RecurrentGemmaConfig(
        vocab_size=BYTES,
        hidden_size=width,
        num_hidden_layers=depth,
        intermediate_size=6 * width,
        lru_width=width,
        num_attention_heads=width // 64,
        attention_window_size=context,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return RecurrentGemmaModel(RecurrentGemmaForCausalLM(config))


def _quiet() -> None:
    """That these models run without kernels for GPUs is a note in the results, and no warning."""
    from transformers.utils import logging

    logging.set_verbosity_error()


@dataclass(frozen=True)
class Kind:
    """A kind of model; `build(width, depth, context)` makes one of byte tokens, `note` says how it runs here."""

    name: str
    build: Callable[[int, int, int], LanguageModel]
    note: Callable[[], str] = lambda: ""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("HGRN", _hgrn),
        Kind("HGRN, shallow", _hgrn, lambda: "as few layers as the LSTM"),
        Kind("Transformer", _transformer, lambda: "transformers GPT-2, SDPA"),
        Kind("GRU", _gru, lambda: "nn.GRU"),
        Kind("LSTM", _lstm, lambda: "nn.LSTM"),
        Kind(
            "Mamba",
            _mamba,
            lambda: (
                f"transformers, {'trained by the scan of mambapy' if _has_mambapy() else 'its own loop'}"
            ),
        ),
        Kind("RecurrentGemma", _recurrent_gemma, lambda: "transformers, its own loop"),
    )
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


def build(name: str, size: str, context: int) -> LanguageModel:
    """A model with seeded random weights; `context` is the longest sequence that a Transformer can read."""
    torch.manual_seed(0)
    return KINDS[name].build(*SIZES[size][name], context)
