"""Heads that classify sequences of tokens: one sequence, or two against each other.

Shape letters: B sequences of T positions; packed, N sequences in `[1, total]`; D channels.
"""

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import ModelOutput, can_return_tuple

from hgrn.models.classification import Classifier
from hgrn.models.configuration import HGRNConfig
from hgrn.models.documents import FLASH_ATTENTION, refuse_unknown
from hgrn.modules import Linear


class HGRNForSequenceClassification(Classifier):
    """HGRN with a linear map on the pooled sequence (`config.pooling`): `Linear(D, num_labels)`."""

    def __init__(self, config: HGRNConfig):
        super().__init__(config)
        self.score = Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As all models; but what was saved as a model of pairs becomes one again."""
        # Auto classes know only one class for both.
        pairs = HGRNForSequencePairClassification
        saved_as = getattr(config, "architectures", None) or ()
        is_of_pairs = cls is HGRNForSequenceClassification and pairs.__name__ in saved_as
        load = pairs.from_pretrained if is_of_pairs else super().from_pretrained
        return load(pretrained_model_name_or_path, *model_args, config=config, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        position_ids: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **flash_attention: Any,
    ) -> SequenceClassifierOutput:
        """
        Arguments as `HGRNModel.forward`, those of packed sequences included (cu_seqlens,
        position_ids, seq_idx, cu_seq_lens_q, ...), and:

        Args:
            labels: `[B]` (`[N]` if packed): class numbers (-100 is not scored), or values if
                num_labels is 1; `[B, num_labels]` floats for several labels or values each.
                `config.problem_type` decides if it is set.
            num_items_in_batch: divide the summed loss by this; default: by the number of labels
                scored.
            use_cache, output_attentions: not available; accepted because some callers always pass
                them.

        Returns:
            loss if labels are given, logits `[B, num_labels]`, hidden_states. A sequence without a
            token pools to zeros.

        Raises:
            ValueError: the arguments do not go together; the message names them.
        """
        refuse_unknown(flash_attention, FLASH_ATTENTION, self)
        pooled, hidden_states = self._encode(
            use_cache,
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            cu_seqlens=cu_seqlens,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            position_ids=position_ids,
            seq_idx=seq_idx,
            **flash_attention,
        )
        logits = self.score(pooled)
        return SequenceClassifierOutput(
            loss=self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=hidden_states,
        )


@dataclass
class SequencePairClassifierOutput(ModelOutput):
    """As `SequenceClassifierOutput` of transformers, with the hidden states of both sequences."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    hidden_states_b: tuple[Tensor, ...] | None = None


class HGRNForSequencePairClassification(Classifier):
    """HGRN on pairs of sequences, whose pooled vectors a and b (`config.pooling`) are compared.

    `Linear(4D, D) -> GELU -> Linear(D, num_labels)` on `[a, b, a - b, a * b]` (the authors' Long
    Range Arena code: tasks/decoders.py, retrieval). With batch norms both are one batch, as there,
    so the statistics are of both.
    """

    def __init__(self, config: HGRNConfig):
        super().__init__(config)
        dim = config.hidden_size
        self.classifier = nn.Sequential(
            Linear(4 * dim, dim), nn.GELU(), Linear(dim, self.num_labels)
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_ids_b: Tensor | None = None,
        attention_mask_b: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        inputs_embeds_b: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cu_seqlens_b: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> SequencePairClassifierOutput:
        """
        As `HGRNForSequenceClassification.forward`. Arguments that end in `_b` are for the second
        sequences, which may have other lengths than the first; there must be as many. With batch
        norms give both in the same way, padded to one length.

        Returns:
            loss if labels are given, logits `[B, num_labels]`, hidden_states, hidden_states_b.

        Raises:
            ValueError: the arguments do not go together; the message names them.
        """
        if (input_ids_b is None) == (inputs_embeds_b is None):
            raise ValueError(
                "give exactly one of input_ids_b and inputs_embeds_b: the second sequence of each "
                "pair"
            )
        outputs = dict(
            output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        first = _Sequences(input_ids, attention_mask, inputs_embeds, cu_seqlens)
        second = _Sequences(input_ids_b, attention_mask_b, inputs_embeds_b, cu_seqlens_b)
        if self.config.norm_type == "batch":
            # In one batch, so that the statistics are of both.
            both = _stacked(first, second)
            pooled, hidden = self._encode(use_cache, **both._asdict(), **outputs)
            a, b = pooled.chunk(2)
            halves = [layer.chunk(2) for layer in hidden or ()]
            hidden_states, hidden_states_b = zip(*halves) if halves else (None, None)
        else:
            a, hidden_states = self._encode(use_cache, **first._asdict(), **outputs)
            try:
                b, hidden_states_b = self._encode(use_cache, **second._asdict(), **outputs)
            except ValueError as error:
                raise ValueError(f"second sequences (arguments ending in _b): {error}") from error
        if len(a) != len(b):
            raise ValueError(
                f"there must be as many second sequences as first, {len(a)}; got {len(b)}"
            )
        logits = self.classifier(torch.cat([a, b, a - b, a * b], dim=-1))
        return SequencePairClassifierOutput(
            loss=self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=hidden_states,
            hidden_states_b=hidden_states_b,
        )


class _Sequences(NamedTuple):
    """The first or the second sequences of all pairs, as `HGRNModel.forward` takes them."""

    input_ids: Tensor | None
    attention_mask: Tensor | None
    inputs_embeds: Tensor | None
    cu_seqlens: Tensor | None


def _stacked(first: _Sequences, second: _Sequences) -> _Sequences:
    """One batch of all sequences, the second ones below the first.

    Raises:
        ValueError: they are packed, or not given in the same way.
    """
    by_ids = first.inputs_embeds is None
    x = first.input_ids if by_ids else first.inputs_embeds
    x_b = second.input_ids if by_ids else second.inputs_embeds
    is_packed = first.cu_seqlens is not None or second.cu_seqlens is not None
    if is_packed or x is None or x_b is None or x.shape != x_b.shape:
        given = {
            "input_ids": first.input_ids,
            "input_ids_b": second.input_ids,
            "inputs_embeds": first.inputs_embeds,
            "inputs_embeds_b": second.inputs_embeds,
        }
        shapes = ", ".join(
            f"{name} {None if tensor is None else tuple(tensor.shape)}"
            for name, tensor in given.items()
        )
        raise ValueError(
            "with batch norms the first and second sequences are one batch: give both as ids or "
            "both as embeddings, of one shape and without cu_seqlens (pad them to one length); "
            "got " + shapes
        )
    mask = None
    masks = (first.attention_mask, second.attention_mask)
    if any(each is not None for each in masks):
        full = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
        mask = torch.cat([full if each is None else each.long() for each in masks])
    x = torch.cat([x, x_b])
    return _Sequences(x if by_ids else None, mask, None if by_ids else x, None)
